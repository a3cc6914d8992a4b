from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from python_tests.analysis.strata.unions import subspaces
from stratcore.analysis import DBSCANOptions, KSubspaces, fit_strata, k_distance
from stratcore.analysis.strata import fit
from stratcore.analysis.strata.fit import StrataMethod

METHODS = [method for method in get_args(StrataMethod) if method != "given"]


def _blobs(seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(4), 40)
    return np.eye(6)[truth] * 30 + rng.standard_normal((160, 6)), truth


def _count(method, number):
    return None if method == "dbscan" else number


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_distant_blobs_and_repeats_itself(method):
    x, truth = _blobs()
    found = fit_strata(x, method, _count(method, 4), seed=2)
    kept = found.labels >= 0
    assert adjusted_rand_score(truth[kept], found.labels[kept]) == 1
    assert (found.method, found.seed, found.num_strata) == (method, 2, 4) and found.converged
    assert found.num_noise == (~kept).sum() <= 16 and found.labels.dtype == np.int64
    again = fit_strata(torch.from_numpy(x), method, _count(method, 4), seed=2)
    assert (found.labels == again.labels).all()


@pytest.mark.parametrize("method", METHODS)
def test_other_rows_get_strata_where_the_method_has_a_rule(method):
    x, truth = _blobs()
    found = fit_strata(x, method, _count(method, 4))
    if method in ("dbscan", "agglomerative"):
        with pytest.raises(ValueError, match=f"method '{method}': has no rule for rows"):
            found.predict(x)
    else:
        assert adjusted_rand_score(truth, found.predict(_blobs(seed=1)[0])) == 1


def test_dimensions_come_from_the_methods_that_have_them():
    x, _ = subspaces()
    for method in ("k_subspaces", "mixture_of_ppca"):
        assert sorted(fit_strata(x, method, 3).dims) == [2, 3, 5]
        assert fit_strata(x, method, 3, dims=2).dims == (2, 2, 2)
    assert fit_strata(x, "kmeans", 3).dims is None


def test_radius_is_the_percentile_of_the_distances_to_the_kth_other_row():
    x, _ = subspaces(noise=0.3)
    distances = NearestNeighbors(n_neighbors=5).fit(x).kneighbors()[0][:, -1]
    assert k_distance(x, 5, 90) == pytest.approx(np.percentile(distances, 90), rel=1e-9)
    found = fit_strata(x, "dbscan").estimator
    assert found.eps == pytest.approx(np.percentile(distances, 90), rel=1e-9) and found.min_samples == 5
    own = fit_strata(x, "dbscan", dbscan=DBSCANOptions(eps=0.25, min_samples=3)).estimator
    assert (own.eps, own.min_samples) == (0.25, 3)


def test_noise_of_dbscan_is_no_stratum():
    x, _ = _blobs()
    found = fit_strata(np.r_[x, 500 * np.eye(6)[4:]], "dbscan")
    assert (found.labels[-2:] == -1).all() and found.num_strata == 4 and found.num_noise >= 2
    alone = fit_strata(np.eye(4) * [[1], [10], [100], [1000]], "dbscan", dbscan=DBSCANOptions(eps=0.1))
    assert (alone.num_strata, alone.num_noise) == (0, 4)


def test_labels_that_are_given_pass_through():
    x, truth = _blobs()
    names = np.array(["a", "b", "c", "d"])[truth]
    found = fit_strata(x, "given", labels=names)
    assert (found.labels == names).all() and found.num_strata == 4 and found.estimator is None
    noisy = fit_strata(x, "given", labels=np.where(truth == 0, -1, truth))
    assert (noisy.num_strata, noisy.num_noise) == (3, 40)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "rows", [np.ones((20, 3)), np.zeros((20, 1)), np.repeat(np.eye(3), 8, axis=0)[:, :2]]
)
def test_rows_that_repeat(method, rows):
    found = fit_strata(rows, method, _count(method, 3))
    distinct = len(np.unique(rows, axis=0))
    if method == "agglomerative":  # cuts equal rows apart
        distinct = 3
    elif method == "spherical_kmeans":  # rows of zeros have no direction of their own
        distinct = min(distinct, 2)
    assert found.num_strata == distinct and found.converged and found.num_noise == 0
    if method != "agglomerative":
        assert all(len(np.unique(found.labels[(rows == row).all(axis=1)])) == 1 for row in rows)


@pytest.mark.parametrize("method", METHODS)
def test_one_stratum_and_one_row(method):
    x, _ = _blobs()
    if method != "dbscan":
        assert not fit_strata(x, method, 1).labels.any()
    alone = fit_strata(x[:1], method, _count(method, 1))
    assert alone.labels.tolist() == ([-1] if method == "dbscan" else [0])


def test_steps_that_run_out_are_told(monkeypatch):
    monkeypatch.setitem(
        fit._ESTIMATORS, "k_subspaces", lambda x, c, s, d: KSubspaces(c, dims=d, max_iter=1, random_state=s)
    )
    cloud = np.random.default_rng(0).standard_normal((200, 6))
    assert not fit_strata(cloud, "k_subspaces", 5, dims=2).converged


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: fit_strata(x, "ward", 2), "method: expected one of kmeans, .* got 'ward'"),
        (lambda x: fit_strata(x, "kmeans", 13), r"num_strata: expected 1 to 12 \(the rows\), got 13"),
        (lambda x: fit_strata(x, "kmeans"), r"num_strata: expected 1 to 12 \(the rows\), got None"),
        (lambda x: fit_strata(x, "dbscan", 3), "num_strata: 'dbscan' finds their number itself"),
        (lambda x: fit_strata(x, "kmeans", 3, dims=2), "dims: expected None for 'kmeans', got 2"),
        (lambda x: fit_strata(x, "given"), "labels: expected with method='given'"),
        (lambda x: fit_strata(x, "kmeans", 2, labels=[0] * 12), "labels: expected with method='given'"),
        (lambda x: fit_strata(x, "given", labels=[0, 1]), "labels: expected a label for each of 12 rows"),
        (lambda x: fit_strata(x * np.nan, "kmeans", 2), "X: row 0 holds NaN or infinity"),
        (lambda x: fit_strata(x, "dbscan", dbscan=DBSCANOptions(eps=-1.0)), "dbscan: expected eps > 0"),
        (lambda x: k_distance(x, 3, 101), r"a number in \(0, 100\]"),
        (
            lambda x: fit_strata(np.zeros((fit.MAX_AGGLOMERATIVE_ROWS + 1, 1)), "agglomerative", 2),
            "expected at most 20000 rows, got 20001",
        ),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0).standard_normal((12, 3)))
