"""How the layer behaves as a module: decoding, parameters, state, compilation, precision, errors."""

from __future__ import annotations

import pytest
import torch

from python_tests.layers.toroidal_attention_cases import CAUSAL, FORMS, attention, tokens
from stratcore import ops
from stratcore.layers import ToroidalAttention, ToroidalAttentionOptions

pytestmark = pytest.mark.usefixtures("single_thread")

# ---- decoding


@pytest.mark.parametrize("form", CAUSAL)
@pytest.mark.parametrize("chunks", [[1] * 13, [4, 1, 1, 5, 2], [13], [7, 6]])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_is_the_whole_call(form, chunks, masked):
    module = attention(torch.float32, **FORMS[form])
    x = tokens(module, dtype=torch.float32)
    mask = torch.rand(2, 13) > 0.3 if masked else None
    cache, start, parts = module.new_cache(13), 0, []
    with torch.no_grad():
        whole = module(x, mask=mask)
        for chunk in chunks:
            end = start + chunk
            seen = None if mask is None else mask[:, :end]
            parts.append(module(x[:, start:end], mask=seen, cache=cache))
            start = end
    assert cache.length == 13
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["factored", "coupled"])
def test_a_long_stream_through_a_short_ring(how):
    module = attention(
        torch.float32, lattice=(50,), causal=True, window=20, depth=2, depth_attention=how
    ).requires_grad_(False)
    x = tokens(module, 400, torch.float32)
    cache, parts, start = module.new_cache(), [], 0
    for chunk in [1] * 60 + [150, 1, 1, 9, 33] + [1] * 146:
        parts.append(module(x[:, start : start + chunk], cache=cache))
        start += chunk
    assert start == 400
    torch.testing.assert_close(torch.cat(parts, 1), module(x), rtol=0, atol=1e-5)


@pytest.mark.cuda
def test_decoding_on_a_gpu():
    for form in CAUSAL:
        module = attention(torch.float32, **FORMS[form]).cuda().requires_grad_(False)
        x = tokens(module, dtype=torch.float32).cuda()
        cache = module.new_cache(13)
        parts = [module(part, cache=cache) for part in x.split([4, 1, 1, 5, 2], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), module(x), rtol=0, atol=2e-5)


def test_a_cache_needs_causal_attention_and_no_gradient():
    with pytest.raises(ValueError, match="cache: expected causal attention, got causal=False"):
        attention().new_cache(4)
    module = attention(causal=True)
    with pytest.raises(ValueError, match="cache: expected a capacity or a window, got None and None"):
        module.new_cache()
    with pytest.raises(ValueError, match=r"cache: expected a call under torch.no_grad\(\)"):
        module(tokens(module), cache=module.new_cache(20))


# ---- as a module


