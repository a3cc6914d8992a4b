"""A sequence in contiguous shards, one a rank: who holds what, in which pieces, and how near these are.

Legend: G key heads, R ranks, C pieces of a shard (`PIECES`), P = R C pieces of keys, S slopes a head, A axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from stratcore.ops._toroidal_attention_call import Options
from stratcore.ops._toroidal_attention_replay import coordinates, parts_of_steps

PIECES = 16  # of a shard at most; what is needed is decided for pieces of queries and pieces of keys
PIECE_TOKENS = 128  # lengths of pieces are multiples, so that kernels see whole tiles

Index = tuple[slice, slice, slice]


class Keys(NamedTuple):
    """Consecutive keys of a shard, for consecutive key heads."""

    first_head: int
    end_head: int
    first: int
    end: int

    @property
    def place(self) -> Index:
        """In [B, G, M]."""
        return slice(None), slice(self.first_head, self.end_head), slice(self.first, self.end)


class Run(NamedTuple):
    """Keys of a shard and the consecutive rows of this rank that need some of them."""

    keys: Keys
    first_row: int
    end_row: int
    pieces: int

    def place(self, shared: int) -> Index:
        """In [B, H, N], for so many query heads a key head."""
        heads = slice(self.keys.first_head * shared, self.keys.end_head * shared)
        return slice(None), heads, slice(self.first_row, self.end_row)


class Needs(NamedTuple):
    """Who needs what, on the CPU.

    rows: bool [G, C, R, C], which pieces of keys each piece of this rank's queries needs. keys: bool [R, G, R, C],
    the same of all ranks, for any of their queries.
    """

    rows: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Shards:
    """Lengths of all shards, and the options of the whole sequence (offsets are those of rank 0's first token)."""

    rank: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    options: Options  # lattice and block as tuples, so that layouts can be told apart

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.keys)

    def query_pieces(self) -> tuple[Tensor, Tensor]:
        """Positions of first queries and numbers of queries, int64 [R, C] each, on the CPU."""
        return _pieces(self.queries, self.options.query_offset)

    def key_pieces(self) -> tuple[Tensor, Tensor]:
        """As `query_pieces`."""
        return _pieces(self.keys, self.options.key_offset)

    def everything(self, heads: int) -> Needs:
        """All that causal order lets queries see, for so many key heads."""
        seen = visible(self)
        rows = seen[self.rank].expand(heads, -1, -1, -1)
        return Needs(rows, seen.any(1)[:, None].expand(-1, heads, -1, -1))

    def inbound(self, needs: Needs, owner: int) -> list[Run]:
        """What this rank needs of another, and where."""
        pairs = needs.rows[:, :, owner]
        step, length = piece_length(self.queries[self.rank]), self.queries[self.rank]
        runs = []
        for keys, first, end in _keys_of(needs.keys[self.rank, :, owner], self.keys[owner]):
            asked = (
                pairs[keys.first_head : keys.end_head, :, first:end]
                .any(0)
                .any(-1)
                .nonzero()
                .flatten()
                .tolist()
            )
            runs.append(Run(keys, asked[0] * step, min((asked[-1] + 1) * step, length), end - first))
        return runs

    def outbound(self, needs: Needs, receiver: int) -> list[Keys]:
        """Which of its keys this rank sends to another; there it is `inbound`."""
        return [keys for keys, *_ in _keys_of(needs.keys[receiver, :, self.rank], self.keys[self.rank])]

    def placed(self, run: Run, owner: int, pieces: int) -> Options:
        """Options of the op for one run, with its share of eps among `pieces` visible pieces of keys."""
        options = self.options
        return options._replace(
            query_offset=options.query_offset + sum(self.queries[: self.rank]) + run.first_row,
            key_offset=options.key_offset + sum(self.keys[:owner]) + run.keys.first,
            eps=options.eps * run.pieces / max(pieces, 1),
        )


@lru_cache(maxsize=32)
def visible(shards: Shards) -> Tensor:
    """Whether a piece of queries may see a piece of keys: bool [R, C, R, C], queries first, on the CPU."""
    (query, rows), (key, columns) = shards.query_pieces(), shards.key_pieces()
    seen = (rows > 0)[:, :, None, None] & (columns > 0)
    if shards.options.causal:
        group = shards.options.causal_group
        last = torch.div(query + rows - 1, group, rounding_mode="floor")
        seen &= torch.div(key, group, rounding_mode="floor") <= last[:, :, None, None]
    return seen


