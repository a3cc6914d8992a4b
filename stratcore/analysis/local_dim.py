"""Dimension of a cloud from the nearest neighbors of its rows: global, for each row, with intervals.

Legend: N rows, M distinct rows, D features, K neighbors. All of these estimators suppose that the cloud is flat and
evenly filled out to the K-th neighbor, and fall short where it is not: above dimension 10 or so, at a few thousand
rows, read `CalibratedDimension` instead.

Copies of a row are neighbors at distance 0 and say nothing of the dimension: every estimator here works on the
distinct rows and counts the copies in `num_duplicates_`.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator

from stratcore.analysis._checks import estimator_matrix, precision, without_rounding
from stratcore.analysis.neighbors import distinct_rows, nearest_neighbors
from stratcore.ops import effective_dim_from_cv, simplex_cv


class NeighborEstimator(BaseEstimator):
    """What the estimators from neighbors share: distinct rows, the error of a mean over rows, the interval."""

    level: float

    def _distinct(self, X: Any, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
        """Distinct rows [M, D] and, for each row given, the index of its distinct row [N]."""
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a share in (0, 1), got {self.level}")
        x_ND = estimator_matrix(self, X, min_rows=2)
        x_MD, row_N = enough_distinct_rows(x_ND, num_neighbors)
        self.num_duplicates_ = len(x_ND) - len(x_MD)
        return x_MD, row_N

    def _set(self, dimension: float, standard_error: float) -> None:
        """Sets the estimate with its interval, symmetric on the scale of logarithms."""
        z = NormalDist().inv_cdf((1 + self.level) / 2)
        spread = math.exp(z * standard_error / dimension)
        self.dimension_ = float(dimension)
        self.standard_error_ = float(standard_error)
        self.low_, self.high_ = float(dimension / spread), float(dimension * spread)


def enough_distinct_rows(x_ND: np.ndarray, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """`distinct_rows`, more of them than the neighbors that are asked for.

    Raises:
        ValueError: there are no more.
    """
    x_MD, row_N = distinct_rows(x_ND)
    if len(x_MD) <= num_neighbors:
        raise ValueError(
            f"X: expected more than {num_neighbors} distinct rows for {num_neighbors} neighbors, "
            f"got {len(x_MD)} among {len(x_ND)} rows"
        )
    return x_MD, row_N


def mean_error(values_M: np.ndarray, neighbors_MK: np.ndarray) -> float:
    """Standard error of the mean of values of rows that depend on each other through shared neighbors.

        max(sum_ij e_i e_j |N_i & N_j| / (K + 1), sum_ij e_i e_j [j in N_i or i in N_j])^(1/2) / M

    e are the values less their mean, N_i row i with its K neighbors. The usual error supposes independent rows and
    is about .7 of this.
    """
    num_rows, num_neighbors = neighbors_MK.shape
    centered = values_M - values_M.mean()
    starts = np.arange(0, num_rows * num_neighbors + 1, num_neighbors)
    ones = np.ones(num_rows * num_neighbors)
    graph = sparse.csr_array((ones, neighbors_MK.reshape(-1), starts), shape=(num_rows, num_rows))
    shared = ((graph.T @ centered + centered) ** 2).sum() / (num_neighbors + 1)
    either = graph.maximum(graph.T)
    adjacent = centered @ centered + centered @ (either @ centered)
    return math.sqrt(max(shared, adjacent)) / num_rows


class TwoNN(NeighborEstimator):
    """Dimension from the ratio mu = r_2 / r_1 of the distances to the second and the first neighbor.

        mle:     d = (m - 1) / (sum_{i <= m} log mu_(i) + (M - m) log mu_(m)),    m = floor(M (1 - discard))
        linear:  d = slope through 0 of -log(1 - i / M) over log mu_(i), i <= m

    Args:
        method: "mle" or "linear".
        discard_fraction: share of the largest ratios to leave out, in [0, 1); None: 0 for the
            likelihood, where they count as censored, and .1 for the linear fit, as its authors have it.
        level: of the interval.
        device: where neighbors are searched; None leaves the choice to `nearest_neighbors`.

    Attributes:
        dimension_, low_, high_, standard_error_: the estimate. For "linear" the error is that of the likelihood.
        num_duplicates_: rows that are copies of another one; they are left out.

    Numerics: the likelihood is unbiased where the cloud is flat and even.
    Source: Facco et al. 2017; Denti et al. 2022. Equal to scikit-dimension's TwoNN (methods "mle" and "linear").
    """

    def __init__(
        self,
        method: str = "mle",
        discard_fraction: float | None = None,
        level: float = 0.95,
        device: str | None = None,
    ) -> None:
        self.method = method
        self.discard_fraction = discard_fraction
        self.level = level
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> TwoNN:
        """Fit on rows [N, D] of which at least 3 differ; `y` is ignored."""
        if self.method not in ("mle", "linear"):
            raise ValueError(f"method: expected 'mle' or 'linear', got {self.method!r}")
        discard = (
            {"mle": 0.0, "linear": 0.1}[self.method]
            if self.discard_fraction is None
            else self.discard_fraction
        )
        if not 0 <= discard < 1 or (self.method == "linear" and discard == 0):
            raise ValueError(
                f"discard_fraction: expected a share in [0, 1), above 0 for the linear fit, got {discard}"
            )
        x_MD, _ = self._distinct(X, 2)
        found = nearest_neighbors(x_MD, 2, device=self.device)
        log_ratios_M = np.log(found.distances[:, 1] / found.distances[:, 0])
        self._set(*self._estimate(log_ratios_M, discard, found.indices))
        return self

    def _estimate(
        self, log_ratios_M: np.ndarray, discard: float, neighbors_M2: np.ndarray
    ) -> tuple[float, float]:
        num_rows = len(log_ratios_M)
        kept = int(num_rows * (1 - discard))
        smallest = np.sort(log_ratios_M)[:kept]
        if kept < 2 or not smallest[-1] > 0:
            raise ValueError(
                "X: every row has its two nearest neighbors at one distance; no dimension follows"
            )
        if self.method == "linear":
            heights = -np.log1p(-np.arange(1, kept + 1) / num_rows)
            dimension = float(smallest @ heights / (smallest @ smallest))
        else:
            dimension = (kept - 1) / float(smallest.sum() + (num_rows - kept) * smallest[-1])
        censored_M = np.minimum(log_ratios_M, smallest[-1])
        error = mean_error(censored_M, neighbors_M2) / censored_M.mean() * dimension
        return dimension, error


class LevinaBickel(NeighborEstimator):
    """Maximum likelihood estimate of the dimension from the distances r_1 <= ... <= r_K to K neighbors.

        d(x) = (K - 2) / S(x),    d = (K - 1) / mean_x S(x),    S(x) = sum_{j < K} log(r_K / r_j)

    Args:
        k: K >= 3.
        level: of the interval.
        device: where neighbors are searched; None leaves the choice to `nearest_neighbors`.

    Attributes:
        dimension_, low_, high_, standard_error_: the global estimate, the harmonic mean over rows.
        pointwise_: d(x) of each row, [N]; copies of a row share its value. Infinite where all K neighbors
            are at one distance.
        num_duplicates_: rows that are copies of another one; they are left out of the global estimate.

    Numerics: K - 2 makes a single d(x) unbiased where the cloud is flat and even, K - 1 the harmonic mean over rows.
    Source: Levina and Bickel 2004; MacKay and Ghahramani 2005 (harmonic mean). Equal to scikit-dimension's MLE: the
    global number to comb="mle", the local ones to unbiased=True.
    """

    def __init__(self, k: int = 20, level: float = 0.95, device: str | None = None) -> None:
        self.k = k
        self.level = level
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> LevinaBickel:
        """Fit on rows [N, D], more than k of them distinct; `y` is ignored."""
        if self.k < 3:
            raise ValueError(f"k: expected at least 3, got {self.k}")
        x_MD, row_N = self._distinct(X, self.k)
        found = nearest_neighbors(x_MD, self.k, device=self.device)
        inverse_M = inverse_dimensions(found.distances)
        if not inverse_M.any():
            raise ValueError("X: every row has all its neighbors at one distance; no dimension follows")
        with np.errstate(divide="ignore"):
            self.pointwise_ = ((self.k - 2) / (self.k - 1) / inverse_M)[row_N]
        dimension = 1 / inverse_M.mean()
        self._set(dimension, mean_error(inverse_M, found.indices) * dimension**2)
        return self


def inverse_dimensions(distances_MK: np.ndarray) -> np.ndarray:
    """S(x) / (K - 1) of `LevinaBickel` for each row of sorted distances."""
    logs_MK = np.log(distances_MK)
    return (logs_MK[:, -1:] - logs_MK[:, :-1]).mean(axis=1)


class LocalPCA(NeighborEstimator):
    """Number of principal components that hold a share of the variance among the neighbors of a row.

    Args:
        k: K >= 2; the row itself does not count. The answer is at most K - 1.
        share: of the variance to hold, in (0, 1].
        level: of the interval.
        device: where neighbors are searched; None leaves the choice to `nearest_neighbors`.

    Attributes:
        dimension_, low_, high_, standard_error_: the mean over the distinct rows.
        pointwise_: the number for each row, [N], float64.
        num_duplicates_: rows that are copies of another one.

    Numerics: shares are compared with a slack of 1e-12.
    Source: Fukunaga and Olsen 1971. Equal to scikit-dimension's lPCA(ver="ratio").fit_pw.
    """

    def __init__(
        self,
        k: int = 100,
        share: float = 0.95,
        level: float = 0.95,
        device: str | None = None,
    ) -> None:
        self.share = share
        self.k = k
        self.level = level
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> LocalPCA:
        """Fit on rows [N, D], more than k of them distinct; `y` is ignored."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {self.share}")
        if self.k < 2:
            raise ValueError(f"k: expected at least 2, got {self.k}")
        x_MD, row_N = self._distinct(X, self.k)
        found = nearest_neighbors(x_MD, self.k, device=self.device)
        rounding = precision(x_MD) * float(np.abs(x_MD).max())
        local_M = pca_dimensions(x_MD, found.indices, self.share, rounding)
        self.pointwise_ = local_M[row_N]
        self._set(float(local_M.mean()), mean_error(local_M, found.indices))
        return self


