import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from stratcore.analysis import cluster_baselines, cluster_labels


@pytest.mark.parametrize("method", ["kmeans", "spherical_kmeans", "gaussian_mixture"])
def test_baselines_find_blobs_and_repeat_with_their_seed(method):
    x, y = make_blobs(600, 8, centers=np.eye(8)[:4] * 20, random_state=0)
    labels = cluster_labels(method, x[:400], x[400:], 4, seed=1)
    assert adjusted_rand_score(y[400:], labels) == 1
    assert (labels == cluster_labels(method, x[:400], x[400:], 4, seed=1)).all()


def test_spherical_kmeans_ignores_length():
    rng = np.random.default_rng(0)
    direction = np.repeat(np.eye(6)[:3], 100, axis=0) + 0.05 * rng.standard_normal((300, 6))
    x = direction * rng.uniform(0.1, 100, size=(300, 1))
    truth = np.repeat([0, 1, 2], 100)
    assert adjusted_rand_score(truth, cluster_labels("spherical_kmeans", x, x, 3, seed=0)) == 1
    assert adjusted_rand_score(truth, cluster_labels("kmeans", x, x, 3, seed=0)) < 0.9


def test_spherical_kmeans_is_not_drawn_to_large_clusters():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], [900, 30])
    x = np.array([[1, 0, 0], [1, 1, 0]])[truth] + 0.03 * rng.standard_normal((930, 3))
    assert adjusted_rand_score(truth, cluster_labels("spherical_kmeans", x, x, 2, seed=0)) == 1


def test_cluster_baselines_report_mean_and_range_over_seeds():
    x, y = make_blobs(300, 4, centers=3, cluster_std=4.0, random_state=0)
    found = cluster_baselines(x, x, y, 3, seeds=(0, 1, 2))
    assert [baseline.name for baseline in found] == ["KMeans", "spherical KMeans", "Gaussian mixture"]
    for baseline in found:
        assert baseline.num_seeds == 3
        assert baseline.ari_low <= baseline.ari <= baseline.ari_high
        assert baseline.nmi_low <= baseline.nmi <= baseline.nmi_high


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: cluster_labels("kmeans", np.eye(3), np.eye(3), 4, 0),
            r"expected 1 to 3 \(the rows\), got 4",
        ),
        (lambda: cluster_labels("dbscan", np.eye(3), np.eye(3), 2, 0), "expected one of kmeans"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
