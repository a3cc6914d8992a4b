"""Legend: B batch, H heads, G key heads, N tokens, E channels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from stratcore.layers import FFTMixing, ToroidalBranchOptions


def mixing(heads: int = 4, key_heads: int = 2, **options: object) -> FFTMixing:
    form = ToroidalBranchOptions(**{"gate": "open", "lambda_distance": 0.1, **options})  # type: ignore[arg-type]
    return FFTMixing(form, num_heads=heads, num_key_heads=key_heads, head_dim=6)


def drawn(
    length: int, heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return [torch.randn(2, h, length, 6, dtype=dtype) for h in (heads, key_heads, key_heads)]


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_it_is_its_formula(length: int, scaling: float | None) -> None:
    own, (q, k, v) = mixing(lambda_distance=(0.0, 0.1, 0.3, 1.0)).double(), drawn(length)
    k_wide, v_wide = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scale = 6**-0.5 if scaling is None else scaling
    expected = torch.zeros_like(q)
    for b, h in itertools.product(range(2), range(4)):
        scores = torch.zeros(length, dtype=torch.float64)
        for s, i in itertools.product(range(length), range(length)):
            scores[s] += scale / length * (q[b, h, i] @ k_wide[b, h, (i - s) % length])
        for s in range(length):
            scores[s] -= own.lambda_distance[h].detach() * min(s, length - s)
        weights = scores.softmax(0)
        for s, i in itertools.product(range(length), range(length)):
            expected[b, h, i] += weights[s] * v_wide[b, h, (i - s) % length]
    torch.testing.assert_close(own(q, k, v, scaling=scaling), expected, rtol=1e-9, atol=1e-9)


def test_gradients() -> None:
    own = mixing().double()
    inputs = [x.requires_grad_() for x in drawn(5)]
    assert gradcheck(lambda q, k, v, _: own(q, k, v), (*inputs, own.lambda_distance))


def test_every_output_depends_on_the_last_token_which_is_the_leak() -> None:
    own, (q, k, v) = mixing().double(), drawn(9)
    moved = v.clone()
    moved[:, :, -1] += 1
    change = (own(q, k, moved) - own(q, k, v)).detach().abs().amax(-1)
    assert float(change[:, :, 0].min()) > 1e-3


def test_half_precision_is_mixed_in_float32() -> None:
    own, parts = mixing(), drawn(12, dtype=torch.float32)
    half = own(*(x.bfloat16() for x in parts))
    assert half.dtype == torch.bfloat16
    exact = own(*(x.bfloat16().float() for x in parts))
    torch.testing.assert_close(half.float(), exact, rtol=2**-8, atol=1e-3)


def test_what_it_cannot_do_is_refused() -> None:
    own, (q, k, v) = mixing().double(), drawn(4)
    with pytest.raises(ValueError, match="FFT mixing: expected no mask"):
        own(q, k, v, mask=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one whole sequence, .* got 1 and 4 \(a cache\)"):
        own(q[:, :, :1], k, v)
    with pytest.raises(
        ValueError, match="lambda_distance: expected one number or one for each of 4 heads, got 3"
    ):
        mixing(lambda_distance=(0.1, 0.2, 0.3))
