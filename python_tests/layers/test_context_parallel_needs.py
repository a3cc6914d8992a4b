"""What eps leaves out of context parallel attention: the proof, rank by rank in one process, and what it stands on.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, R ranks, C pieces of a shard,
P = R C.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from python_tests.layers.context_parallel_cases import shards
from python_tests.ops.toroidal_problem import METRICS, normal, problem
from stratcore import ops
from stratcore.layers import _context_parallel_needs as needs
from stratcore.layers._context_parallel_shards import (
    PIECES,
    Keys,
    Needs,
    Run,
    Shards,
    boxes_of,
    least_steps,
    piece_length,
    shares,
    visible,
)
from stratcore.ops._toroidal_attention_call import Options
from stratcore.ops._toroidal_attention_replay import Replay
from stratcore.ops.reference.toroidal_attention import lattice_sites

LATTICES = [([60], [60]), ([7, 9], [7, 9]), ([8, 12], [4, 3]), ([4, 6, 5], [2, 3, 5]), ([4, 6, 8], [4, 2, 4])]


def options_of(eps: float = 0.0, **changes: Any) -> Options:
    plain = Options([1 << 20], [], "l1", 0.5, False, 1, 0, 0, eps, False)._replace(**changes)
    return plain._replace(lattice=tuple(plain.lattice), block=tuple(plain.block or plain.lattice))


@pytest.mark.parametrize(("lattice", "block"), LATTICES, ids=str)
def test_boxes_hold_their_runs(lattice, block):
    """No site of two runs is nearer along an axis than their boxes say; on a ring they are just so near."""
    sites, generator = math.prod(lattice), torch.Generator().manual_seed(1)
    first = torch.randint(3 * sites, (2, 200), generator=generator)
    count = torch.randint(1, sites // 2, (2, 200), generator=generator)
    count[:, :20] += sites
    told = least_steps(*(boxes_of(first[side], count[side], lattice, block) for side in (0, 1)), lattice)
    at, period = lattice_sites(lattice, block), torch.tensor(lattice)
    for pair in range(200):
        x, y = (at[(first[side, pair] + torch.arange(count[side, pair])) % sites] for side in (0, 1))
        around = (x[:, None] - y).remainder(period)
        least = torch.minimum(around, period - around).flatten(0, 1).amin(0)
        assert bool((told[:, pair] <= least).all())
        if len(lattice) == 1:
            assert bool((told[:, pair] == least).all())
    assert told.any()


def test_pieces():
    assert [piece_length(tokens) for tokens in (0, 1, 4096, 4097, 10**6)] == [128, 128, 128, 256, 31360]
    places = Shards(1, (300, 200), (100, 700), options_of(query_offset=5, key_offset=7))
    first, count = places.key_pieces()
    assert count[0].tolist() == [100] + [0] * 31 and count[1].tolist() == [128] * 5 + [60] + [0] * 26
    assert first[1, :6].tolist() == [107, 235, 363, 491, 619, 747]
    assert places.query_pieces()[0][1, 0] == 305
    placed = places.placed(Run(Keys(128, 300), 128, 200, 2), 1)
    assert (placed.query_offset, placed.key_offset) == (5 + 300 + 128, 7 + 100 + 128)


def test_both_ends_know_the_same_blocks():
    """Rank 0 needs two runs of rank 1, each of them for rows of its own."""
    receiver, owner = (Shards(rank, (300, 200), (100, 700), options_of()) for rank in (0, 1))
    rows = torch.zeros(PIECES, 2, PIECES, dtype=torch.bool)
    rows[1, 1, 0] = rows[2, 1, 1] = rows[0, 1, 5] = True
    needs = Needs(rows, torch.stack([rows.any(0), torch.zeros(2, PIECES, dtype=torch.bool)]))
    blocks = [Keys(0, 256), Keys(640, 700)]
    assert receiver.inbound(needs, 1) == [Run(blocks[0], 128, 300, 2), Run(blocks[1], 0, 128, 1)]
    assert owner.outbound(needs, 0) == blocks
    assert owner.outbound(needs, 1) == receiver.outbound(needs, 1) == []
    assert receiver.inbound(receiver.everything(), 1) == [Run(Keys(0, 700), 0, 300, 6)]
    assert owner.outbound(owner.everything(), 0) == [Keys(0, 700)]


def test_shares_of_eps():
    """Three and six pieces of keys, of which causal order shows rank 0 three and one."""
    places = Shards(0, (512, 500), (300, 700), options_of(eps=0.2))
    assert shares(places) == (9, 3)
    assert places.placed(Run(Keys(0, 256), 0, 300, 2), 1).eps == pytest.approx(0.2 * 2 / 9)
    places = Shards(0, (301, 700), (300, 700), options_of(eps=0.2, causal=True))
    assert shares(places) == (4, 3)
    nothing = Shards(0, (0, 1), (5, 5), options_of(eps=0.2))
    assert shares(nothing) == (0, 0) and nothing.placed(Run(Keys(0, 5), 0, 0, 0), 0).eps == 0.0


@pytest.mark.parametrize("group", [1, 5, 300])
def test_visible_pieces(group):
    """Against all pairs of tokens."""
    seen = torch.arange(587) // group <= torch.arange(90, 540)[:, None] // group
    options = options_of(causal=True, causal_group=group, query_offset=90)
    ranks = [Shards(rank, (300, 0, 150), (130, 200, 257), options) for rank in range(3)]
    (query, rows), (key, columns) = ranks[0].query_pieces(), ranks[0].key_pieces()
    for r, places in enumerate(ranks):
        told = visible(places)
        assert not told[3:].any() and not told[:, :, 3:].any()
        for c, s, d in torch.cartesian_prod(*(torch.arange(3),) * 3).tolist():
            row, column = int(query[r, c]) - 90, int(key[s, d])
            pairs = seen[row : row + int(rows[r, c]), column : column + int(columns[s, d])]
            assert bool(told[c, s, d]) == bool(pairs.any())
        assert torch.equal(ranks[0].everything().keys[r], told.any(0))


def test_excess_is_above_the_maximum():
    """A chord over all norms, against every row and piece; equal at the largest norm."""
    q, lse = normal(1, 2, 500, 8, seed=1), normal(1, 2, 500, seed=2)
    largest = normal(1, 1, 2 * PIECES, seed=3).abs()
    told = needs._excess(q, lse, largest, 0.3)
    exact = 0.3 * q.norm(dim=-1)[..., None] * largest[:, :, None] - lse[..., None]
    for piece in range(4):
        above = told[:, :, piece] - exact[:, :, piece * 128 : (piece + 1) * 128].amax(2)
        assert float(above.min()) > 0 and float(above[..., largest.argmax()].max()) < 1e-3


class LeftOut(NamedTuple):
    """Blocks that ranks do without, the most that one holds of a row, in shares, and that a row loses, in eps."""

    pieces: int
    worst_share: float
    worst_row: float


def left_out(
    tensors: list[Tensor], parts: tuple[int, ...], options: Options, mask: Tensor | None = None
) -> LeftOut:
    """What ranks with shards in the ratio of `parts` decide, held against the probabilities of the definition."""
    q, k, v, slopes = tensors
    at = shards(q.shape[2], parts, len(parts))
    hidden = None if mask is None else mask[:, None, None]
    everything = Replay(q, k, v, slopes, hidden, options).weights
    masks = [None if mask is None else mask[:, part] for part in at]
    statistics = torch.stack([needs.key_statistics(k[:, :, p], m) for p, m in zip(at, masks, strict=True)])
    lengths = tuple(part.stop - part.start for part in at)
    count, share_used, row_used = 0, 0.0, 0.0
    for rank, part in enumerate(at):
        places = Shards(rank, lengths, lengths, options)
        seen, (pieces, own_pieces) = visible(places), shares(places)
        run = Run(Keys(0, lengths[rank]), 0, lengths[rank], own_pieces)
        own = [t[:, :, part] for t in (q, k, v)]
        own_mask = None if mask is None else hidden[:, :, :, part].expand(*q.shape[:2], lengths[rank], -1)
        op = torch.ops.stratcore.toroidal_attention
        lse = op(*own, slopes, own_mask, *places.placed(run, rank))[1]
        needed = needs.needed_pieces(own[0], lse, slopes, statistics, places, masked=mask is not None)
        assert not (needed & ~seen).any()
        lost = torch.zeros_like(lse)
        for c, r, d in (seen & ~needed).nonzero().tolist():
            if r == rank:
                continue
            row, column = c * piece_length(lengths[rank]), d * piece_length(lengths[r])
            rows = slice(row, row + piece_length(lengths[rank]))
            keys = slice(
                at[r].start + column, min(at[r].start + column + piece_length(lengths[r]), at[r].stop)
            )
            mass = everything[:, :, part][:, :, rows, keys].sum(-1)
            lost[:, :, rows] += mass
            count, share_used = count + 1, max(share_used, float(mass.max()) * pieces / options.eps)
        row_used = max(row_used, float(lost.max()) / options.eps)
    return LeftOut(count, share_used, row_used)


def sharp(slope: float, tokens: int = 768, batch: int = 1, axes: int = 1, size: float = 0.5) -> list[Tensor]:
    q, k, v, slopes = problem((batch, 2, 1, tokens, tokens, 8), axes=axes)
    return [q * size, k * size, v, torch.full_like(slopes, slope)]


SPREADS = [{"lattice": [512]}, {"lattice": [32, 16], "block": [8, 8]}, {"lattice": [16, 8, 4]}]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lattice", SPREADS, ids=str)
def test_random_inputs(lattice, metric):
    tensors = sharp(6.0, 512)
    for eps, causal in ((2.0**-20, False), (1e-3, True), (0.5, False)):
        options = options_of(eps, metric=metric, causal=causal, causal_group=3, **lattice)
        found = left_out(tensors, (1, 2, 1), options)
        assert found.worst_share <= 1.0 and found.worst_row <= 1.0 and found.pieces > 0


@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("metric", ["l1", "chordal"])
def test_where_every_score_is_its_bound(slope, metric):
    tensors = sharp(slope, 896)
    for t in tensors[:2]:
        t.fill_(1.0)
    for eps, causal in ((1e-6, False), (1e-3, True), (0.1, False), (0.5, True)):
        options = options_of(eps, lattice=[896], metric=metric, causal=causal)
        found = left_out(tensors, (2, 1, 4), options)
        assert found.worst_share <= 1.0 and found.worst_row <= 1.0
        assert found.pieces > 0 or slope * 448 < 30


@pytest.mark.parametrize("steps", [0, 1])
def test_many_pieces_with_all_of_their_share(steps):
    """One piece of a rank's own, and 8 a step away that are just below their share, or just above."""
    q, k, v = (torch.full((1, 1, 1152, 4), 0.5, dtype=torch.float64) for _ in range(3))
    eps, pieces = 0.02, 9
    share = 0.99 if steps == 0 else 1.01
    slopes = torch.tensor([[-math.log(share * eps / pieces), 0.0]], dtype=torch.float64)
    start = 4096 - 128
    options = options_of(eps, lattice=[2, 4096], query_offset=start, key_offset=start)
    found = left_out([q, k, v, slopes], (1, 8), options)
    assert found.worst_row <= 1.0 and found.worst_share <= 1.0
    if steps == 0:
        assert found.pieces == 8 + 8 and found.worst_row > 0.85 and found.worst_share > 0.95
    else:
        assert found.pieces == 8


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("parts", [(1, 1), (1, 1, 1, 1)])
def test_a_key_of_another_norm(strength, parts):
    """Among many small ones, along one query, far away; also where all keys of the query's own shard are tiny."""
    for size in (0.5, 1e-3):
        q, k, v, slopes = sharp(1.0, size=size)
        q = q / size * 0.5
        for at in (300, 500, 700):
            k[:, 0, at] = strength * q[:, 0, 40] / q[:, 0, 40].norm(dim=-1, keepdim=True)
        found = left_out([q, k, v, slopes], parts, options_of(1e-4, lattice=[768]))
        assert found.worst_share <= 1.0 and found.worst_row <= 1.0
        assert found.pieces > 0 or strength == 1000.0


