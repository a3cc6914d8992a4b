"""The spacings test: size on flat tori, power, ties, the split that is named beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from stratcore.analysis.fiber_bundle.spacings import fixed_split_p_values, spacings_of, spacings_test


def torus_radii(centers, dim, neighbors, seed=0):
    """Distances within a flat torus from independent centers, each in a cloud of its own."""
    rng = np.random.default_rng(seed)
    radii = []
    for _ in range(centers):
        gap = np.abs(rng.random((6 * neighbors, dim)) - 0.5)  # from the point (.5, ...): no wrap is needed
        radii.append(np.sort(np.sqrt((gap**2).sum(axis=1)))[:neighbors])
    return np.array(radii)


@pytest.mark.parametrize("dim", [1, 2])
def test_spacings_are_exponential_of_the_dimension(dim):
    spacings = spacings_of(torus_radii(400, dim, 40), (1, 40))
    assert kstest(spacings.ravel() * dim, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(spacings[:, :-1].ravel(), spacings[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("side", ["change", "rise"])
@pytest.mark.parametrize("dim", [1, 2, 4, 6])
def test_size_on_flat_tori(dim, side):
    """2,400 independent centers; the standard error at .05 is .0044."""
    neighbors = 48 if dim < 6 else 16
    p_value = spacings_test(torus_radii(2400, dim, neighbors, seed=dim), (1, neighbors), side).p_value
    assert 0.035 <= (p_value <= 0.05).mean() <= 0.065
    assert kstest(p_value[p_value < 0.8], lambda p: p / 0.8).pvalue > 1e-3


@pytest.mark.parametrize("side", ["change", "rise"])
def test_size_on_a_flat_torus(side):
    p_value = spacings_test(torus_radii(2000, 2, 48), (1, 48), side).p_value
    assert 0.035 <= (p_value <= 0.05).mean() <= 0.065


def broken_radii(points, inside, outside, rank, neighbors, seed=0):
    """Radii whose dimension changes beyond a rank, by the spacings themselves."""
    rng = np.random.default_rng(seed)
    v = np.arange(1, neighbors)
    spacing = rng.exponential(size=(points, neighbors - 1)) / np.where(v < rank, inside, outside)
    return np.exp(np.cumsum(np.pad(spacing / v, ((0, 0), (1, 0))), axis=1))


def test_a_change_is_found_where_it_is():
    found = spacings_test(broken_radii(200, 1.0, 6.0, 60, 128), (10, 128), "rise")
    assert (found.p_value < 1e-6).mean() > 0.95
    assert np.median(np.abs(found.rank - 60)) <= 2
    assert np.median(found.inside) == pytest.approx(1, rel=0.1)
    assert np.median(found.outside) == pytest.approx(6, rel=0.1)
    falling = broken_radii(200, 6.0, 1.0, 60, 128)
    assert (spacings_test(falling, (10, 128), "rise").p_value > 0.05).mean() > 0.9
    assert (spacings_test(falling, (10, 128), "change").p_value < 1e-6).mean() > 0.95


def test_dimension_without_a_change_is_that_of_the_window():
    radii = torus_radii(30, 2, 60)
    found = spacings_test(radii, (5, 60), "rise")
    still = found.rank == 0
    assert still.any() and np.isnan(found.outside[still]).all()
    np.testing.assert_allclose(found.inside[still], 1 / spacings_of(radii, (5, 60)).mean(axis=1)[still])


def test_equal_distances_are_refused():
    radii = torus_radii(4, 2, 40)
    radii[0, 20] = radii[0, 19]
    radii[1, :2] = 0.0
    found = spacings_test(radii, (1, 40), "change")
    assert np.isnan(found.p_value).tolist() == [True, True, False, False]
    assert not found.rejected[:2].any()
    assert np.isfinite(
        spacings_test(radii, (3, 19), "change").p_value
    ).all()  # beyond the copies, before the tie


@pytest.mark.parametrize("side", ["change", "rise"])
def test_fixed_split_is_even_under_the_null_and_finds_a_change(side):
    p_value = fixed_split_p_values(torus_radii(2000, 2, 48), (1, 48), 24, side)
    assert kstest(p_value, "uniform").pvalue > 1e-3
    assert (fixed_split_p_values(broken_radii(100, 1.0, 4.0, 24, 48), (1, 48), 24, side) < 1e-3).mean() > 0.8


def test_a_window_must_be_covered():
    radii = torus_radii(2, 1, 20)
    for window in ((0, 10), (5, 5), (1, 21)):
        with pytest.raises(ValueError, match="window: expected ranks 1 <= first < last <= 20"):
            spacings_test(radii, window, "change")
    with pytest.raises(ValueError, match="split: expected a rank between 1 and 20"):
        fixed_split_p_values(radii, (1, 20), 20, "change")
