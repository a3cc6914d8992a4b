"""The null law of the scan against exact arithmetic, closed forms, and simulations that share nothing with it.

Legend: T thresholds, R draws, n spacings, S splits.
"""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.special import betainc, betaincinv
from scipy.stats import binomtest

from stratcore.analysis.fiber_bundle.change_point import scan
from stratcore.analysis.fiber_bundle.scan_law import log_critical_share, null_law, tail

SIDES = ["change", "rise"]


def probability_in_a_band(low, high, part, total):
    """P(low_s <= U_s <= high_s) of order statistics in rational numbers, by counts in the cells between bounds."""
    times = sorted({Fraction(0), Fraction(1), *low, *high})
    ways = {0: Fraction(1)}  # probability that so many points lie below `now`, times what is left to place
    for now, then in zip(times, times[1:], strict=False):
        moved = {}
        for below, weight in ways.items():
            for more in range(total - below + 1):
                moved[below + more] = (
                    moved.get(below + more, 0) + weight * comb(total - below, more) * (then - now) ** more
                )
        # U_s >= low_s: at most s - 1 points below low_s; U_s <= high_s: at least s below high_s.
        most = min([total, *(s - 1 for s, bound in zip(part, low, strict=True) if then <= bound)])
        least = max([0, *(s for s, bound in zip(part, high, strict=True) if bound <= then)])
        ways = {
            below: weight
            for below, weight in moved.items()
            if least <= below <= (most if then < 1 else total)
        }
    return ways[total]


@pytest.mark.parametrize("threshold", [0.05, 1.0, 4.0, 9.0, 30.0])
@pytest.mark.parametrize(("count", "smallest"), [(6, 3), (8, 1), (13, 2)])
def test_equals_exact_arithmetic(count, smallest, threshold):
    part = list(range(smallest, count - smallest + 1))
    small = [Fraction(float(np.exp(b))) for b in log_critical_share(np.array(part), count, threshold)]
    high = [1 - bound for bound in small[::-1]]
    change = 1 - probability_in_a_band(small, high, part, count - 1)
    rise = 1 - probability_in_a_band([Fraction(0)] * len(part), high, part, count - 1)
    assert tail(np.array([threshold]), count, smallest, "rise")[0] == pytest.approx(float(rise), rel=1e-11)
    assert tail(np.array([threshold]), count, smallest, "change")[0] == pytest.approx(float(change), rel=1e-7)


def test_a_single_split_is_a_beta_variable():
    """m = n / 2: one split, whose left share has the law Beta(m, m); down to where doubles end."""
    for threshold in (0.5, 3.0, 20.0, 200.0, 630.0):
        share = np.exp(log_critical_share(np.array([20]), 40, threshold))[0]
        ratio = -20 * (np.log(2 * share) + np.log1p(1 - 2 * share))
        assert ratio == pytest.approx(threshold, rel=1e-12)
        for side, factor in (("rise", 1), ("change", 2)):
            p_value = null_law(40, 20, side).p_value(np.array([threshold]))[0]
            assert p_value == pytest.approx(factor * betainc(20, 20, share), rel=2e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("count", "smallest"), [(6, 3), (53, 5), (118, 11), (190, 10)])
def test_the_spline_between_thresholds(count, smallest, side):
    law = null_law(count, smallest, side)
    root = np.sqrt(law.thresholds)
    middle = ((root[1:] + root[:-1]) / 2)[:200:7] ** 2
    np.testing.assert_allclose(law.p_value(middle), tail(middle, count, smallest, side), rtol=1e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("count", "smallest"), [(20, 3), (118, 11)])
def test_p_values_without_a_change_are_even(count, smallest, side):
    """Levels against binomial bounds; `rise` has an atom at 1, where no split has a smaller right mean."""
    draws = 60_000
    p_value = scan(np.random.default_rng(11).exponential(size=(draws, count)), smallest, side).p_value
    for level in (0.5, 0.2, 0.05, 0.01, 0.001):
        assert binomtest(int((p_value <= level).sum()), draws, level).pvalue > 1e-4, level
    at_one = 1 - tail(np.zeros(1), count, smallest, side)[0]
    assert binomtest(int((p_value == 1).sum()), draws, at_one).pvalue > 1e-3


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("threshold", [6.0, 16.0, 40.0])
def test_deep_tail_against_importance_sampling(threshold, side):
    """The draws are made to reach the threshold, at a split chosen by its own Beta tail (Naiman, Priebe 2001).

    P(max >= x) = sum_s P(LR(s) >= x) E[1 / #{t : LR(t) >= x} | LR(s) >= x]
    """
    count, smallest, draws = 60, 6, 20_000
    rng = np.random.default_rng(3)
    part_S = np.arange(smallest, count - smallest + 1)
    low_S = np.exp(log_critical_share(part_S, count, threshold))
    own_S = betainc(part_S, count - part_S, low_S)
    split_R = rng.choice(part_S, draws, p=own_S / own_S.sum())
    # The share of the last `split` spacings, inside its tail; the rest uniform on the two simplices.
    share_R = betaincinv(split_R, count - split_R, rng.random(draws) * own_S[split_R - smallest])
    spacing_Rn = rng.exponential(size=(draws, count))
    last_Rn = np.arange(count) >= count - split_R[:, None]
    for own_Rn, whole_R in ((last_Rn, share_R), (~last_Rn, 1 - share_R)):
        spacing_Rn *= np.where(own_Rn, (whole_R / (spacing_Rn * own_Rn).sum(axis=1))[:, None], 1)
    right_RS = np.cumsum(spacing_Rn[:, ::-1], axis=1)[:, smallest - 1 : count - smallest]
    hits_R = (right_RS <= low_S * (1 + 1e-9)).sum(axis=1)
    if side == "change":
        hits_R += (1 - right_RS <= low_S[::-1] * (1 + 1e-9)).sum(axis=1)
    estimates_R = (2 if side == "change" else 1) * own_S.sum() / hits_R
    exact = null_law(count, smallest, side).p_value(np.array([threshold]))[0]
    assert abs(estimates_R.mean() - exact) < 4 * estimates_R.std() / np.sqrt(draws)
    assert estimates_R.std() / np.sqrt(draws) < 0.01 * exact


def test_the_tail_falls_to_the_end_of_the_table_and_stays():
    for side in SIDES:
        law = null_law(118, 11, side)
        p_value = law.p_value(np.array([0.0, *np.geomspace(1e-9, 640, 900)]))
        assert p_value[0] == 1.0 and (np.diff(p_value) <= 1e-9).all()
        assert 0 < p_value[-1] < 1e-270
        assert law.p_value(np.array([1e4]))[0] == p_value[-1]
        again = null_law.__wrapped__(118, 11, side)
        assert (again.log_tail == law.log_tail).all()


def test_half_a_million_points_can_be_corrected():
    """Holm at .05 over 500,000 points asks for 1e-7; a ratio of 20 is beyond it."""
    assert null_law(118, 11, "rise").p_value(np.array([20.0]))[0] < 1e-8
