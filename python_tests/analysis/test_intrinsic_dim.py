import numpy as np
import pytest

from stratcore.analysis import (
    NoiseFloorDimension,
    PCADimension,
    covariance_eigenvalues,
    effective_rank,
    participation_ratio,
    stratum_dimensions,
)


def _plane(rng, dimension, num_rows=2000, ambient=64, noise=0.01):
    basis, _ = np.linalg.qr(rng.standard_normal((ambient, dimension)))
    return rng.standard_normal((num_rows, dimension)) @ basis.T + noise * rng.standard_normal(
        (num_rows, ambient)
    )


@pytest.mark.parametrize("dimension", [1, 2, 4, 8, 16])
def test_noise_floor_counts_the_dimension_of_a_plane(dimension):
    rows = _plane(np.random.default_rng(dimension), dimension)
    assert NoiseFloorDimension(noise_variance=1e-4).fit(rows).dimension_ == dimension


@pytest.mark.parametrize("dimension", [2, 4, 8, 16])
def test_noise_floor_of_a_sphere_is_that_of_its_span(dimension):
    rng = np.random.default_rng(dimension)
    rows = _plane(rng, dimension + 1, noise=0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) + 0.01 * rng.standard_normal(rows.shape)
    assert NoiseFloorDimension(noise_variance=1e-4).fit(rows).dimension_ == dimension + 1


def test_pure_noise_has_dimension_zero():
    rows = np.random.default_rng(0).standard_normal((500, 64))
    assert NoiseFloorDimension(noise_variance=1.0, margin=0.1).fit(rows).dimension_ == 0


def test_pca_dimension_is_the_smallest_count_that_holds_the_share():
    # Variances 4, 3, 2, 1 exactly: shares .4, .3, .2, .1.
    rows = np.concatenate([np.diag(np.sqrt([4, 3, 2, 1.0])), -np.diag(np.sqrt([4, 3, 2, 1.0]))])
    found = {
        share: PCADimension(share).fit(rows).dimension_ for share in (0.4, 0.41, 0.7, 0.75, 0.9, 0.91, 1.0)
    }
    assert found == {0.4: 1, 0.41: 2, 0.7: 2, 0.75: 3, 0.9: 3, 0.91: 4, 1.0: 4}
    np.testing.assert_allclose(PCADimension().fit(rows).explained_variance_ratio_, [0.4, 0.3, 0.2, 0.1])


def test_pca_dimension_is_clipped_to_what_rows_can_span():
    rows = np.random.default_rng(0).standard_normal((4, 64))
    assert PCADimension(1.0).fit(rows).dimension_ == 3


def test_eigenvalues_are_those_of_the_covariance():
    rows = np.random.default_rng(0).standard_normal((50, 6)) * np.arange(1, 7)
    expected = np.sort(np.linalg.eigvalsh(np.cov(rows.T)))[::-1]
    np.testing.assert_allclose(covariance_eigenvalues(rows), expected, rtol=1e-12)


def test_rank_measures_count_equal_eigenvalues_and_fall_for_unequal_ones():
    assert effective_rank([2.0] * 5 + [0.0] * 3) == pytest.approx(5)
    assert participation_ratio([2.0] * 5 + [0.0] * 3) == pytest.approx(5)
    assert participation_ratio([3.0, 1.0]) == pytest.approx(1.6)
    assert effective_rank([3.0, 1.0]) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_strata_get_their_own_dimensions_in_sorted_order():
    rng = np.random.default_rng(1)
    rows = np.concatenate([_plane(rng, 8, 800), _plane(rng, 2, 600), np.ones((3, 64))])
    labels = ["wide"] * 800 + ["flat"] * 600 + ["point"] * 3
    flat, point, wide = stratum_dimensions(rows, labels, variance=0.95, noise_variance=1e-4)
    assert (flat.stratum, flat.num_rows, flat.pca_dimension, flat.noise_floor_dimension) == (
        "flat",
        600,
        2,
        2,
    )
    assert (wide.pca_dimension, wide.noise_floor_dimension) == (8, 8)
    assert wide.participation_ratio == pytest.approx(8, abs=0.2)
    assert (point.num_rows, point.pca_dimension, point.effective_rank) == (3, None, None)
    assert stratum_dimensions(rows, labels)[0].noise_floor_dimension is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PCADimension().fit([[1.0, np.nan], [0, 1]]), "row 0 holds NaN"),
        (lambda: PCADimension().fit([[1.0, 2.0]]), "minimum of 2"),
        (lambda: PCADimension().fit(np.ones((4, 3))), "not all zero"),
        (lambda: PCADimension(1.5).fit(np.eye(3)), "variance: expected a share"),
        (lambda: NoiseFloorDimension(0.0).fit(np.eye(3)), "noise_variance"),
        (lambda: stratum_dimensions(np.eye(3), [0, 1]), "a label for each of 3 rows"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 100])
def test_rounding_is_no_dimension(dtype, offset):
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((500, 3)) @ rng.standard_normal((3, 200)) + offset).astype(dtype)
    assert PCADimension(1.0).fit(rows).dimension_ == 3
    assert np.count_nonzero(covariance_eigenvalues(rows)) == 3