def test_hidden_keys():
    """They count neither in norms nor in numbers; rows that see none of their own shard leave nothing out."""
    tensors = sharp(3.0, batch=2)
    options = options_of(1e-3, lattice=[768])
    few = normal(2, 768, seed=3) > 1.5
    plain, masked = left_out(tensors, (1, 1, 1, 1), options), left_out(tensors, (1, 1, 1, 1), options, few)
    assert masked.worst_share <= 1.0 and masked.worst_row <= 1.0 and masked.pieces > 0
    huge = tensors[1].clone()
    huge[:, :, 700] = 1e4
    without = torch.ones(2, 768, dtype=torch.bool)
    without[:, 700] = False
    hidden = left_out([tensors[0], huge, *tensors[2:]], (1, 1, 1, 1), options, without)
    assert (
        hidden.pieces
        >= plain.pieces
        > left_out([tensors[0], huge, *tensors[2:]], (1, 1, 1, 1), options).pieces
    )
    blind = torch.ones(2, 768, dtype=torch.bool)
    blind[0, :192] = False
    assert 0 < left_out(tensors, (1, 1, 1, 1), options, blind).pieces < plain.pieces


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["key", "query", "slope"])
def test_what_is_not_finite_leaves_nothing_out(where, value):
    """Of the rows, or of all, that it concerns."""
    tensors = sharp(6.0, 512, batch=2)
    places = Shards(0, (256, 256), (256, 256), options_of(1e-3, lattice=[1 << 20]))
    target = {"key": tensors[1][1, 0, 400], "query": tensors[0][0, 1, 20], "slope": tensors[3][1]}[where]
    target.fill_(value)
    q, k, v, slopes = tensors
    statistics = torch.stack([needs.key_statistics(k[:, :, p], None) for p in (slice(256), slice(256, None))])
    own = [t[:, :, :256] for t in (q, k, v)]
    lse = ops.toroidal_attention_lse(*own, slopes, lattice=1 << 20).lse
    needed = needs.needed_pieces(own[0], lse, slopes, statistics, places, masked=False)[:2, 1, :2]
    if where == "query":
        assert needed.tolist() == [[True, True], [True, False]]
    else:
        assert needed.all()


def test_slopes_of_each_head_decide():
    tensors = sharp(6.0, axes=2)
    options = options_of(1e-3, lattice=[48, 16])
    plain = left_out(tensors, (1, 1, 1, 1), options)
    assert plain.pieces > 0
    tensors[3][1] = torch.tensor([6.0, -1e-9])
    assert left_out(tensors, (1, 1, 1, 1), options).pieces == 0
    tensors[3][1] = torch.tensor([6.0, 0.0])
    assert 0 < left_out(tensors, (1, 1, 1, 1), options).pieces <= plain.pieces
