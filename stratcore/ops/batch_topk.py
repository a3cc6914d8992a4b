"""Selection of the largest entries of a whole batch, so that rows share their non-zeros."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stratcore.ops._checks import check_choice, check_floating

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def batch_topk(x: Tensor, k: int, *, backward: str = "straight_through") -> Tensor:
    """The k B entries of largest magnitude of all B rows together, the others set to 0.

    A row keeps as many as it deserves, k on average. Sparse autoencoders select so in training; at inference, where a
    row must not depend on its neighbours, they keep what reaches a threshold (`layers.BatchTopK`).

    Args:
        x: [..., M], float64, float32, bfloat16 or float16; any strides. Without negative entries (after a relu) the
            selection is that of the largest values.
        k: entries kept a row on average, in [1, M]; equal magnitudes in the order of rows, then of the index.
        backward: 'straight_through' (the gradient passes unchanged) or 'masked' (at the kept entries only,
            the exact gradient wherever the selection does not change).

    Returns:
        [..., M], dtype and device of `x`.

    Raises:
        ValueError: k outside [1, M], an unknown backward, or a 0-dimensional x.
        TypeError: not floating point.

    Gradient: as `backward` says; forward mode likewise; differentiable any number of times.
    Numerics: exact. NaN counts as larger than everything; straight-through, an infinite entry that is not kept
    gives NaN.
    Determinism: the same bits on every run. Empty batches give empty results.
    Cost: torch operations on both devices, no kernel of our own: a row kernel cannot select over rows. One
    `torch.topk` over all entries and six passes.
    Source: Bussmann, Leask and Nanda 2024 (arXiv 2412.06410).
    """
    check_choice("batch_topk", "backward", backward, ("straight_through", "masked"))
    check_floating("batch_topk", "x", x)
    if x.ndim == 0 or not 1 <= k <= x.shape[-1]:
        raise ValueError(
            f"batch_topk: expected k in [1, M] for x [..., M], got k = {k} and x {list(x.shape)}"
        )
    if x.numel() == 0:
        return x * 1
    kept = _largest(x.detach(), k * math.prod(x.shape[:-1]))
    return torch.where(kept, x, 0.0 if backward == "masked" else x - x.detach())


def _largest(x: Tensor, count: int) -> Tensor:
    """Mask of the entries of largest magnitude; of those that equal the least of them, the first ones.

    The bits of a magnitude, as an integer, order like it, and NaN above infinity.
    """
    keys = x.contiguous().abs().view(_INTEGERS[x.element_size()]).flatten()
    least = keys.topk(count, sorted=False).values.amin()
    above, equal = keys > least, keys == least
    kept = above | (equal & (equal.cumsum(0) <= count - above.sum()))
    return kept.view(x.shape)
