"""The published procedure against a literal transcription of its description."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle.reference import reference_test
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