@lru_cache(maxsize=32)
def least_parts(shards: Shards, count: int) -> Tensor:
    """The least that `count` slopes multiply, for pieces of this rank's queries and of all keys.

    float64 [S, C, P] on the CPU; the parts grow with the steps along each axis.
    """
    options = shards.options
    first, rows = (part[shards.rank][:, None] for part in shards.query_pieces())
    key, columns = (part.flatten()[None] for part in shards.key_pieces())
    queries = boxes_of(first, rows.clamp(min=1), options.lattice, options.block)
    keys = boxes_of(key, columns.clamp(min=1), options.lattice, options.block)
    return parts_of_steps(options, list(least_steps(queries, keys, options.lattice).double()), count)


def piece_length(tokens: int) -> int:
    """Of a shard of so many tokens."""
    return PIECE_TOKENS * max(1, math.ceil(tokens / (PIECES * PIECE_TOKENS)))


def _pieces(lengths: Sequence[int], offset: int) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(lengths)[:, None]
    step = torch.tensor([piece_length(length) for length in lengths])[:, None]
    within = torch.arange(PIECES) * step
    first = offset + sizes.cumsum(0) - sizes + within
    return first, torch.minimum(step, (sizes - within).clamp(min=0))


def _keys_of(asked: Tensor, length: int) -> Iterator[tuple[Keys, int, int]]:
    """Runs of pieces in [G, C], with heads that ask for the same together, and their first and last piece."""
    step, head = piece_length(length), 0
    for flags, group in groupby(asked.tolist()):
        first_head, head = head, head + len(list(group))
        for first, end in _stretches(flags):
            yield Keys(first_head, head, first * step, min(end * step, length)), first, end


def _stretches(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where runs of True begin and end."""
    padded = [False, *flags, False]
    edges = [at for at in range(len(flags) + 1) if padded[at] != padded[at + 1]]
    return zip(edges[::2], edges[1::2], strict=True)


class Boxes(NamedTuple):
    """Along each axis `length` sites from `start` on, around the ring; int64 [A, ...] each."""

    start: Tensor
    length: Tensor


def boxes_of(first: Tensor, count: Tensor, lattice: Sequence[int], block: Sequence[int]) -> Boxes:
    """Boxes that hold runs of positions, of `count` >= 1 from `first` on: box_at in lattice.h of the op.

    The digits of a position are the coordinates of its block, then those within the block. Digits before the first
    that differs between the ends of a run are fixed, those behind it take every value.
    """
    sites = math.prod(lattice)
    first = first % sites
    if len(lattice) == 1:
        return Boxes(first[None], count.clamp(max=sites)[None])
    low, high = (coordinates(at, lattice, block) for at in (first, first + count - 1))
    around = count > sites - first
    fixed = ~around
    starts, lengths = [], []
    for x, y, size, period in zip(low, high, block, lattice, strict=True):
        begin = torch.div(x, size, rounding_mode="floor") * size
        extent = torch.div(y, size, rounding_mode="floor") * size + size - begin
        starts.append(torch.where(fixed, begin, 0))
        lengths.append(torch.where(fixed, extent, period))
        fixed = fixed & (extent == size)
    for axis, (x, y) in enumerate(zip(low, high, strict=True)):
        starts[axis] = torch.where(fixed, x, starts[axis])
        lengths[axis] = torch.where(fixed, y - x + 1, lengths[axis])
        fixed = fixed & (x == y)
    return Boxes(torch.stack(starts), torch.stack(lengths))


def least_steps(a: Boxes, b: Boxes, lattice: Sequence[int]) -> Tensor:
    """Least steps along each axis from a site of one box to a site of the other, [A, ...]; they broadcast."""
    period = torch.tensor(list(lattice)).reshape(-1, *[1] * (max(a.start.ndim, b.start.ndim) - 1))
    ahead = (b.start - a.start) % period
    behind = (a.start - b.start) % period
    apart = torch.minimum(ahead - (a.length - 1), behind - (b.length - 1))
    return torch.where((ahead < a.length) | (behind < b.length), 0, apart)
