"""The scan of exponential variables against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis.fiber_bundle.change_point import scan


def exponentials(points, count, seed=0):
    return np.random.default_rng(seed).exponential(size=(points, count))


def slow_scan(row, smallest, side):
    best, split, count = 0.0, 0, len(row)
    for s in range(smallest, count - smallest + 1):
        left, right = row[:s].mean(), row[s:].mean()
        if side == "rise" and right >= left:
            continue
        ratio = count * np.log(row.mean()) - s * np.log(left) - (count - s) * np.log(right)
        if ratio > best:
            best, split = ratio, s
    return best, split


@pytest.mark.parametrize("side", ["change", "rise"])
@pytest.mark.parametrize(("count", "smallest"), [(6, 3), (30, 1), (54, 5)])
def test_statistic_is_the_largest_ratio(count, smallest, side):
    rows = exponentials(40, count) * np.where(np.arange(count) < count // 2, 3.0, 1.0)
    found = scan(rows, smallest, side)
    expected = [slow_scan(row, smallest, side) for row in rows]
    np.testing.assert_allclose(found.statistic, [best for best, _ in expected], rtol=1e-9, atol=1e-12)
    assert found.split.tolist() == [split for _, split in expected]


def test_the_unit_does_not_matter():
    rows = exponentials(20, 40)
    first, second = scan(rows, 4, "change"), scan(rows * 1e-9, 4, "change")
    np.testing.assert_allclose(first.p_value, second.p_value, rtol=1e-9)


def test_a_rise_is_not_a_fall():
    falls = exponentials(50, 60) * np.where(
        np.arange(60) < 30, 1.0, 4.0
    )  # the mean rises: the dimension falls
    assert (scan(falls, 6, "change").p_value < 1e-3).mean() > 0.8
    assert (scan(falls, 6, "rise").p_value > 0.05).mean() > 0.9
    assert (scan(falls[:, ::-1], 6, "rise").p_value < 1e-3).mean() > 0.8


@pytest.mark.parametrize("smallest", [0, 6])
def test_splits_must_leave_something_on_either_side(smallest):
    with pytest.raises(ValueError, match="smallest: expected 1 to 5 spacings"):
        scan(exponentials(2, 10), smallest, "change")
