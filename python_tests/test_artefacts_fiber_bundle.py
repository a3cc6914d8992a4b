"""Artefacts E1 and E2: each test fails on the rule of the source documents, or the published one, and passes on ours.

Legend: N points, K neighbors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle import corrected_p_values, reference_test, source_rule, spacings_test
from stratcore.analysis.neighbors import nearest_neighbors
from stratcore.data.manifolds import SMOOTH_NULLS
from stratcore.data.singular import line_in_hollow_ball

Rule = Callable[[np.ndarray], np.ndarray]  # radii [N, K] -> rejected [N]


# ---- E1: "69.7 to 90.5 % fiber-bundle rejections" is what the rule finds on smooth manifolds


def by_source_rule(radii_NK: np.ndarray) -> np.ndarray:
    return source_rule(radii_NK).rejected


def by_spacings(radii_NK: np.ndarray) -> np.ndarray:
    return corrected_p_values(spacings_test(radii_NK, (10, 128), "rise").p_value, "holm") <= 0.05


def check_smooth_points_are_kept(rule: Rule, names: tuple[str, ...]) -> None:
    """Raises unless the rule keeps every point of smooth manifolds, standard-scaled as the source scales its data."""
    shares = {}
    for name in names:
        points_ND = SMOOTH_NULLS[name].draw(1200, 0).points
        scaled_ND = (points_ND - points_ND.mean(axis=0)) / points_ND.std(axis=0)
        shares[name] = float(rule(nearest_neighbors(scaled_ND, 1199).distances).mean())
    assert not any(shares.values()), f"rejected on smooth manifolds: {shares}"


SMOOTH = ("sphere 7", "stiefel 2 in 4", "gaussian 8", "cube 8")


def test_e1_rejections_of_smooth_manifolds():
    check_smooth_points_are_kept(by_spacings, SMOOTH)
    with pytest.raises(AssertionError, match="rejected on smooth manifolds") as red:
        check_smooth_points_are_kept(by_source_rule, SMOOTH)
    assert str(red.value).splitlines()[0].count(": 1.0") == len(SMOOTH), "every point of every one of them"


def test_e1_the_rule_measures_the_first_neighbor():
    """The slope is 0 until the first neighbor, then the dimension: where that is beyond the grid, nothing rejects."""
    radii_NK = 8**0.5 * nearest_neighbors(SMOOTH_NULLS["sphere 7"].draw(400, 0).points, 399).distances
    assert by_source_rule(radii_NK).all()
    assert not by_source_rule(1000 * radii_NK).any()
    np.testing.assert_array_equal(by_spacings(radii_NK), by_spacings(1000 * radii_NK))


# ---- E2: the published code, at the defaults of its command line, can never reject anything


def published_defaults(radii_NK: np.ndarray) -> np.ndarray:
    """vol_min 10, vol_max 50, ws 10: the positions are range(20, 20)."""
    rejected_N = np.zeros(len(radii_NK), dtype=bool)
    log_volume = np.log(np.arange(10, 50))
    for row, radii in enumerate(radii_NK[:, 9:49]):
        slopes = np.gradient(log_volume) / np.gradient(np.log(radii))
        for w in range(20, len(slopes) - 20):
            p_value = ttest_ind(slopes[w - 20 : w - 10], slopes[w + 10 : w + 20], equal_var=False).pvalue
            rejected_N[row] |= p_value < 1e-3
    return rejected_N


def check_a_rise_is_seen(rule: Rule) -> None:
    """Raises unless most points of a line inside a hollow ball, 1-dimensional near and 6 far, are rejected."""
    space = line_in_hollow_ball()
    queries = np.flatnonzero(space.stratum == 0)
    radii_NK = nearest_neighbors(space.points, 128, queries=queries).distances
    share = float(rule(radii_NK).mean())
    assert share > 0.9, f"found at {share:.0%} of the points"


def test_e2_empty_scan():
    check_a_rise_is_seen(by_spacings)
    with pytest.raises(AssertionError, match="found at 0% of the points"):
        check_a_rise_is_seen(published_defaults)


def test_e2_a_scan_that_can_never_reject_is_refused():
    with pytest.raises(
        ValueError, match="window: 10 to 50 leaves no position .* the scan is empty and can never reject"
    ):
        check_a_rise_is_seen(lambda radii_NK: reference_test(radii_NK, (10, 50), "change").rejected)
