"""Which pieces of keys hold enough of some row's probability to be sent; the proof is in context_parallel.py.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, S slopes a head, R ranks,
C pieces of a shard, P = R C pieces of keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stratcore.layers._context_parallel_shards import PIECES, Shards, least_parts, piece_length, visible

# What rounding may add to a product of norms, to a log-sum and to a distance is far below these.
PRODUCT_MARGIN, SUM_MARGIN, DISTANCE_MARGIN = 1e-4, 1e-5, 1e-5
LEAST_NORM = 1e-17  # squares of smaller numbers may vanish in float32


def key_statistics(k: Tensor, key_mask: Tensor | None) -> Tensor:
    """Largest norm of the visible keys of every piece, and how many they are: float64 [B, G + 1, C]."""
    norms = _norms(k)
    taken = torch.ones_like(norms[:, 0]) if key_mask is None else key_mask.to(norms.dtype)
    if key_mask is not None:
        norms = torch.where(key_mask[:, None], norms, 0.0)
    step = piece_length(k.shape[2])
    largest = _in_pieces(norms, step, 0.0).amax(-1)
    return torch.cat([largest, _in_pieces(taken, step, 0.0).sum(-1)[:, None]], 1).double()


def needed_pieces(q: Tensor, lse: Tensor, slopes: Tensor, statistics: Tensor, shards: Shards) -> Tensor:
    """Which pieces of keys may hold more than their share of eps of a row in a piece of this rank's queries.

    Args:
        q: [B, H, N, E].
        lse: [B, H, N], log-sums over keys that the rows see, of this rank's own shard.
        slopes: [H, S].
        statistics: `key_statistics` of all ranks, [R, B, G + 1, C].
        shards: lengths and options.

    Returns:
        bool [G, C, R, C] on the device of `q`, pieces of queries first: for any query head of a key head.
    """
    seen = visible(shards)[shards.rank]
    statistics = statistics.movedim(0, 2).flatten(2, 3)
    largest, count = statistics[:, :-1], statistics[:, -1]
    excess = _excess(q, lse, largest, count, abs(shards.options.scale), piece_length(q.shape[2]))
    parts = least_parts(shards, slopes.shape[1]).to(q.device, non_blocking=True)
    penalty = torch.einsum("hs,scp->hcp", slopes.double() * (1 - DISTANCE_MARGIN), parts)
    bound = excess - penalty + torch.log(count)[:, None, None]
    share = math.log(shards.options.eps) - math.log(max(1, count_visible(seen)))
    falls = (slopes >= 0).all(-1)[:, None, None]
    negligible = excess.isfinite() & falls & (bound <= share)
    needs = ((count > 0)[:, None, None] & ~negligible).any(0).unflatten(0, (largest.shape[1], -1)).any(1)
    return needs.unflatten(-1, (shards.size, PIECES)) & seen.to(q.device, non_blocking=True)


def count_visible(seen: Tensor) -> int:
    """Pieces of keys among which a rank divides eps, from its part of `visible`, queries first."""
    return int(seen.any(0).sum())


def _excess(q: Tensor, lse: Tensor, largest: Tensor, count: Tensor, scale: float, step: int) -> Tensor:
    """Upper bounds of max_i (|scale| |q_i| K - L_i), float64 [B, H, C, P], for K: the largest norm of each piece.

    As a function of K it is convex, so that between its values at the least and the largest of all K a chord lies
    above it.
    """
    reach = _norms(q).double() * (scale * (1 + PRODUCT_MARGIN))
    floor = lse.double() - SUM_MARGIN * (1 + lse.double().abs())
    largest = largest.repeat_interleave(q.shape[1] // largest.shape[1], 1)
    taken = (count > 0)[:, None]
    low = torch.where(taken, largest, math.inf).amin(-1, keepdim=True)
    high = torch.where(taken, largest, 0.0).amax(-1, keepdim=True)
    at_low, at_high = (
        _in_pieces(reach * norm - floor, step, -math.inf).amax(-1)[..., None] for norm in (low, high)
    )
    along = torch.where(high > low, (largest - low) / (high - low), 0.0)[:, :, None]
    return at_low * (1 - along) + at_high * along


def _norms(rows: Tensor) -> Tensor:
    """Of the last axis, in float32 or better, not too small."""
    precise = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(rows, dim=-1, dtype=precise) + LEAST_NORM


def _in_pieces(rows: Tensor, step: int, fill: float) -> Tensor:
    """[..., tokens] -> [..., C, step], filled up."""
    missing = PIECES * step - rows.shape[-1]
    return torch.nn.functional.pad(rows, (0, missing), value=fill).unflatten(-1, (PIECES, step))
