"""KMeans of directions. Legend: N rows, D features, C clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import kmeans_plusplus
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from stratcore.analysis._checks import cluster_count, estimator_matrix


class SphericalKMeans(ClusterMixin, BaseEstimator):
    """KMeans with rows and centers on the unit sphere: each row goes to the center of largest cosine.

        maximize sum_n <x_n / |x_n|, c_{k(n)}>,    |c_k| = 1

    Args:
        n_clusters: C, at most the number of rows.
        max_iter: Lloyd's steps at most.
        random_state: of the start (k-means++ on the unit rows).

    Attributes:
        cluster_centers_: [C, D], unit norm.
        labels_: [N].
        n_iter_: steps taken.

    Numerics: a row of zeros has no direction and goes to cluster 0; an empty cluster keeps its center.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        max_iter: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> SphericalKMeans:
        """Fit on rows [N, D]; `y` is ignored."""
        unit_ND = normalize(estimator_matrix(self, X))
        cluster_count("n_clusters", self.n_clusters, len(unit_ND))
        random_state = check_random_state(self.random_state)
        centers_CD, _ = kmeans_plusplus(unit_ND, self.n_clusters, random_state=random_state)
        self.labels_ = np.full(len(unit_ND), -1)
        self.n_iter_ = 0
        while self.n_iter_ < self.max_iter:
            nearest_N = (unit_ND @ centers_CD.T).argmax(axis=1)
            self.n_iter_ += 1
            if (nearest_N == self.labels_).all():
                break
            self.labels_ = nearest_N
            sums_CD = np.zeros_like(centers_CD)
            np.add.at(sums_CD, nearest_N, unit_ND)
            occupied = np.linalg.norm(sums_CD, axis=1) > 0
            centers_CD[occupied] = sums_CD[occupied] / np.linalg.norm(
                sums_CD[occupied], axis=1, keepdims=True
            )
        self.cluster_centers_ = centers_CD
        self.labels_ = (unit_ND @ centers_CD.T).argmax(axis=1)
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Cluster of each row, [N]."""
        check_is_fitted(self)
        return (normalize(estimator_matrix(self, X, reset=False)) @ self.cluster_centers_.T).argmax(axis=1)
