"""The scan of exponential variables: statistic against its definition, null law against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from stratcore.analysis.fiber_bundle.change_point import null_law, scan


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


@pytest.mark.parametrize("side", ["change", "rise"])
@pytest.mark.parametrize(
    ("count", "smallest", "draws"), [(20, 3, 40_000), (54, 5, 40_000), (118, 11, 20_000)]
)
def test_null_law_against_simulation(count, smallest, draws, side):
    """p-values of sequences without a change are even, as far down as that many sequences show."""
    p_value = scan(exponentials(draws, count, seed=7), smallest, side).p_value
    for level in (0.2, 0.05, 0.01, 0.001):
        below = int((p_value <= level).sum())
        # The law itself is simulated, to about one percent.
        assert (
            binomtest(below, draws, level * 1.03).pvalue > 1e-4
            or binomtest(below, draws, level * 0.97).pvalue > 1e-4
        )


def test_deep_tail_against_the_union_bound():
    """Where one split alone can be responsible, the probability of any is nearly the sum over splits."""
    law = null_law(40, 20, "change")  # a single split: the sum is exact
    from scipy.special import betainc

    for threshold in (2.0, 10.0, 30.0):
        share = np.linspace(1e-12, 0.5, 2_000_001)
        low = share[np.argmin(np.abs(-20 * np.log(2 * share) - 20 * np.log(2 - 2 * share) - threshold))]
        exact = 2 * betainc(20, 20, low)
        assert law.p_value(np.array([threshold]))[0] == pytest.approx(exact, rel=0.03)


def test_p_values_fall_and_go_on_beyond_the_grid():
    law = null_law(30, 3, "rise")
    p_value = law.p_value(np.linspace(0, 90, 500))
    assert p_value[0] == 1.0 and (np.diff(p_value) <= 0).all()
    assert 0 < p_value[-1] < 1e-30
    again = null_law.__wrapped__(30, 3, "rise")
    assert (again.log_tail == law.log_tail).all()


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
