"""A sequence in contiguous shards, one a rank: who holds what, in which pieces, and which of them a rank needs.

Legend: R ranks, C pieces of a shard (`PIECES`), P = R C pieces of keys, A axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stratcore.ops._toroidal_attention_call import Options
from stratcore.ops._toroidal_attention_replay import coordinates

PIECES = 16  # of a shard at most; what is needed is decided for pieces of queries and pieces of keys
PIECE_TOKENS = 128  # lengths of pieces are multiples, so that kernels see whole tiles


class Run(NamedTuple):
    """Consecutive keys of another shard and the consecutive own rows that need some of them."""

    first_key: int
    end_key: int
    first_row: int
    end_row: int
    pieces: int

    @property
    def keys(self) -> slice:
        """Within the shard of their owner."""
        return slice(self.first_key, self.end_key)

    @property
    def key_count(self) -> int:
        """Keys of all its pieces."""
        return self.end_key - self.first_key

    @property
    def rows(self) -> slice:
        """Within the shard of queries."""
        return slice(self.first_row, self.end_row)


@dataclass(frozen=True)
class Shards:
    """Lengths of all shards, and the options of the whole sequence (offsets are those of rank 0's first token)."""

    rank: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    options: Options

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

    def visible(self) -> Tensor:
        """Whether a piece of queries may see a piece of keys: bool [R, C, R, C], queries first, on the CPU."""
        (query, rows), (key, columns) = self.query_pieces(), self.key_pieces()
        seen = (rows > 0)[:, :, None, None] & (columns > 0)
        if self.options.causal:
            group = self.options.causal_group
            last = torch.div(query + rows - 1, group, rounding_mode="floor")
            seen &= torch.div(key, group, rounding_mode="floor") <= last[:, :, None, None]
        return seen

    def runs(self, needs: Tensor, receiver: int, owner: int) -> list[Run]:
        """What `receiver` needs of `owner`, from needs [R, C, R, C]; both ranks get the same list."""
        pairs = needs[receiver, :, owner].tolist()
        row_step, key_step = piece_length(self.queries[receiver]), piece_length(self.keys[owner])
        found = []
        for first, end in _stretches([any(column) for column in zip(*pairs, strict=True)]):
            rows = [at for at, row in enumerate(pairs) if any(row[first:end])]
            found.append(
                Run(
                    first * key_step,
                    min(end * key_step, self.keys[owner]),
                    rows[0] * row_step,
                    min((rows[-1] + 1) * row_step, self.queries[receiver]),
                    end - first,
                )
            )
        return found

    def placed(self, run: Run, owner: int, pieces: int) -> Options:
        """Options of the op for one run, with its share of eps among `pieces` visible pieces of keys."""
        options = self.options
        return options._replace(
            query_offset=options.query_offset + sum(self.queries[: self.rank]) + run.first_row,
            key_offset=options.key_offset + sum(self.keys[:owner]) + run.first_key,
            eps=options.eps * run.pieces / max(pieces, 1),
        )


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
    edges = [
        at for at in range(len(flags) + 1) if (at < len(flags) and flags[at]) != (at > 0 and flags[at - 1])
    ]
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
