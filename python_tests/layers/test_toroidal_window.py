"""Legend: N query rows, M key rows, W window, n period of the ring, D rows of a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stratcore import ops
from stratcore.layers.toroidal_window import windowed_attention

pytestmark = pytest.mark.usefixtures("single_thread")

# n, tokens, W, D: small and large windows, rings full and not, blocks cut off, windows of all and of oneself
RINGS = [
    (300, 300, 5, 1),
    (301, 301, 140, 1),
    (150, 150, 5, 3),
    (413, 300, 130, 2),
    (300, 290, 9, 1),
    (300, 7, 3, 1),
    (300, 300, 149, 1),
    (300, 300, 150, 1),
    (150, 150, 0, 1),
    (9, 1, 0, 1),
    (9, 0, 2, 1),
    (6, 5, 2, 1),
]
# n, tokens, W, D, keys before the queries
SEQUENCES = [
    (1000, 300, 5, 1, 0),
    (1000, 300, 5, 1, 5),
    (1000, 140, 150, 1, 20),
    (1000, 400, 150, 1, 150),
    (100, 300, 30, 1, 0),  # old tokens come near again around the ring
    (400, 140, 7, 3, 7),
    (400, 5, 8, 2, 6),
    (400, 1, 8, 1, 8),
    (400, 300, 0, 1, 0),
    (400, 0, 3, 1, 2),
]


def problem(
    tokens: int, before: int, group: int, lattice: tuple[int, ...], batch: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of 4 heads, keys and values of 2, slopes an axis."""
    q = torch.randn(batch, 4, tokens * group, 5, dtype=torch.float64, requires_grad=True)
    keys = (before + tokens) * group
    k, v = (torch.randn(batch, 2, keys, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slopes = torch.rand(4, len(lattice), dtype=torch.float64, requires_grad=True)
    return q, k, v, slopes


def near(queries: int, keys: int, window: int, group: int, period: int | None) -> Tensor:
    """Pairs [N, M] at most W steps apart: around the ring, or without one back in the sequence."""
    i = (torch.arange(queries) + keys - queries) // group
    j = torch.arange(keys) // group
    steps = i[:, None] - j
    if period is not None:
        steps = torch.minimum(steps % period, -steps % period)
    return steps <= window


def some_mask(kind: str | None, queries: int, keys: int) -> Tensor | None:
    if kind is None:
        return None
    shape = {"keys": (2, 1, 1, keys), "pairs": (1, 4, queries, keys), "added": (2, 1, queries, keys)}[kind]
    return torch.randn(shape).double() if kind == "added" else torch.rand(shape) > 0.4


def check(
    inputs: tuple[Tensor, ...], mask: Tensor | None, window: int, visible: Tensor, **options: Any
) -> None:
    """Values and all gradients, against the dense op with a mask of pairs."""
    q, k, v, slopes = inputs
    group = options.pop("group")
    found = windowed_attention(*inputs, window=window, group=group, mask=mask, **options)
    if mask is None:
        both = visible
    elif mask.dtype == torch.bool:
        both = mask & visible
    else:
        both = mask.masked_fill(~visible, -torch.inf)
    offset = k.shape[2] - q.shape[2]
    wanted = ops.toroidal_attention(*inputs, mask=both, query_offset=offset, causal_group=group, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    weight = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("period", "tokens", "window", "group"), RINGS)
@pytest.mark.parametrize("kind", [None, "keys", "pairs", "added"])
def test_a_ring_is_dense_attention_with_a_mask_of_pairs(period, tokens, window, group, kind):
    lattice = (period,) if group == 1 else (period, group)
    inputs = problem(tokens, 0, group, lattice)
    rows = tokens * group
    visible = near(rows, rows, window, group, period)
    check(inputs, some_mask(kind, rows, rows), window, visible, lattice=lattice, group=group)


@pytest.mark.parametrize(("period", "tokens", "window", "group", "before"), SEQUENCES)
@pytest.mark.parametrize("kind", [None, "keys", "pairs", "added"])
def test_a_causal_window_is_dense_attention_with_a_mask_of_pairs(period, tokens, window, group, before, kind):
    lattice = (period,) if group == 1 else (period, group)
    inputs = problem(tokens, before, group, lattice)
    rows, keys = tokens * group, (before + tokens) * group
    visible = near(rows, keys, window, group, None)
    mask = some_mask(kind, rows, keys)
    check(inputs, mask, window, visible, lattice=lattice, group=group, causal=True)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch_and_the_options_of_the_op(batch):
    inputs = problem(200, 0, 1, (200,), batch)
    visible = near(200, 200, 20, 1, 200)
    check(inputs, None, 20, visible, lattice=(200,), group=1, metric="chordal_sq", scale=0.1)


class Largest(TorchDispatchMode):
    """Most memory, in bytes, of a tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("causal", [False, True])
def test_no_matrix_of_all_pairs(causal):
    tokens, window = 4096, 16
    q, k, v = (torch.randn(1, 1, tokens, 8) for _ in range(3))
    with Largest() as largest:
        windowed_attention(q, k, v, torch.ones(1), window=window, lattice=(tokens,), causal=causal)
    keys = 4 * 8 * tokens * (128 + (1 if causal else 2) * window) / 128
    assert 0.9 * keys <= largest.size <= keys < tokens**2 / 100


@pytest.mark.cuda
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu(causal):
    inputs = [t.detach().float().cuda() for t in problem(500, 0, 1, (500,))]
    found = windowed_attention(*inputs, window=30, lattice=(500,), causal=causal)
    visible = near(500, 500, 30, 1, None if causal else 500).cuda()
    wanted = ops.toroidal_attention(*inputs, lattice=500, causal=causal, mask=visible)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_rejects_more_tokens_than_the_ring_has():
    q = torch.randn(1, 1, 9, 4)
    with pytest.raises(ValueError, match="window: expected at most 8 tokens, the period of the ring, got 9"):
        windowed_attention(q, q, q, torch.ones(1), window=2, lattice=(8,))