def test_the_parameters_of_a_layer_of_phi_2():
    with torch.device("meta"):
        module = ToroidalAttention(
            ToroidalAttentionOptions(
                dim=2560, num_heads=32, lattice=(2048,), depth=2, depth_attention="coupled", fusion="low_rank"
            )
        )
    assert sum(p.numel() for p in module.parameters()) == 26_224_644


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2 * 10 * 48 + 2 * 48 * 10 + 3 * 48 + 10),
        ({"bias": False, "num_key_heads": 2}, 2 * 10 * 48 + 2 * 10 * 24),
        ({"bias": False, "learn_slopes": True}, 4 * 10 * 48 + 4),
        ({"bias": False, "learn_slopes": True, "slopes": (1.0, 1.0), "lattice": (3, 4)}, 4 * 10 * 48 + 8),
        ({"bias": False, "depth": 4, "fusion": "attention"}, 4 * 10 * 48 + 2 * 9 + 1),
    ],
)
def test_parameter_counts(changes, count):
    assert sum(p.numel() for p in attention(**changes).parameters()) == count


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns_from_every_call(form):
    module = attention(**{**FORMS[form], "bias": False})
    module(tokens(module)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-8 for p in module.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_state_round_trip_also_into_a_module_without_memory(form):
    module = attention(**FORMS[form])
    state = module.state_dict()
    with torch.device("meta"):
        empty = attention(**FORMS[form])
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(state)
    x = tokens(module)
    assert torch.equal(empty(x), module(x))
    assert set(state) - {name for name, _ in module.named_parameters()} <= {
        "fixed_slopes",
        "rotary.frequencies",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_made_in_a_default_dtype_of_16_bits(dtype):
    torch.set_default_dtype(dtype)
    try:
        module = ToroidalAttention(
            ToroidalAttentionOptions(
                dim=8, num_heads=2, lattice=(9,), depth=2, fusion="low_rank", learn_slopes=True
            )
        )
        y = module(torch.randn(1, 9, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == dtype and torch.isfinite(y).all()
    torch.testing.assert_close(module.slopes().float()[:, 0], ops.alibi_slopes(2), rtol=2**-6, atol=0)


def test_reset_parameters_restores_the_slopes():
    for learn in (False, True):
        module = attention(learn_slopes=learn)
        wanted = module.slopes().detach().clone()
        with torch.no_grad():
            (module.raw_slopes if learn else module.fixed_slopes).fill_(7.0)
        module.reset_parameters()
        assert torch.equal(module.slopes(), wanted)


@pytest.mark.parametrize("form", ["window", "causal window", "coupled causal"])
def test_compiles_to_one_graph_for_all_lengths(form):
    module = attention(torch.float32, **{**FORMS[form], "lattice": (400,)})
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="eager")
    for count in (300, 170):
        x = tokens(module, count, torch.float32).requires_grad_()
        mask = torch.rand(2, count) > 0.3
        found, wanted = compiled(x, mask=mask), module(x, mask=mask)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        (one,) = torch.autograd.grad(found.square().sum(), x)
        (other,) = torch.autograd.grad(wanted.square().sum(), x)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form, device):
    module = attention(torch.float32, **FORMS[form]).to(device)
    x = tokens(module, dtype=torch.float32).to(device)
    exact = module(x)
    with torch.autocast(device, torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    error = (y.float() - exact).norm() / exact.norm()
    assert error < 0.03, error.item()
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in module.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_weights(form):
    module = attention(torch.float32, **FORMS[form])
    x = tokens(module, dtype=torch.float32)
    exact = module(x)
    y = module.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16 and (y.float() - exact).norm() / exact.norm() < 0.03


def test_the_same_bits_every_time():
    module = attention(torch.float32, lattice=(300,), window=5, depth=2, fusion="low_rank", learn_slopes=True)
    x = tokens(module, 300, torch.float32)
    runs = []
    for _ in range(2):
        module.zero_grad()
        y = module(x)
        y.square().sum().backward()
        runs.append([y.detach(), *(p.grad.clone() for p in module.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_it_learns_to_look_three_tokens_back_on_the_ring():
    module = attention(torch.float32, dim=8, num_heads=2, head_dim=16, lattice=(8,), learn_slopes=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        x = torch.randn(16, 8, 8)
        loss = (module(x) - x.roll(3, 1)).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


# ---- errors


@pytest.mark.parametrize("shape", [(13, 10), (2, 13, 9), (2, 3, 13, 10)])
def test_rejects_tokens_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"x: expected \[B, N, 10\], got \["):
        attention()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 12), (3, 13), (13,), (2, 13, 13), (2, 3, 1, 13), (2, 4, 12, 13)])
@pytest.mark.parametrize("form", ["ring", "window", "coupled"])
def test_rejects_masks_of_another_shape(shape, form):
    module = attention(**FORMS[form])
    message = r"mask: expected \[2, 13\], or 4 dimensions that broadcast to \[2, 4, 13, 13\], got \["
    with pytest.raises(ValueError, match=message):
        module(tokens(module), mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("form", ["causal", "causal window"])
def test_a_rejected_mask_leaves_the_cache_alone(form):
    module = attention(**FORMS[form]).requires_grad_(False)
    cache, x = module.new_cache(13), tokens(module)
    module(x[:, :4], cache=cache)
    with pytest.raises(TypeError, match="mask: expected bool or floating point, got torch.int64"):
        module(x[:, 4:6], mask=torch.ones(2, 6, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match=r"mask: expected \[2, 6\]"):
        module(x[:, 4:6], mask=torch.ones(2, 2, dtype=torch.bool), cache=cache)
    assert cache.length == 4
    module(x[:, 4:], cache=cache)


@pytest.mark.parametrize("form", ["ring", "window"])
def test_rejects_a_mask_that_wants_a_gradient(form):
    module = attention(**FORMS[form])
    with pytest.raises(ValueError, match="expected a mask without a gradient"):
        module(tokens(module), mask=torch.zeros(2, 13, dtype=torch.float64, requires_grad=True))


def test_rejects_more_tokens_than_a_ring_with_a_window():
    module = attention(window=2)
    with pytest.raises(
        ValueError, match="window: expected at most 13 tokens, the period of the ring, got 14"
    ):
        module(tokens(module, 14))
