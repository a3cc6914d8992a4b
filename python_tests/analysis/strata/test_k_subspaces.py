from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from python_tests.analysis.strata.unions import subspaces
from stratcore.analysis import KSubspaces


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_finds_subspaces_of_one_center_and_their_dimensions(affine, seed):
    x, truth = subspaces(seed=seed)
    found = KSubspaces(3, affine=affine, random_state=seed).fit(x)
    assert adjusted_rand_score(truth, found.labels_) > 0.95
    assert sorted(found.dims_) == [2, 3, 5] and found.converged_
    assert found.noise_variance_ == pytest.approx(1e-4, rel=0.1)
    assert adjusted_rand_score(truth, KMeans(3, n_init=10, random_state=0).fit_predict(x)) < 0.3


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("dims", [None, 6])
def test_rounding_is_no_direction(dims, offset):
    x, _ = subspaces(noise=0.0)
    x = (x + offset).astype(np.float32)
    found = KSubspaces(3, dims=dims, random_state=0).fit(x)
    assert sorted(found.dims_) == [2, 3, 5]


def test_parallel_planes_need_centers():
    x, truth = subspaces(dims=(2, 2), seed=3)
    basis = np.linalg.svd(x[truth == 0])[2][:2]
    plane = np.random.default_rng(0).standard_normal((200, 2)) @ basis
    shift = np.r_[np.zeros(14), 3, 0] @ (np.eye(16) - basis.T @ basis)
    rows = plane + np.repeat([[0.0], [1.0]], 100, axis=0) * shift
    label = np.repeat([0, 1], 100)
    assert adjusted_rand_score(label, KSubspaces(2, dims=2, random_state=0).fit_predict(rows)) == 1
    linear = KSubspaces(2, dims=2, affine=False, random_state=0).fit(rows)
    assert (linear.cluster_centers_ == 0).all()


def test_given_dimensions_go_to_the_clusters_they_fit():
    x, truth = subspaces()
    for dims in ((5, 2, 3), (2, 3, 5)):
        found = KSubspaces(3, dims=dims, random_state=0).fit(x)
        for stratum, dim in enumerate((2, 3, 5)):
            cluster = np.bincount(found.labels_[truth == stratum]).argmax()
            assert found.dims_[cluster] == dim


def test_dimension_zero_is_kmeans():
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(4) * 8, 40, axis=0) + rng.standard_normal((160, 4))
    found = KSubspaces(4, dims=0, random_state=0).fit(x)
    kmeans = KMeans(4, n_init=10, random_state=0).fit(x)
    assert found.inertia_ == pytest.approx(kmeans.inertia_, rel=1e-9)
    assert adjusted_rand_score(found.labels_, kmeans.labels_) == 1


@pytest.mark.parametrize("dims", [None, 2, (1, 2, 4)])
def test_objective_of_given_dimensions_never_grows(dims):
    x, _ = subspaces(noise=0.5)
    inertia = [
        KSubspaces(3, dims=dims, n_init=1, max_iter=steps, random_state=5).fit(x).inertia_
        for steps in (1, 2, 4, 8)
    ]
    assert dims is None or (np.diff(inertia) <= 1e-9).all()


def test_distances_scores_and_predictions_agree():
    x, _ = subspaces()
    found = KSubspaces(3, random_state=0).fit(x)
    assert (found.predict(x) == found.labels_).all()
    nearest = found.distances(x)[np.arange(len(x)), found.labels_]
    basis, center = found.bases_[found.labels_[0]], found.cluster_centers_[found.labels_[0]]
    residual = (x[0] - center) - basis @ (basis.T @ (x[0] - center))
    assert nearest[0] == pytest.approx(np.linalg.norm(residual), rel=1e-6)
    assert found.score(x) == pytest.approx(-found.inertia_ / len(x), rel=1e-6)
    assert (nearest**2).sum() == pytest.approx(found.inertia_, rel=1e-6)


def test_large_subspaces_do_not_swallow_small_ones():
    """Without the rate a cluster of 9 dimensions would hold those of 2, 3 and 4 dimensions together."""
    x, truth = subspaces(dims=(2, 3, 4, 9), ambient=20, per=150)
    found = KSubspaces(4, random_state=0).fit(x)
    assert sorted(found.dims_) == [2, 3, 4, 9] and adjusted_rand_score(truth, found.labels_) > 0.95


@pytest.mark.parametrize("rows", [np.ones((20, 3)), np.repeat(np.eye(3), 7, axis=0), np.zeros((5, 1))])
def test_rows_that_repeat_are_fitted_without_residual(rows):
    found = KSubspaces(3, random_state=0).fit(rows)
    assert found.inertia_ == pytest.approx(0, abs=1e-20) and found.converged_
    assert (found.dims_ == 0).all() and len(np.unique(found.labels_)) == len(np.unique(rows, axis=0))


def test_one_call_like_another():
    x, _ = subspaces(noise=0.3)
    first, second = (KSubspaces(3, random_state=4).fit(x) for _ in range(2))
    assert (first.labels_ == second.labels_).all() and first.inertia_ == second.inertia_


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (KSubspaces(30), r"n_clusters: expected 1 to 12 \(the rows\), got 30"),
        (KSubspaces(2, dims=4), "dims: expected 2 dimensions from 0 to 3, got 4"),
        (KSubspaces(2, n_init=0), "n_init and max_iter: expected >= 1"),
    ],
)
def test_rejects(estimator, words):
    with pytest.raises(ValueError, match=words):
        estimator.fit(np.random.default_rng(0).standard_normal((12, 4)))
