"""Attention on a torus. Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratcore import _array
from stratcore.array._checks import as_array, require, row_major

OP = "toroidal_attention"
METRICS = ("l1", "l2", "linf", "chordal", "chordal_sq")
PER_AXIS = ("l1", "chordal_sq")
MOST_PERIOD, MOST_DIM, MOST_POSITION = 1 << 24, 256, 1 << 60


class ToroidalAttention(NamedTuple):
    """Attention, out [B, H, N, E], and what merging or watching it needs.

    lse: [B, H, N], log of the sum of exp(score), -inf in a row without visible keys. skipped_tiles, visible_tiles:
    int32 [B, H], tiles of scores that `eps` left out, of those that `causal` allows.
    """

    out: NDArray[Any]
    lse: NDArray[Any]
    skipped_tiles: NDArray[np.int32]
    visible_tiles: NDArray[np.int32]


def toroidal_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    slopes: ArrayLike,
    *,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None = None,
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    query_offset: int = 0,
    key_offset: int = 0,
    eps: float = 0.0,
) -> NDArray[Any]:
    """Attention with a bias that falls with the distance of two tokens on a torus of fixed periods.

        s_ij = scale <q_i, k_j> - sum_a slopes[h, a] part_a(i, j) (+ mask_ij),  out_i = sum_j softmax_j(s_ij) v_j

    Args:
        q: [B, H, N, E], 1 <= E <= 256, float64 or float32.
        k: [B, G, M, E], dtype of `q`; G divides H.
        v: as `k`.
        slopes: what a step takes off a score, [H]; for 'l1' and 'chordal_sq' also [H, axes]. Any floating dtype.
        lattice: 1 to 3 periods of the torus, in tokens.
        block: sizes that divide the periods; tokens are numbered block after block. None: row-major.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq', as in `stratcore.ops.toroidal_attention`.
        causal: key j is visible to query i where its position is not later.
        causal_group: positions are compared in groups of so many.
        mask: bool (True takes part) or floating point (added to the scores), broadcastable to [B, H, N, M].
        scale: of the products, E^-1/2 unless given.
        query_offset: position of query 0.
        key_offset: position of key 0.
        eps: most of a row's probability, in [0, 1), that may be lost by tiles of scores not looked at.

    Returns:
        [B, H, N, E], dtype of `q`. A row without visible keys is 0.

    Raises:
        ValueError: a shape, lattice, metric or number that does not fit, an array off the CPU, or a tensor that
            requires grad.
        TypeError: not float64 or float32, or differing dtypes.

    Numerics: computed in the dtype of `q`; what eps bounds is in csrc/toroidal_attention/README.md.
    Determinism: the same bits on every run, whatever the number of threads.
    Source: csrc/toroidal_attention/README.md.
    """
    options = (lattice, block, metric, scale, causal, causal_group, query_offset, key_offset, eps)
    return _run((q, k, v, slopes), mask, *options).out


def toroidal_attention_lse(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    slopes: ArrayLike,
    *,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None = None,
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    query_offset: int = 0,
    key_offset: int = 0,
    eps: float = 0.0,
) -> ToroidalAttention:
    """`toroidal_attention` with the log-sum of every row and the number of tiles that were left out.

    Arguments and errors: those of `toroidal_attention`.
    """
    options = (lattice, block, metric, scale, causal, causal_group, query_offset, key_offset, eps)
    return _run((q, k, v, slopes), mask, *options)


def _run(
    tensors: Sequence[ArrayLike],
    mask: ArrayLike | None,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None,
    metric: str,
    scale: float | None,
    causal: bool,
    *rest: Any,
) -> ToroidalAttention:
    q, k, v, slopes = (
        as_array(OP, name, t) for name, t in zip(("q", "k", "v", "slopes"), tensors, strict=True)
    )
    for name, array in (("k", k), ("v", v)):
        same = array.dtype == q.dtype
        require(OP, same, f"{name} of the dtype of the first argument", array.dtype, TypeError)
    _check_tensors(q, k, v)
    periods, blocks = _lattice(lattice, lattice if block is None else block)
    slopes = slopes[:, None] if slopes.ndim == 1 else slopes
    _check_slopes(slopes, q.shape[1], len(periods), metric)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    *positions, eps = rest
    _check_numbers(scale, positions, eps)
    masks = _masks(mask, q, k.shape[2])
    arrays = [row_major(array) for array in (q, k, v, slopes.astype(q.dtype))]
    places = [int(causal), *(operator.index(position) for position in positions)]
    options = (periods + blocks, METRICS.index(metric), scale, places, float(eps))
    out, lse, tiles = _array.toroidal_attention(*arrays, *masks, *options)
    return ToroidalAttention(out, lse, tiles[..., 0], tiles[..., 1])


def _check_numbers(scale: float, positions: Sequence[int], eps: float) -> None:
    require(OP, math.isfinite(scale), "a finite scale", scale)
    require(OP, 0 <= eps < 1, "eps in [0, 1)", eps)
    for name, value, least in zip(
        ("causal_group", "query_offset", "key_offset"), positions, (1, 0, 0), strict=True
    ):
        require(OP, least <= value <= MOST_POSITION, f"{name} from {least} to 2^60", value)


def _check_tensors(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> None:
    check = partial(require, OP)
    for name, array in (("q", q), ("k", k)):
        check(array.ndim == 4, f"{name} with 4 dimensions", list(array.shape))
    batch, heads, _, dim = q.shape
    fits = heads >= 1 and 1 <= dim <= MOST_DIM
    check(fits, f"q with at least one head, of dimension 1 to {MOST_DIM}", list(q.shape))
    shared = k.shape[1]
    fits = k.shape[0] == batch and k.shape[3] == dim and shared >= 1 and heads % shared == 0
    check(fits, f"k of shape [{batch}, G, M, {dim}] with G a divisor of {heads}", list(k.shape))
    check(v.shape == k.shape, f"v of shape {list(k.shape)}", list(v.shape))


def _lattice(lattice: int | Sequence[int], block: int | Sequence[int]) -> tuple[list[int], list[int]]:
    periods, blocks = (
        [operator.index(size) for size in ([value] if isinstance(value, int) else value)]
        for value in (lattice, block)
    )
    fits = 1 <= len(periods) <= 3 and all(1 <= period <= MOST_PERIOD for period in periods)
    fits = fits and math.prod(periods) <= MOST_POSITION
    require(OP, fits, "lattice of 1 to 3 periods from 1 to 2^24, at most 2^60 sites", periods)
    divides = len(blocks) == len(periods) and all(
        size >= 1 and period % size == 0 for size, period in zip(blocks, periods, strict=True)
    )
    require(OP, divides, f"block of sizes that divide lattice {periods}", blocks)
    return periods, blocks


def _check_slopes(slopes: NDArray[Any], heads: int, axes: int, metric: str) -> None:
    require(OP, metric in METRICS, f"metric to be one of {', '.join(METRICS)}", repr(metric))
    count = axes if slopes.ndim == 2 and slopes.shape[1] != 1 else 1
    fits = slopes.shape == (heads, count) and (count == 1 or metric in PER_AXIS)
    wanted = f"slopes of shape [{heads}, 1], or [{heads}, {axes}] with metric l1 or chordal_sq"
    require(OP, fits, wanted, list(slopes.shape))


def _masks(
    mask: ArrayLike | None, q: NDArray[Any], keys: int
) -> tuple[NDArray[np.bool_] | None, NDArray[Any] | None]:
    """What selects and what adds, [B, H, N, M] without a copy."""
    if mask is None:
        return None, None
    is_bool = getattr(mask, "dtype", None) == np.bool_ or str(getattr(mask, "dtype", "")) == "torch.bool"
    array = np.asarray(mask) if is_bool else as_array(OP, "mask", mask).astype(q.dtype, copy=False)
    shape = (*q.shape[:3], keys)
    fits = array.ndim <= 4 and all(
        size in (1, full) for size, full in zip(array.shape[::-1], shape[::-1], strict=False)
    )
    require(OP, fits, f"mask that broadcasts to {list(shape)}", list(array.shape))
    wide = np.broadcast_to(array, shape)
    return (wide, None) if is_bool else (None, wide)
