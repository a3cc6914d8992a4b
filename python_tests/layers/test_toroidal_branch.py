"""Legend: B batch, H query heads, G key heads, N tokens, E head size, D depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from stratcore.layers import ToroidalBranch, ToroidalBranchOptions

pytestmark = pytest.mark.usefixtures("single_thread")
B, H, G, N, E = 2, 4, 2, 7, 8
LAMBDA = (0.125, 0.5, -0.25, 0.875)  # exact in float32, as lambdas are kept


def branch(order: Tensor | None = None, **options: Any) -> ToroidalBranch:
    form = ToroidalBranchOptions(**{"period": 10, "lambda_distance": LAMBDA, **options})
    return ToroidalBranch(form, num_heads=H, num_key_heads=G, head_dim=E, channel_order=order).double()


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = ((B, H, N, E), (B, G, N, E), (B, G, N, E))
    return tuple(torch.randn(shape, generator=drawn, dtype=torch.float64) for shape in shapes)  # type: ignore


def by_definition(q: Tensor, k: Tensor, v: Tensor, depth: int, coupled: bool) -> Tensor:
    """Slice by slice, [B, H, N, D, E / D], causal, on a ring of 10, without fusion."""
    out = torch.zeros(B, H, N, depth, E // depth, dtype=torch.float64)
    size = E // depth
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            for i in range(N):
                for a in range(depth):
                    keys = [(j, c) for j in range(i + 1) for c in (range(depth) if coupled else [a])]
                    scores = []
                    for j, c in keys:
                        distance = min(abs(i - j), 10 - abs(i - j)) + min(abs(a - c), depth - abs(a - c))
                        own = slice(a * size, (a + 1) * size), slice(c * size, (c + 1) * size)
                        dot = q[b, h, i, own[0]] @ k[b, g, j, own[1]] / size**0.5
                        scores.append(dot - LAMBDA[h] * distance)
                    weights = torch.stack(scores).softmax(0)
                    values = torch.stack([v[b, g, j, c * size : (c + 1) * size] for j, c in keys])
                    out[b, h, i, a] = weights @ values
    return out


@pytest.mark.parametrize(
    ("depth", "form"), [(1, "factored"), (2, "factored"), (2, "coupled"), (4, "coupled")]
)
def test_it_is_its_definition(depth: int, form: str) -> None:
    found = branch(depth=depth, depth_attention=form, fusion=None)(*inputs())
    expected = by_definition(*inputs(), depth, form == "coupled").flatten(3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["factored", "coupled"])
def test_slices_are_fused_head_by_head(form: str) -> None:
    own = branch(depth=4, depth_attention=form, fusion="mean")
    expected = by_definition(*inputs(), 4, form == "coupled").mean(-2, keepdim=True).expand(-1, -1, -1, 4, -1)
    torch.testing.assert_close(own(*inputs()), expected.flatten(3), rtol=1e-12, atol=1e-12)


def test_an_order_of_channels_moves_queries_and_keys_but_not_values() -> None:
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    q, k, v = inputs()
    own = branch(order, depth=2, fusion=None)
    expected = by_definition(q[..., order], k[..., order], v, 2, False).flatten(3)
    torch.testing.assert_close(own(q, k, v), expected, rtol=1e-12, atol=1e-12)
    leaves = tuple(x[:1, :, :3].clone().requires_grad_() for x in (q, k, v))
    assert gradcheck(own, leaves)


@pytest.mark.parametrize("form", ["factored", "coupled"])
def test_later_queries_alone_are_as_among_all(form: str) -> None:
    own = branch(depth=2, depth_attention=form)
    q, k, v = inputs()
    torch.testing.assert_close(own(q[:, :, 5:], k, v), own(q, k, v)[:, :, 5:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["factored", "coupled"])
def test_a_mask_of_heads_and_pairs_is_that_of_its_heads(form: str) -> None:
    own = branch(depth=2, depth_attention=form, fusion=None)
    mask = (torch.rand(B, H, N, N) > 0.4) | torch.eye(N).bool()
    added = torch.zeros(B, H, N, N).double().masked_fill(~mask, -torch.inf)
    found = own(*inputs(), causal=False, mask=mask)
    assert torch.equal(found, own(*inputs(), causal=False, mask=added))
    q, k, v = inputs()
    for h in range(H):  # a head alone: its mask is one of all heads
        alone = own(q, k, v, causal=False, mask=mask[:, h : h + 1])
        torch.testing.assert_close(alone[:, h], found[:, h], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("depth", "form"), [(1, "factored"), (2, "factored"), (4, "coupled")])
@pytest.mark.parametrize("window", [0, 2, 9])
def test_a_window_is_a_mask_of_pairs(depth: int, form: str, window: int) -> None:
    back = torch.arange(N)[:, None] - torch.arange(N)
    q, k, v = inputs()
    settings = {"depth": depth, "depth_attention": form, "fusion": None}
    own, plain = branch(window=window, **settings), branch(**settings)
    near = back.abs() <= window
    torch.testing.assert_close(own(q, k, v), plain(q, k, v, mask=near[None, None]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own(q[:, :, 5:], k, v), own(q, k, v)[:, :, 5:], rtol=1e-12, atol=1e-12)
    hidden = torch.rand(B, 1, N, N) > 0.3
    both = plain(q, k, v, mask=hidden & near)
    torch.testing.assert_close(own(q, k, v, mask=hidden), both, rtol=1e-12, atol=1e-12, equal_nan=True)
    expected = plain(q, k, v, causal=False, mask=near[None, None])
    torch.testing.assert_close(own(q, k, v, causal=False), expected, rtol=1e-12, atol=1e-12)
    # A host's own mask hides the future as `causal` does, as flags or as numbers that are added.
    earlier = (back >= 0)[None, None]
    added = torch.zeros(1, 1, N, N).double().masked_fill(~earlier, -torch.inf)
    for mask in (earlier, added):
        found = own(q, k, v, causal=False, mask=mask)
        torch.testing.assert_close(found, own(q, k, v), rtol=1e-12, atol=1e-12)
        last = own(q[:, :, 5:], k, v, causal=False, mask=mask[:, :, 5:])
        torch.testing.assert_close(last, found[:, :, 5:], rtol=1e-12, atol=1e-12)


def test_a_window_over_many_blocks() -> None:
    drawn = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, 300, E, generator=drawn).double() for heads in (H, G, G))
    back = torch.arange(300)[:, None] - torch.arange(300)
    settings = {"period": 512, "depth": 2, "fusion": "mean"}
    expected = branch(**settings)(q, k, v, mask=(back <= 40)[None, None])
    torch.testing.assert_close(branch(window=40, **settings)(q, k, v), expected, rtol=1e-12, atol=1e-12)


# ---- the blend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_closed_gate_is_the_host_bit_for_bit(dtype: torch.dtype) -> None:
    own = branch().float()
    host = torch.randn(3, 5).to(dtype)
    host[0, 0] = -0.0
    torus = torch.randn(3, 5).to(dtype)
    torus[1] = torch.inf
    torus[2] = torch.nan
    found = own.blend(host, torus)
    assert found.dtype == dtype
    assert torch.equal(found.float().view(torch.int32), host.float().view(torch.int32))


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_the_blend_has_its_gradients(start: float) -> None:
    own = branch()
    host, torus = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gate = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def call(host: Tensor, torus: Tensor, gate: Tensor) -> Tensor:
        del own.gate
        own.gate = gate
        return own.blend(host, torus)

    torch.testing.assert_close(call(host, torus, gate), host + torch.tanh(gate) * (torus - host))
    assert gradcheck(call, (host, torus, gate))
    assert gradgradcheck(call, (host, torus, gate))


def test_a_closed_gate_learns() -> None:
    own = branch()
    host, torus = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    own.blend(host, torus).pow(2).sum().backward()
    assert own.gate is not None and own.gate.grad is not None
    torch.testing.assert_close(own.gate.grad, (2 * host * (torus - host)).sum())


# ---- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 0}, "period: expected at least 1 token, got 0"),
        ({"window": -1}, "window: expected at least 0 tokens or None, got -1"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
        ({"metric": "l3"}, "metric: expected one of l1, l2"),
        ({"depth_attention": "none"}, "depth_attention: expected one of factored, coupled, got 'none'"),
        ({"gate": "half"}, "gate: expected one of zero, open, got 'half'"),
        ({"fusion": "fft"}, "fusion: expected one of low_rank, attention, mean or None, got 'fft'"),
        ({"eps": 1.0}, "eps: expected a number in [0, 1), got 1.0"),
        ({"lambda_distance": "rope"}, "lambda_distance: expected numbers or 'alibi', got 'rope'"),
        ({"lambda_distance": (1.0, float("nan"))}, "lambda_distance: expected finite numbers"),
        (
            {"lambda_distance": 0.0},
            "lambda_distance: expected a number other than 0, got 0 behind a closed gate",
        ),
        ({"lambda_distance": (1.0, 2.0)}, "expected one number or one for each of 4 heads, got 2"),
        ({"depth": 3}, "depth: expected one of 1, 2, 4, 8 for heads of 8 channels, got 3"),
        ({"period": None}, "period: expected tokens of a whole turn, got None"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        branch(**options)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_frozen_lambda_of_0_is_a_control_and_no_mistake() -> None:
    own = branch(lambda_distance=0.0, learn_lambda=False)
    assert [name for name, _ in own.named_parameters()] == ["gate"]
    assert "lambda_distance" in own.state_dict()


def test_calls_that_do_not_fit() -> None:
    q, k, v = inputs()
    with pytest.raises(
        ValueError, match="expected 4 query heads, 2 key heads and 8 channels, got 2, 2 and 8"
    ):
        branch()(k, k, v)
    with pytest.raises(ValueError, match="expected a key for each query, got 7 and 3"):
        branch()(q, k[:, :, :3], v[:, :, :3])
    with pytest.raises(ValueError, match="expected at most 5 tokens, the period of the torus, got 7"):
        branch(period=5)(q, k, v)
    assert branch(period=5, wrap=True)(q, k, v).shape == q.shape


def test_alibi_starts_as_alibi() -> None:
    assert branch(lambda_distance="alibi").lambda_distance.tolist() == [0.25, 0.0625, 0.015625, 0.00390625]
