"""Legend: N tokens, H heads, E head size."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stratcore.layers.position_attention import (
    PositionAttention,
    PositionAttentionOptions,
    grid_coordinates,
    relative_buckets,
    rotary_angles,
)

GRID = (3, 4)


def layer(encoding: str, **settings) -> PositionAttention:
    torch.manual_seed(1)
    options = PositionAttentionOptions(dim=16, num_heads=2, encoding=encoding, grid=(12,))
    found = PositionAttention(replace(options, **settings)).double()
    if encoding == "t5":
        torch.nn.init.normal_(found.tables_AKH)
    return found


def oracle(found: PositionAttention, x, bias, turn=lambda vector, token: vector):
    """Attention by loops over heads and tokens; `bias(h, i, j)` is added, `turn` is the rotary of one vector."""
    heads, size = found.options.num_heads, found.options.dim // found.options.num_heads
    q, k, v = (project(x) for project in (found.q_proj, found.k_proj, found.v_proj))
    out = torch.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(len(x)):
            seen = range(i + 1 if found.options.causal else len(x))
            keys = [turn(k[j, part], j) for j in seen]
            scores = [
                turn(q[i, part], i) @ key / math.sqrt(size) + bias(h, i, j)
                for j, key in zip(seen, keys, strict=True)
            ]
            weights = torch.stack([torch.as_tensor(s, dtype=x.dtype) for s in scores]).softmax(0)
            out[i, part] = sum(w * v[j, part] for w, j in zip(weights, seen, strict=True))
    return found.o_proj(out)


def t5_bucket(offset: int, buckets: int, far: int, two_way: bool) -> int:
    """The published code's rule, one offset at a time."""
    start = 0
    if two_way:
        buckets //= 2
        start = buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    spaced = math.log(distance / exact) / math.log(far / exact) * (buckets - exact)
    return start + min(buckets - 1, exact + int(spaced + 1e-12))


# ---- parts


def test_rotary_angles_are_the_published_ones():
    angles = rotary_angles(torch.tensor([0, 1, 5]), 4, 10_000.0)
    for row, position in zip(angles, (0, 1, 5), strict=True):
        for m, angle in enumerate(row):
            assert float(angle) == pytest.approx(position / 10_000 ** (2 * m / 8), rel=1e-14)


@pytest.mark.parametrize(
    ("buckets", "far", "two_way"), [(32, 128, True), (32, 128, False), (8, 17, True), (16, 336, False)]
)
def test_buckets_are_those_of_the_published_code(buckets, far, two_way):
    offsets = torch.arange(-400, 401)
    found = relative_buckets(offsets, buckets, far, bidirectional=two_way).tolist()
    assert found == [t5_bucket(offset, buckets, far, two_way) for offset in offsets.tolist()]
    known = {-1: 1, -7: 7, -8: 8, -16: 10, -127: 15, -400: 15, 1: 17, 127: 31, 0: 0}
    if (buckets, far, two_way) == (32, 128, True):
        assert {offset: found[offset + 400] for offset in known} == known


def test_buckets_tell_all_distances_of_a_short_axis_apart():
    offsets = torch.arange(-15, 16)
    assert len(set(relative_buckets(offsets, 32, 16, bidirectional=True).tolist())) == 31


def test_coordinates_are_row_major():
    assert grid_coordinates(GRID).T.tolist() == [[a, b] for a in range(3) for b in range(4)]


# ---- whole layers against loops


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grid", [(12,), GRID])
@pytest.mark.parametrize("encoding", ["none", "rope", "alibi", "t5"])
def test_attention_is_that_of_loops(encoding, grid, causal):
    found, x = layer(encoding, grid=grid, causal=causal), torch.randn(12, 16, dtype=torch.float64)
    place = grid_coordinates(grid).T.tolist()
    axes = len(grid)

    def bias(h, i, j):
        steps = [b - a for a, b in zip(place[i], place[j], strict=True)]
        if encoding == "alibi":
            return -(2.0 ** (-8 * (h + 1) / 2)) * sum(map(abs, steps))
        if encoding == "t5":
            one_way = causal and axes == 1
            fars = [max(size, (16 if one_way else 8) + 1) for size in grid]
            rows = [t5_bucket(step, 32, far, not one_way) for step, far in zip(steps, fars, strict=True)]
            return sum(found.tables_AKH[a, row, h] for a, row in enumerate(rows))
        return 0.0

    def turn(vector, token):
        if encoding != "rope":
            return vector
        each = 4 // axes  # pairs an axis of the 4 of a head
        angles = [place[token][m // each] * 10_000.0 ** (-(m % each) / each) for m in range(4)]
        first, second = vector[:4], vector[4:]
        cos, sin = torch.tensor(angles, dtype=x.dtype).cos(), torch.tensor(angles, dtype=x.dtype).sin()
        return torch.cat([first * cos - second * sin, first * sin + second * cos])

    wanted = oracle(found, x, bias, turn)
    # The tables of angles and distances are in float32.
    torch.testing.assert_close(found(x[None])[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi", "t5"])
def test_both_devices_agree(encoding, device):
    found, x = layer(encoding, grid=GRID, causal=True).float(), torch.randn(2, 12, 16)
    wanted = found(x)
    torch.testing.assert_close(found.to(device)(x.to(device)).cpu(), wanted, rtol=0, atol=1e-5)


def test_shorter_sequences_are_the_start_of_longer_causal_ones():
    for encoding in ("rope", "alibi", "t5", "none"):
        found, x = layer(encoding, causal=True), torch.randn(2, 12, 16, dtype=torch.float64)
        torch.testing.assert_close(found(x[:, :7]), found(x)[:, :7], rtol=0, atol=1e-12)


def test_tables_learn():
    found = layer("t5")
    found(torch.randn(2, 12, 16, dtype=torch.float64)).square().sum().backward()
    assert found.tables_AKH.grad is not None and found.tables_AKH.grad.abs().sum() > 0


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoding": "magic"}, "encoding: expected one of none, rope, alibi, t5, got 'magic'"),
        ({"num_heads": 3}, "dim: expected a multiple of num_heads = 3, got 16"),
        ({"grid": (0,)}, "grid: expected sizes >= 1"),
        ({"encoding": "rope", "num_heads": 8, "grid": GRID}, "dim: expected at least 4 channels a head"),
        ({"rope_base": 1.0}, "rope_base: expected a number > 1, got 1.0"),
        ({"num_buckets": 6}, "num_buckets: expected a multiple of 4, got 6"),
        ({"max_distance": 8}, "max_distance: expected more than 8, got 8"),
    ],
)
def test_bad_options_are_refused(settings, words):
    good = PositionAttentionOptions(dim=16, num_heads=2, encoding="none", grid=(12,))
    with pytest.raises(ValueError, match=words):
        replace(good, **settings)


def test_tokens_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x: expected \[B, N <= 12, 16\], got \[1, 13, 16\]"):
        layer("none")(torch.zeros(1, 13, 16, dtype=torch.float64))
