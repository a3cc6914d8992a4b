"""The published procedure against a literal transcription of its description."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle.reference import published_strata, reference_test
from stratcore.analysis.neighbors import nearest_neighbors
from stratcore.data.manifolds import sphere
from stratcore.data.singular import cusp, lollipop

SPACES = {"sphere": lambda: sphere(300, 2), "lollipop": lambda: lollipop(300), "cusp": lambda: cusp(300)}


def transcription(radii, first, last, width, alpha):
    """First change of one point by the words of the procedure: index, p of every position, two slopes."""
    ranks = np.arange(first, last)
    radii = radii[first - 1 : last - 1]
    slopes = np.gradient(np.log(ranks)) / np.gradient(np.log(radii))
    p_values, hit = [], None
    for w in range(2 * width, len(slopes) - 2 * width):
        before, after = slopes[w - 2 * width : w - width], slopes[w + width : w + 2 * width]
        p_values.append(ttest_ind(before, after, equal_var=False).pvalue)
        if hit is None and p_values[-1] < alpha:
            hit = w
    parts = [slice(0, hit), slice(hit, None)] if hit is not None else [slice(None)]
    lines = [np.polyfit(np.log(radii[part]), np.log(ranks[part]), 1)[0] for part in parts]
    return hit, min(p_values), lines


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("window", "width", "alpha"), [((10, 200), 10, 1e-3 / 3), ((5, 80), 6, 0.01)])
def test_equals_the_transcription(space, window, width, alpha):
    radii = nearest_neighbors(SPACES[space]().points, 220, queries=np.arange(0, 300, 20)).distances
    found = reference_test(radii, window, "change", width=width, alpha=alpha)
    hits = 0
    for row, own in enumerate(radii):
        hit, smallest, lines = transcription(own, *window, width, alpha)
        assert found.p_value[row] == pytest.approx(smallest, abs=1e-9, rel=1e-9)
        assert found.rejected[row] == (hit is not None)
        assert found.rank[row] == (0 if hit is None else window[0] + hit)
        assert found.inside[row] == pytest.approx(lines[0], rel=1e-9)
        if hit is None:
            assert np.isnan(found.outside[row])
        else:
            hits += 1
            assert found.outside[row] == pytest.approx(lines[1], rel=1e-9)
    assert hits > 0 or space == "sphere" or width == 10


def test_a_rise_is_a_change_with_a_larger_slope_beyond():
    radii = nearest_neighbors(cusp(400).points, 220).distances
    change, rise = (reference_test(radii, (10, 200), side) for side in ("change", "rise"))
    assert 0 < rise.rejected.sum() < change.rejected.sum()
    assert not (rise.rejected & ~change.rejected).any()


def test_a_reach_leaves_out_what_lies_beyond():
    radii = nearest_neighbors(lollipop(300).points, 220).distances
    whole = reference_test(radii, (10, 200), "change")
    near = reference_test(radii, (10, 200), "change", reach=float(np.median(radii[:, 80])))
    assert near.rejected.sum() < whole.rejected.sum()
    assert np.isnan(reference_test(radii, (10, 200), "change", reach=1e-9).p_value).all()


@pytest.mark.parametrize("window", [(10, 50), (1, 41)])
def test_an_empty_scan_is_refused(window):
    with pytest.raises(
        ValueError, match="the scan is empty and can never reject; expected at least 41 ranks"
    ):
        reference_test(np.sort(np.random.default_rng(0).random((3, 60)), axis=1), window, "change")
    reference_test(np.sort(np.random.default_rng(0).random((3, 60)), axis=1), (10, 51), "change")


def published(sorted_distances, vol_min, vol_max, npts, ws, alpha, nstrat):
    """The public procedure word by word, with the point itself at index 0 of its sorted distances."""
    radii, volumes = sorted_distances[vol_min:vol_max], np.arange(vol_min, vol_max)
    rows, begin = [], int(np.argmax(radii > 1e-10))
    for _ in range(nstrat):
        own_radii, own_volumes, change, p_value = radii[begin:], volumes[begin:], None, 1.0
        slopes = np.gradient(np.log(own_volumes)) / np.gradient(np.log(own_radii))
        for w in range(2 * ws, len(slopes) - 2 * ws):
            p = ttest_ind(slopes[w - 2 * ws : w - ws], slopes[w + ws : w + 2 * ws], equal_var=False).pvalue
            if p < alpha / nstrat:
                change, p_value = w, p
                break
        r, v = own_radii[:change], own_volumes[:change]
        columns = np.column_stack([np.ones_like(r), np.log(r)])
        (intercept, dimension), residual, *_ = np.linalg.lstsq(columns, np.log(v), rcond=None)
        scaling = np.exp(intercept) / npts * np.exp(0.5 * residual[0] ** 2)
        ricci = np.mean(-residual[0] * 6 * (dimension + 2) / r**2)
        rows.append((vol_min + begin, radii[begin], p_value, dimension, scaling, ricci))
        if change is None:
            break
        begin += change
    return rows


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("window", "width", "alpha"), [((20, 200), 10, 1e-3), ((10, 200), 10, 0.05), ((1, 90), 5, 0.05)]
)
def test_strata_equal_the_public_procedure(space, window, width, alpha):
    points = SPACES[space]().points
    points[:5] = points[5]  # copies: zero radii, which the procedure skips
    queries = np.r_[0, np.arange(10, 300, 24)]
    radii = nearest_neighbors(points, 220, queries=queries).distances
    found = published_strata(radii, window, 300, width=width, alpha=alpha)
    for row, own in enumerate(radii):
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = published(np.r_[0.0, own], *window, 300, width, alpha, 3)
        assert found.count[row] == len(expected)
        assert found.start[row, : len(expected)].tolist() == [stratum[0] for stratum in expected]
        names = ("radius", "p_value", "dimension", "scaling", "ricci")
        values = np.stack([getattr(found, name)[row] for name in names], axis=1)
        wanted = np.array([stratum[1:] for stratum in expected])
        np.testing.assert_allclose(values[: len(expected), 1], wanted[:, 1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(values[: len(expected)], wanted, rtol=1e-7)
        assert np.isnan(values[len(expected) :]).all() and not found.start[row, len(expected) :].any()
    assert alpha < 0.05 or (found.count == 3).any()


def test_strata_say_whether_the_dimension_rises():
    rng = np.random.default_rng(0)
    v = np.arange(1, 200)
    for first, second, rises in ((1.0, 8.0, True), (8.0, 1.0, False)):
        spacing = rng.exponential(size=(20, 199)) / np.where(v < 100, first, second) / 50
        steady = 1 / v / np.where(v < 100, first, second)
        radii = np.exp(np.cumsum(np.pad(steady + spacing / v, ((0, 0), (1, 0))), axis=1))
        found = published_strata(radii, (10, 190), 300, alpha=1e-7)
        assert (found.count >= 2).all()
        assert (found.rise[:, 0] == rises).all()
        assert (np.abs(found.start[:, 1] - 100) < 25).all()


def test_strata_refuse_an_empty_scan():
    with pytest.raises(ValueError, match="the scan is empty and can never reject"):
        published_strata(np.ones((1, 60)), (10, 50), 300)