def pca_dimensions(
    x_MD: np.ndarray, neighbors_CK: np.ndarray, share: float, rounding: float = 0.0
) -> np.ndarray:
    """Components that hold a share of the variance in each neighborhood, [C], float64; see `without_rounding`."""
    dimensions = []
    chunk = max(1, 2**24 // (neighbors_CK.shape[1] * max(x_MD.shape[1], neighbors_CK.shape[1])))
    for start in range(0, len(neighbors_CK), chunk):
        block_CKD = torch.from_numpy(x_MD[neighbors_CK[start : start + chunk]])
        block_CKD = block_CKD - block_CKD.mean(dim=1, keepdim=True)
        wide = block_CKD.shape[2] > block_CKD.shape[1]
        gram = block_CKD @ block_CKD.mT if wide else block_CKD.mT @ block_CKD
        values_CR = torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0).numpy()
        shares = without_rounding(values_CR, rounding, (block_CKD.shape[1], block_CKD.shape[2])).cumsum(-1)
        held = shares / shares[:, -1:] < share - 1e-12
        dimensions.append((held.sum(-1) + 1).astype(np.float64))
    return np.concatenate(dimensions)


class SimplexCVDimension(BaseEstimator):
    """Dimension of the sphere whose uniform points have random simplices as uneven as the directions of the rows.

        dimension_ = D with cv_uniform(D, k) = CV of the volumes of simplices of (x - mean) / |x - mean|

    It is the effective dimension of the span, not of a curved cloud in it: a sphere S^d in d + 1 dimensions gives
    d + 1, a torus of d unit circles 2 d.

    Args:
        order: k, of the simplices; the default, triangles, is defined from a plane upwards.
        num_simplices: how many are drawn.
        level: of the interval.
        random_state: seed of the draws, an int.

    Attributes:
        dimension_, low_, high_: the estimate. The interval counts N / (k + 1) independent simplices, which is
            cautious; an end is NaN where no dimension is consistent with the CV.
        cv_: the CV itself.
        num_duplicates_: rows that are copies of another one; they are left out.
    """

    def __init__(
        self, order: int = 2, num_simplices: int = 20000, level: float = 0.95, random_state: int = 0
    ) -> None:
        self.order = order
        self.num_simplices = num_simplices
        self.level = level
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> SimplexCVDimension:
        """Fit on rows [N, D], more than `order` of them distinct; `y` is ignored."""
        x_ND = estimator_matrix(self, X, min_rows=2)
        if self.n_features_in_ == 1:
            raise ValueError("X: expected at least 2 columns for directions that vary, got n_features = 1")
        x_MD, _ = enough_distinct_rows(x_ND, self.order)
        self.num_duplicates_ = len(x_ND) - len(x_MD)
        centered = x_MD - x_MD.mean(axis=0)
        norms = np.linalg.norm(centered, axis=1)
        rows = torch.from_numpy(centered[norms > 0] / norms[norms > 0, None])
        found = simplex_cv(rows, k=self.order, num_simplices=self.num_simplices, seed=self.random_state)
        self.cv_ = float(found.cv)
        estimate = None
        if self.cv_ > 0:
            independent = max(2, len(x_MD) // (self.order + 1))
            estimate = effective_dim_from_cv(
                self.cv_, self.order, num_simplices=independent, confidence=self.level
            )
        if estimate is None or math.isnan(estimate.dim):
            raise ValueError(
                f"X: simplices of order {self.order} vary more (CV {self.cv_:.4g}) than uniform points of any "
                f"dimension from {self.order} on; try a lower order"
            )
        self.dimension_ = estimate.dim
        self.low_, self.high_ = estimate.low, estimate.high
        return self


class DANCo(BaseEstimator):
    """Dimension from angle and norm concentration, as scikit-dimension computes it.

    Args:
        k: neighbors of each row.
        random_state: seed of its simulated calibration.

    Attributes:
        dimension_: the estimate; scikit-dimension gives no interval.
        num_duplicates_: rows that are copies of another one; they are left out.

    Source: Ceruti et al. 2012. Needs the optional package scikit-dimension.
    """

    def __init__(self, k: int = 10, random_state: int = 0) -> None:
        self.k = k
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> DANCo:
        """Fit on rows [N, D], more than k of them distinct; `y` is ignored.

        Raises:
            ModuleNotFoundError: scikit-dimension is not installed.
        """
        try:
            from skdim.id import DANCo as Reference
        except ModuleNotFoundError as error:
            message = "DANCo needs scikit-dimension: pip install 'stratcore[dimension]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        x_ND = estimator_matrix(self, X, min_rows=2)
        x_MD, _ = enough_distinct_rows(x_ND, self.k)
        self.num_duplicates_ = len(x_ND) - len(x_MD)
        with np.errstate(divide="ignore", invalid="ignore"):  # on a line all angles are 0
            reference = Reference(k=self.k, random_state=self.random_state).fit(x_MD)
        if not math.isfinite(reference.dimension_):
            raise ValueError(f"X: DANCo finds no dimension in these rows, got {reference.dimension_}")
        self.dimension_ = float(reference.dimension_)
        return self
