"""A sequence in contiguous shards, one a rank: who holds what, in which pieces, and how near these are.

Legend: R ranks, C pieces of a shard (`PIECES`), P = R C pieces of keys, S slopes a head, A axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from stratcore.ops._toroidal_attention_call import Options
from stratcore.ops._toroidal_attention_replay import coordinates, parts_of_steps

PIECES = 32  # of a shard at most; what is needed is decided for pieces of queries and pieces of keys
PIECE_TOKENS = 128  # lengths of pieces are multiples, so that kernels see whole tiles


class Keys(NamedTuple):
    """Consecutive keys of a shard."""

    first: int
    end: int


class Run(NamedTuple):
    """Keys of a shard and the consecutive rows of this rank that need some of them."""

    keys: Keys
    first_row: int
    end_row: int
    pieces: int

    @property
    def rows(self) -> tuple[slice, slice, slice]:
        """Of a tensor [B, H, N, ...]."""
        return slice(None), slice(None), slice(self.first_row, self.end_row)


class Needs(NamedTuple):
    """Who needs what, on the CPU.

    rows: bool [C, R, C], which pieces of keys each piece of this rank's queries needs. keys: bool [R, R, C], the same
    of all ranks, for any of their queries.
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

    def everything(self) -> Needs:
        """All that causal order lets queries see."""
        last = torch.tensor(self.queries).cumsum(0) + self.options.query_offset - 1
        return Needs(visible(self), _seen(self, last, torch.tensor(self.queries) > 0))

    def inbound(self, needs: Needs, owner: int) -> list[Run]:
        """What this rank needs of another, and where."""
        step, length = piece_length(self.queries[self.rank]), self.queries[self.rank]
        runs = []
        for first, end in _stretches(needs.keys[self.rank, owner].tolist()):
            rows = needs.rows[:, owner, first:end].any(1).nonzero().flatten().tolist()
            keys = self._keys(owner, first, end)
            runs.append(Run(keys, rows[0] * step, min((rows[-1] + 1) * step, length), end - first))
        return runs

    def outbound(self, needs: Needs, receiver: int) -> list[Keys]:
        """Which of its keys this rank sends to another; there they are `inbound`."""
        stretches = _stretches(needs.keys[receiver, self.rank].tolist())
        return [self._keys(self.rank, first, end) for first, end in stretches]

    def _keys(self, owner: int, first: int, end: int) -> Keys:
        step = piece_length(self.keys[owner])
        return Keys(first * step, min(end * step, self.keys[owner]))

    def placed(self, run: Run, owner: int) -> Options:
        """Options of the op for one run of this rank, with its share of eps."""
        options = self.options
        return options._replace(
            query_offset=options.query_offset + sum(self.queries[: self.rank]) + run.first_row,
            key_offset=options.key_offset + sum(self.keys[:owner]) + run.keys.first,
            eps=options.eps * run.pieces / max(shares(self)[0], 1),
        )


@lru_cache(maxsize=32)
def visible(shards: Shards) -> Tensor:
    """Whether a piece of this rank's queries may see a piece of keys: bool [C, R, C], on the CPU."""
    first, count = (part[shards.rank] for part in shards.query_pieces())
    return _seen(shards, first + count - 1, count > 0)


def _seen(shards: Shards, last: Tensor, some: Tensor) -> Tensor:
    """Which pieces of keys [..., R, C] runs of queries see, from their last positions and whether there are any."""
    key, count = shards.key_pieces()
    seen = some[:, None, None] & (count > 0)
    if shards.options.causal:
        group = shards.options.causal_group
        seen &= (
            torch.div(key, group, rounding_mode="floor")
            <= torch.div(last, group, rounding_mode="floor")[:, None, None]
        )
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


@lru_cache(maxsize=32)
def shares(shards: Shards) -> tuple[int, int]:
    """Among how many pieces of keys this rank divides eps, and how many of them are its own."""
    of_ranks = visible(shards).any(0).sum(-1).tolist()
    return sum(of_ranks), of_ranks[shards.rank]


def piece_length(tokens: int) -> int:
    """Of a shard of so many tokens."""
    return PIECE_TOKENS * max(1, math.ceil(tokens / (PIECES * PIECE_TOKENS)))


def _pieces(lengths: Sequence[int], offset: int) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(lengths)[:, None]
    step = torch.tensor([piece_length(length) for length in lengths])[:, None]
    within = torch.arange(PIECES) * step
    first = offset + sizes.cumsum(0) - sizes + within
    return first, torch.minimum(step, (sizes - within).clamp(min=0))


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
