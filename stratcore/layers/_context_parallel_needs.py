"""Which pieces of keys hold enough of some row's probability to be sent; the proof is in context_parallel.py.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, S slopes a head, R ranks,
C pieces of a shard, P = R C pieces of keys.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from stratcore.layers._context_parallel_shards import (
    PIECES,
    Shards,
    least_parts,
    piece_length,
    shares,
    visible,
)

# What rounding may add to a product of norms, to a log-sum and to a distance is far below these.
PRODUCT_MARGIN, SUM_MARGIN, DISTANCE_MARGIN = 1e-4, 1e-5, 1e-5
LEAST_NORM = 1e-17  # squares of smaller numbers may vanish in float32


def key_statistics(k: Tensor, key_mask: Tensor | None) -> Tensor:
    """Bounds of the norms of the visible keys of every piece, [B, G, C], in float32 or better.

    With a mask [B, M] their numbers follow: [B, G + 1, C].
    """
    norms, step = _norms(k), piece_length(k.shape[2])
    if key_mask is None:
        return _in_pieces(norms, step, 0.0).amax(-1)
    largest = _in_pieces(torch.where(key_mask[:, None], norms, 0.0), step, 0.0).amax(-1)
    count = _in_pieces(key_mask.to(norms.dtype), step, 0.0).sum(-1)
    return torch.cat([largest, count[:, None]], 1)


def needed_pieces(
    q: Tensor, lse: Tensor, slopes: Tensor, statistics: Tensor, shards: Shards, *, masked: bool
) -> Tensor:
    """Which pieces of keys may hold more than their share of eps of a row in a piece of this rank's queries.

    Args:
        q: [B, H, N, E].
        lse: [B, H, N], log-sums over keys that the rows see, of this rank's own shard.
        slopes: [H, S].
        statistics: `key_statistics` of all ranks, [R, B, G or G + 1, C].
        shards: lengths and options.
        masked: whether `statistics` counts keys.

    Returns:
        bool [C, R, C] on the device of `q`, pieces of queries first: for any head and batch element.
    """
    statistics = statistics.movedim(0, 2).flatten(2, 3)
    largest = statistics[:, :-1] if masked else statistics
    excess = _excess(q, lse, largest, abs(shards.options.scale))
    table = _table(shards, slopes.shape[1], masked).to(lse.device, lse.dtype, non_blocking=True)
    limit = table[0]
    falling = torch.where(slopes >= 0, slopes, math.nan)  # no number is below NaN
    for slope, part in zip(falling.unbind(1), table[2:], strict=True):
        limit = torch.addcmul(limit, slope[:, None, None], part)
    if masked:
        count = statistics[:, -1][:, None, None]
        negligible = (excess + torch.log(count) < limit) | (count == 0)
    else:
        negligible = excess < limit
    needed = ~negligible.flatten(0, 1).all(0) & (table[1] > 0)
    return needed.unflatten(-1, (shards.size, PIECES))


@lru_cache(maxsize=32)
def _table(shards: Shards, count: int, masked: bool) -> Tensor:
    """What a bound has to be below where distance takes off nothing, which pieces are visible, and least distances.

    float64 [2 + S, C, P] on the CPU. With a mask the numbers of keys are not in it.
    """
    seen = visible(shards).flatten(1, 2).double()
    share = math.log(shards.options.eps) - math.log(max(1, shares(shards)[0])) - SUM_MARGIN
    keys = shards.key_pieces()[1].flatten().clamp(min=1).double()
    most = torch.full_like(seen, share) - (0.0 if masked else torch.log(keys))
    return torch.cat([most[None], seen[None], least_parts(shards, count) * (1 - DISTANCE_MARGIN)])


def _excess(q: Tensor, lse: Tensor, largest: Tensor, scale: float) -> Tensor:
    """Upper bounds of max_i (|scale| |q_i| K - L_i) over the rows of a piece, [B, H, C, P], for K: norms [B, G, P].

    As a function of K it is convex, so that between its values at 0 and at the largest K a chord lies above it. L_i
    is lowered by its margin, but for the constant part of that.
    """
    heads, step = (largest.shape[1], -1), piece_length(q.shape[2])
    reach = _norms(q).mul_(scale * (1 + PRODUCT_MARGIN)).unflatten(1, heads)
    at_zero = torch.sub(lse.abs() * SUM_MARGIN, lse).unflatten(1, heads)
    most = largest.amax(-1, keepdim=True)
    ends = torch.stack([at_zero, torch.addcmul(at_zero, reach, most[..., None])])
    ends = _in_pieces(ends, step, -math.inf).amax(-1)[..., None]
    return torch.lerp(ends[0], ends[1], (largest / most)[:, :, None, None]).flatten(1, 2)


def _norms(rows: Tensor) -> Tensor:
    """Of the last axis, in float32 or better, not too small."""
    precise = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(rows, dim=-1, dtype=precise).add_(LEAST_NORM)


def _in_pieces(rows: Tensor, step: int, fill: float) -> Tensor:
    """[..., tokens] -> [..., C, step], filled up."""
    missing = PIECES * step - rows.shape[-1]
    return torch.nn.functional.pad(rows, (0, missing), value=fill).unflatten(-1, (PIECES, step))
