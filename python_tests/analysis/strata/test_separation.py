from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

from stratcore.analysis import calinski_harabasz, davies_bouldin, separation_scores, silhouette


def test_silhouette_is_high_for_blobs_and_undefined_for_one_label():
    x, y = make_blobs(400, 4, centers=np.eye(4) * 50, random_state=0)
    assert silhouette(x, y) > 0.9
    assert silhouette(x, y, max_rows=100) > 0.9
    assert np.isnan(silhouette(x, np.zeros(400)))


def test_scores_equal_scikit_learns_with_single_rows_among_the_strata():
    x, y = make_blobs(200, 5, centers=4, cluster_std=2.0, random_state=0)
    y[y == 3] = 2
    y[0] = 7  # a stratum of one row
    assert davies_bouldin(x, y) == pytest.approx(davies_bouldin_score(x, y), rel=1e-12)
    assert calinski_harabasz(x, y) == pytest.approx(calinski_harabasz_score(x, y), rel=1e-12)


@pytest.mark.parametrize("labels", [np.zeros(6), np.arange(6)], ids=["one stratum", "a row each"])
def test_scores_without_a_meaning_are_nan(labels):
    x = np.random.default_rng(0).standard_normal((6, 3))
    assert all(np.isnan(score(x, labels)) for score in (silhouette, davies_bouldin, calinski_harabasz))


def test_strata_of_one_center_are_the_worst_not_left_out():
    """scikit-learn answers 0, the best there is."""
    x = np.array([[1.0], [-1.0], [2.0], [-2.0]])
    assert davies_bouldin_score(x, [0, 0, 1, 1]) == 0
    assert davies_bouldin(x, [0, 0, 1, 1]) == np.inf
    assert calinski_harabasz(x, [0, 0, 1, 1]) == 0


def test_points_that_repeat():
    x = np.repeat(np.eye(3), 4, axis=0)
    y = np.repeat(np.arange(3), 4)
    found = separation_scores(x, y)
    assert (found.silhouette, found.davies_bouldin, found.calinski_harabasz) == (1.0, 0.0, np.inf)
    equal = separation_scores(np.ones((12, 3)), y)
    assert np.isnan(equal.calinski_harabasz) and equal.davies_bouldin == np.inf


def test_noise_is_counted_and_left_out():
    x, y = make_blobs(90, 3, centers=np.eye(3) * 30, random_state=0)
    far = np.r_[x, np.full((5, 3), 1e6)]
    found = separation_scores(far, np.r_[y, np.full(5, -1)])
    assert (found.num_strata, found.num_rows, found.num_noise) == (3, 90, 5)
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(x, y), rel=1e-12)
    only = separation_scores(x, np.full(90, -1))
    assert only.num_strata == 0 and np.isnan(only.silhouette)
    words = separation_scores(x, np.array(["a", "-1", "b"])[y])
    assert (words.num_strata, words.num_noise) == (3, 0)
