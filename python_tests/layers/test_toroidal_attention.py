"""What the layer computes. Legend: B batch, N tokens, C channels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from python_tests.layers.toroidal_attention_cases import CAUSAL, FORMS, attention, definition, tokens
from stratcore import ops
from stratcore.layers import ToroidalAttention, ToroidalAttentionOptions

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [13, 5, 1, 0])
def test_matches_the_definition(form, count):
    module = attention(**FORMS[form])
    x = tokens(module, count)
    torch.testing.assert_close(module(x), definition(module, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["keys", "added keys", "pairs", "added pairs of heads"])
def test_masks_are_honoured(form, kind):
    module = attention(**FORMS[form])
    x, heads = tokens(module), module.options.num_heads
    shape = {"keys": (2, 13), "added keys": (2, 13), "pairs": (2, 1, 13, 13)}.get(kind, (1, heads, 13, 13))
    mask = torch.randn(shape, dtype=torch.float64) if "added" in kind else torch.rand(shape) > 0.4
    wide = mask[:, None, None] if mask.ndim == 2 else mask
    torch.testing.assert_close(module(x, mask=mask), definition(module, x, wide), rtol=0, atol=1e-12)
    assert not torch.allclose(module(x, mask=mask), module(x), atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_match_the_definition(form):
    module = attention(**FORMS[form])
    x, weight = tokens(module).requires_grad_(), tokens(module)
    inputs = [x, *module.parameters()]
    found = torch.autograd.grad((module(x) * weight).sum(), inputs)
    wanted = torch.autograd.grad((definition(module, x) * weight).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_gradcheck():
    module = attention(
        dim=4, num_heads=2, head_dim=4, lattice=(3,), depth=2, fusion="attention", learn_slopes=True
    )
    names = [name for name, _ in module.named_parameters()]
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), x)

    assert gradcheck(call, (x, *module.parameters()))


# ---- distances


def bias_of(**changes: Any) -> Tensor:
    """Distances [N, N] that a module takes off: of products 0 and values that name the key."""
    count = math.prod(changes["lattice"])
    module = attention(
        dim=count, num_heads=1, head_dim=count, rotary=False, bias=False, slopes=1.0, **changes
    )
    with torch.no_grad():
        for project, weight in (
            (module.q_proj, 0.0),
            (module.k_proj, 0.0),
            (module.v_proj, 1.0),
            (module.o_proj, 1.0),
        ):
            project.weight.copy_(weight * torch.eye(count))
        weights = module(torch.eye(count, dtype=torch.float64)[None])[0]
    return weights.diagonal()[:, None].log() - weights.log()


@pytest.mark.parametrize(
    ("lattice", "wanted"),
    [
        ((8,), [0, 1, 2, 3, 4, 3, 2, 1]),
        ((7,), [0, 1, 2, 3, 3, 2, 1]),
        ((4, 4), [0, 1, 2, 1, 1, 2, 3, 2, 2, 3, 4, 3, 1, 2, 3, 2]),
    ],
)
def test_known_distances_of_the_first_token(lattice, wanted):
    found = bias_of(lattice=lattice)
    torch.testing.assert_close(found[0], torch.tensor(wanted).double(), rtol=0, atol=1e-12)
    assert torch.allclose(found, found.mT)


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [
        ("l1", 4.0),
        ("l2", math.sqrt(8)),
        ("linf", 2.0),
        ("chordal", math.sqrt(2) * 4 / math.pi),
        ("chordal_sq", 32 / math.pi**2),
    ],
)
def test_known_distances_to_the_opposite_token(metric, wanted):
    assert abs(bias_of(lattice=(4, 4), metric=metric)[0, 10].item() - wanted) < 1e-12


def test_slopes_are_per_head_and_per_axis():
    slopes = attention(lattice=(4, 4), slopes=(0.5, 2.0)).slopes()
    assert torch.equal(slopes, torch.tensor([[0.5, 2.0]]).double().repeat(4, 1))
    assert torch.equal(attention(dtype=torch.float32).slopes(), ops.alibi_slopes(4)[:, None])
    for start in ("alibi", 1e-4, 30.0, (0.5, 2.0)):
        lattice = (4, 4) if isinstance(start, tuple) else (13,)
        fixed = attention(lattice=lattice, slopes=start)
        learned = attention(lattice=lattice, slopes=start, learn_slopes=True)
        torch.testing.assert_close(learned.slopes(), fixed.slopes(), rtol=1e-5, atol=0)
        assert learned.raw_slopes.shape == fixed.slopes().shape


# ---- equivariance and causality


def roll(x_BNC: Tensor, lattice: tuple[int, ...], block: tuple[int, ...] | None, axis: int) -> Tensor:
    """One step along an axis, of tokens in block order."""
    order, inverse = ops.lattice_order(lattice, block)
    grid = x_BNC[:, inverse].unflatten(1, lattice)
    return grid.roll(1, 1 + axis).flatten(1, len(lattice))[:, order]


@pytest.mark.parametrize("metric", ["l1", "l2", "linf", "chordal", "chordal_sq"])
@pytest.mark.parametrize(
    ("lattice", "block"), [((7,), None), ((4, 3), None), ((4, 6), (2, 3)), ((2, 3, 4), None)]
)
def test_rolling_the_tokens_rolls_the_result(metric, lattice, block):
    module = attention(lattice=lattice, block=block, metric=metric)
    x = tokens(module, math.prod(lattice))
    y = module(x)
    for axis in range(len(lattice)):
        rolled = module(roll(x, lattice, block, axis))
        torch.testing.assert_close(rolled, roll(y, lattice, block, axis), rtol=0, atol=1e-12)
        assert not torch.allclose(rolled, y, atol=1e-3)


@pytest.mark.parametrize(
    "form", ["window", "factored", "factored mean", "coupled", "coupled mean", "coupled plane"]
)
def test_rolling_the_tokens_rolls_the_result_of_every_form(form):
    module = attention(**FORMS[form])
    lattice = module.options.lattice
    x = tokens(module, math.prod(lattice))
    for axis in range(len(lattice)):
        wanted = roll(module(x), lattice, None, axis)
        torch.testing.assert_close(module(roll(x, lattice, None, axis)), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", CAUSAL)
def test_nothing_leaks_from_the_future(form):
    module = attention(**FORMS[form])
    x = tokens(module, 9).requires_grad_()
    y = module(x)
    for token in range(9):
        changed = x.detach().clone()
        changed[:, token:] += torch.randn_like(changed[:, token:])
        assert torch.equal(module(changed)[:, :token], y[:, :token])
        (leak,) = torch.autograd.grad(y[:, :token].square().sum(), x, retain_graph=True)
        assert leak[:, token:].abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_token_without_keys_gets_zero(form):
    module = attention(**{**FORMS[form], "bias": False})
    x = tokens(module).requires_grad_()
    mask = torch.tensor([[False] * 13, [True] * 13])
    y = module(x, mask=mask)
    assert torch.equal(y[0], torch.zeros_like(y[0])) and y[1].abs().min() > 0
    grads = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
    assert all(torch.isfinite(grad).all() for grad in grads) and grads[0][0].abs().max() == 0
    assert grads[0][1].abs().max() > 0


# ---- special cases


def test_without_slopes_and_rotary_it_is_plain_attention_with_the_weights_of_another():
    module = attention(dim=12, head_dim=3, slopes=0.0, rotary=False)
    other = nn.MultiheadAttention(12, 4, batch_first=True, dtype=torch.float64)
    nn.init.normal_(other.in_proj_bias)
    with torch.no_grad():
        for index, project in enumerate((module.q_proj, module.k_proj, module.v_proj)):
            project.weight.copy_(other.in_proj_weight.chunk(3)[index])
            project.bias.copy_(other.in_proj_bias.chunk(3)[index])
    module.o_proj.load_state_dict(other.out_proj.state_dict())
    x, padding = tokens(module), torch.rand(2, 13) > 0.7
    wanted = other(x, x, x, key_padding_mask=padding, need_weights=False)[0]
    torch.testing.assert_close(module(x, mask=~padding), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["low_rank", "attention"])
@pytest.mark.parametrize("how", ["factored", "coupled"])
def test_a_fresh_fusion_changes_nothing_bitwise(mode, how):
    sizes = {"dim": 10, "num_heads": 4, "head_dim": 12, "lattice": (13,), "depth": 3, "depth_attention": how}
    plain = ToroidalAttention(ToroidalAttentionOptions(**sizes))
    fused = ToroidalAttention(ToroidalAttentionOptions(fusion=mode, **sizes))
    missing, unexpected = fused.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fusion.") for name in missing)
    x = tokens(plain, dtype=torch.float32)
    assert torch.equal(fused(x), plain(x))


@pytest.mark.parametrize("window", [None, 200])
def test_eps_leaves_out_what_does_not_matter(window):
    dense = attention(lattice=(600,), slopes=0.5, window=window)
    quick = attention(lattice=(600,), slopes=0.5, window=window, eps=1e-6)
    quick.load_state_dict(dense.state_dict())
    x = tokens(dense, 600)
    error = (quick(x) - dense(x)).abs().max().item()
    assert 0 < error < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_after_the_output_projection(dropout):
    module = attention(dropout=dropout)
    x = tokens(module, 13)
    y = module.eval()(x)
    dropped = module.train()(x)
    torch.testing.assert_close(
        torch.where(dropped == 0, 0.0, dropped * (1 - dropout)), torch.where(dropped == 0, 0.0, y)
    )
    assert abs((dropped == 0).double().mean().item() - dropout) < 0.1
