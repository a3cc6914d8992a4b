from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from python_tests.analysis.strata.unions import subspaces
from stratcore.analysis import MixtureOfPPCA


def test_one_component_is_probabilistic_pca():
    """scikit-learn's PCA scores rows by the same density, but for its divisor N - 1."""
    x = np.random.default_rng(0).standard_normal((400, 6)) * [3, 2, 1, 0.3, 0.3, 0.3]
    found = MixtureOfPPCA(1, dims=3).fit(x)
    pca = PCA(3, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.variances_[0], pca.explained_variance_ * 399 / 400, rtol=1e-10)
    assert found.noise_variances_[0] == pytest.approx(pca.noise_variance_ * 399 / 400, rel=1e-10)
    assert found.score(x) == pytest.approx(pca.score(x), abs=1e-4)


def test_density_is_that_of_its_gaussians():
    x, _ = subspaces(noise=0.1)
    found = MixtureOfPPCA(3, random_state=0).fit(x)
    density = 0.0
    for w, mean, basis, values, noise in zip(
        found.weights_, found.means_, found.bases_, found.variances_, found.noise_variances_, strict=True
    ):
        cov = (basis * (values - noise)) @ basis.T + noise * np.eye(x.shape[1])
        density = density + w * multivariate_normal(mean, cov).pdf(x[:20])
    np.testing.assert_allclose(found.score_samples(x[:20]), np.log(density), rtol=1e-9)
    probability = found.predict_proba(x)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    assert (probability.argmax(axis=1) == found.predict(x)).all()
    assert found.lower_bound_ == pytest.approx(found.score(x), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_subspaces_of_one_center_and_their_dimensions(seed):
    x, truth = subspaces(seed=seed)
    found = MixtureOfPPCA(3, random_state=seed).fit(x)
    assert adjusted_rand_score(truth, found.predict(x)) > 0.95
    assert sorted(found.dims_) == [2, 3, 5] and found.converged_
    np.testing.assert_allclose(found.noise_variances_, 1e-4, rtol=0.15)
    np.testing.assert_allclose(found.weights_, 1 / 3, atol=0.02)


@pytest.mark.parametrize("dims", [1, (0, 2, 4)])
def test_likelihood_never_falls_with_given_dimensions(dims):
    x, _ = subspaces(noise=0.5)
    found = MixtureOfPPCA(3, dims=dims, n_init=1, tol=1e-9, random_state=0).fit(x)
    assert found.n_iter_ > 5 and np.diff(found.lower_bounds_).min() > -1e-9


def test_held_out_rows_are_likelier_under_the_right_number():
    x, _ = subspaces(per=200)
    scores = [MixtureOfPPCA(count, random_state=0).fit(x[:400]).score(x[400:]) for count in (1, 2, 3)]
    assert scores[0] + 1 < scores[1] and scores[1] + 1 < scores[2]


def test_rows_that_repeat_have_a_finite_density():
    rows = np.repeat(np.eye(3), 10, axis=0)
    found = MixtureOfPPCA(3, random_state=0).fit(rows)
    assert np.isfinite(found.score(rows)) and len(np.unique(found.predict(rows))) == 3
    assert (found.noise_variances_ == 1e-6 * (rows - rows.mean(axis=0)).var()).all()
    constant = MixtureOfPPCA(2, random_state=0).fit(np.ones((8, 2)))
    assert np.isfinite(constant.lower_bound_) and len(np.unique(constant.predict(np.ones((8, 2))))) == 1


def test_more_components_than_structure_leave_none_with_infinite_density():
    x = np.random.default_rng(0).standard_normal((30, 8))
    found = MixtureOfPPCA(10, max_iter=60, random_state=0).fit(x)
    assert np.isfinite(found.lower_bound_) and (found.dims_ <= 15).all()
    assert found.noise_variances_.min() > 1e-4


def test_one_feature():
    x = np.r_[np.random.default_rng(0).normal(0, 1, 100), np.random.default_rng(1).normal(30, 1, 100)][
        :, None
    ]
    found = MixtureOfPPCA(2, random_state=0).fit(x)
    assert adjusted_rand_score(np.repeat([0, 1], 100), found.predict(x)) == 1 and (found.dims_ == 0).all()


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (MixtureOfPPCA(30), r"n_components: expected 1 to 12 \(the rows\), got 30"),
        (MixtureOfPPCA(2, dims=(1, 4)), r"dims: expected 2 dimensions from 0 to 3, got \(1, 4\)"),
        (MixtureOfPPCA(2, noise_floor=0), "noise_floor: expected >= 1, >= 1 and a share"),
    ],
)
def test_rejects(estimator, words):
    with pytest.raises(ValueError, match=words):
        estimator.fit(np.random.default_rng(0).standard_normal((12, 4)))


@pytest.mark.parametrize("dims", [None, 1])
def test_the_likeliest_step_is_kept(dims):
    """With few rows a component loses its own and begins again, so the likelihood falls."""
    falls = 0
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((20, 3))
        found = MixtureOfPPCA(6, dims=dims, n_init=1, max_iter=30, random_state=seed).fit(x)
        falls += found.lower_bounds_[-1] < max(found.lower_bounds_)
        assert found.score(x) == pytest.approx(found.lower_bound_, rel=1e-9) == max(found.lower_bounds_)
    assert falls > 2
