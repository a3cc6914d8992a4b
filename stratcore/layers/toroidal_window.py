"""Attention to the neighborhood on a ring, without a matrix of all pairs.

Legend: B batch, H query heads, G key heads, N query rows, M key rows, E head size, W window in tokens, C rows of a
block of queries, K rows of the keys that a block looks at.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stratcore import ops

# Tokens of a block of queries, at least: what the kernels work on at a time.
LEAST_BLOCK = 128


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    window: int,
    lattice: tuple[int, ...],
    group: int = 1,
    causal: bool = False,
    mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`ops.toroidal_attention` on a ring, of every query to the keys at most W steps away.

    Steps go the shorter way around the ring; with `causal` only back in the sequence, so that a key that comes near
    again around the ring is no neighbor.

    Args:
        q: [B, H, N, E]; with `causal` the last N of the M rows, else N = M.
        k: [B, G, M, E].
        v: as k.
        slopes: as in `ops.toroidal_attention`.
        window: W, at least 0, in tokens.
        lattice: period n of the ring in tokens; where rows of a token lie along depth, (n, group).
        group: rows of a token; all of a token's rows are in or out.
        causal: whether later tokens are hidden.
        mask: of 4 dimensions, else as in `ops.toroidal_attention`.
        options: metric, scale, eps and deterministic of `ops.toroidal_attention`.

    Returns:
        [B, H, N, E].

    Raises:
        ValueError: more tokens than the ring has, unless causal.

    Gradient and numerics: those of the op.
    Cost: 4 B H N K E operations forward, C = max(W, 128) tokens and K = C + W (causal) or C + 2 W. Keys and values
        are copied, to K / C times their size. One mask of C K bools; with `mask`, or on a ring that is not full,
        B N K of them.
    """
    tokens, sites = q.shape[2] // group, lattice[0]
    steps_away = (k.shape[2] // group - 1) if causal else min(sites // 2, tokens - 1)
    options.update(lattice=lattice, causal=causal, causal_group=group)
    if not causal and tokens > sites:
        raise ValueError(f"window: expected at most {sites} tokens, the period of the ring, got {tokens}")
    if mask is not None:
        mask = mask.expand(-1, -1, q.shape[2], k.shape[2])
    if steps_away <= window:
        offset = k.shape[2] - q.shape[2]
        return ops.toroidal_attention(q, k, v, slopes, mask=mask, query_offset=offset, **options)
    compute = _causal if causal else _blocks
    return compute(q, k, v, slopes, window, mask, options)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, window: int, mask: Tensor | None, options: dict
) -> Tensor:
    """A first block by a mask of pairs, for it alone lacks keys before the sequence; the others by `_blocks`."""
    group, rows = options["causal_group"], q.shape[2]
    first = min(rows, max(window, LEAST_BLOCK) * group)
    offset = k.shape[2] - rows
    seen = offset + first
    query = torch.arange(first, device=q.device)[:, None] + offset
    near = query // group - torch.arange(seen, device=q.device) // group <= window
    if mask is not None:
        near = _restrict(mask[:, :, :first, :seen], near)
    start = ops.toroidal_attention(
        q[:, :, :first],
        k[:, :, :seen],
        v[:, :, :seen],
        slopes,
        mask=near,
        query_offset=offset,
        **options,
    )
    if first == rows:
        return start
    mask = None if mask is None else mask[:, :, first:]
    return torch.cat((start, _blocks(q[:, :, first:], k, v, slopes, window, mask, options)), 2)


def _blocks(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, window: int, mask: Tensor | None, options: dict
) -> Tensor:
    """Blocks of queries, as a batch, with the keys around each: distances are the same in all of them."""
    (batch, _, rows, _), keys = q.shape, k.shape[2]
    group = options["causal_group"]
    size, before = max(window, LEAST_BLOCK) * group, window * group
    after = 0 if options["causal"] else before
    count = -(-rows // size)
    width = before + size + after
    place = torch.arange(-before, count * size + after, device=q.device) + (keys - rows)
    source = place if options["causal"] else place.remainder(math.prod(options["lattice"]))
    absent = source >= keys
    source = source.clamp(max=keys - 1)

    def around(x: Tensor) -> Tensor:
        gathered = x.transpose(1, 2).index_select(1, source).unfold(1, width, size)  # [B, blocks, G, E, K]
        return gathered.permute(0, 1, 2, 4, 3).flatten(0, 1)

    padded = pad(q.transpose(1, 2), (0, 0, 0, 0, 0, count * size - rows))
    blocks = padded.unflatten(1, (count, size)).flatten(0, 1).transpose(1, 2)
    row = torch.arange(size, device=q.device)[:, None]
    column = torch.arange(width, device=q.device)
    steps = column // group - row // group
    near = (steps >= 0) & (steps <= (before + after) // group)
    partial = not options["causal"] and keys < math.prod(options["lattice"])
    if mask is not None or partial:
        if mask is None:
            mask = torch.ones((), dtype=torch.bool, device=q.device).expand(1, 1, rows, keys)
        query = torch.arange(count * size, device=q.device).clamp(max=rows - 1).view(count, size, 1)
        pairs = mask[:, :, query, source.unfold(0, width, size)[:, None]]  # [1 or B, 1 or H, blocks, C, K]
        pairs = _restrict(pairs, near & ~absent.unfold(0, width, size)[:, None])
        near = pairs.transpose(1, 2).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    out = ops.toroidal_attention(
        blocks, around(k), around(v), slopes, mask=near, query_offset=before, **options
    )
    return out.transpose(1, 2).unflatten(0, (batch, count)).flatten(1, 2)[:, :rows].transpose(1, 2)


def _restrict(mask: Tensor, visible: Tensor) -> Tensor:
    """A mask, bool or added, where pairs that are not visible are hidden too."""
    return mask & visible if mask.dtype == torch.bool else mask.masked_fill(~visible, -math.inf)
