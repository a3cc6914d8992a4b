"""Dimension of a cloud of points from the eigenvalues of its covariance: global and for each stratum.

Legend: N rows, D features. Every estimator here is linear: for a curved stratum it gives the dimension of the
linear span, an upper bound of the stratum's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from stratcore.analysis._checks import (
    as_array,
    as_labels,
    as_matrix,
    estimator_matrix,
    precision,
    without_rounding,
)


def covariance_eigenvalues(X: ArrayLike) -> np.ndarray:
    """Eigenvalues of the covariance of the rows, largest first.

        lambda_i = s_i^2 / (N - 1),    s_i the singular values of the centered rows

    Args:
        X: rows, [N, D], N >= 2. Unit: length.

    Returns:
        [min(N, D)], float64, non-negative. Unit: length^2.

    Raises:
        ValueError: fewer than two rows, or a row that is not finite.

    Numerics: eigenvalues that the rounding of the rows' dtype alone can make are zero.
    """
    x_ND = as_matrix("X", X)
    if len(x_ND) < 2:
        raise ValueError(f"X: expected at least 2 rows to see any variance, got {len(x_ND)}")
    centered_ND = x_ND - x_ND.mean(axis=0)
    centered_ND -= centered_ND.mean(axis=0)  # what rounding left of the mean would be a direction
    singular = np.linalg.svd(centered_ND, compute_uv=False)
    rounding = precision(x_ND) * float(np.abs(x_ND).max())
    return without_rounding(singular**2, rounding, x_ND.shape) / (len(x_ND) - 1)


def effective_rank(eigenvalues: ArrayLike) -> float:
    """Effective rank exp(H(lambda / sum lambda)), in nats: m equal eigenvalues give m.

    Source: Roy and Vetterli 2007.
    """
    share = _shares(eigenvalues)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(eigenvalues: ArrayLike) -> float:
    """Participation ratio (sum lambda)^2 / sum lambda^2: m equal eigenvalues give m."""
    return float(1.0 / (_shares(eigenvalues) ** 2).sum())


class PCADimension(BaseEstimator):
    """Smallest m whose leading m principal components hold a given share of the variance.

        dimension_ = min{m : sum_{i <= m} lambda_i >= variance * sum_i lambda_i},  in [1, min(D, N - 1)]

    Args:
        variance: share of the variance to hold, in (0, 1].

    Attributes:
        dimension_: the m above.
        eigenvalues_: eigenvalues of the covariance, largest first. Unit: length^2.
        explained_variance_ratio_: eigenvalues over their sum.
        effective_rank_: exp of the entropy of the ratios.
        participation_ratio_: inverse of the sum of the squared ratios.

    Numerics: shares are compared with a slack of 1e-12, so that a plane of exact dimension m counts m at
    variance 1.
    Scale: one direction of large variance (a "massive activation") lowers the answer; look at the curve too.
    """

    def __init__(self, variance: float = 0.75) -> None:
        self.variance = variance

    def fit(self, X: ArrayLike, y: object = None) -> PCADimension:
        """Fit on rows [N, D], N >= 2; `y` is ignored."""
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance: expected a share in (0, 1], got {self.variance}")
        x_ND = estimator_matrix(self, X, min_rows=2)
        self.eigenvalues_ = covariance_eigenvalues(x_ND)
        self.explained_variance_ratio_ = _shares(self.eigenvalues_)
        largest = max(1, min(self.n_features_in_, len(x_ND) - 1))
        cumulative = np.cumsum(self.explained_variance_ratio_)
        self.dimension_ = int(min(np.searchsorted(cumulative, self.variance - 1e-12) + 1, largest))
        self.effective_rank_ = effective_rank(self.eigenvalues_)
        self.participation_ratio_ = participation_ratio(self.eigenvalues_)
        return self


class NoiseFloorDimension(BaseEstimator):
    """Number of covariance eigenvalues that isotropic noise of a given variance cannot explain.

        dimension_ = #{i : lambda_i > noise_variance * (1 + sqrt(D / N))^2 * (1 + margin)}

    The bracket is the Marchenko-Pastur edge: the largest eigenvalue that N rows of pure noise show.

    Args:
        noise_variance: variance of the noise in each coordinate, > 0. Unit: length^2.
        margin: relative distance to keep above the edge, >= 0; raise it where rows of other strata are mixed
        in.

    Attributes:
        dimension_: the count above; 0 for pure noise.
        threshold_: the right hand side. Unit: length^2.
        eigenvalues_: eigenvalues of the covariance, largest first.
    """

    def __init__(self, noise_variance: float, margin: float = 0.5) -> None:
        self.noise_variance = noise_variance
        self.margin = margin

    def fit(self, X: ArrayLike, y: object = None) -> NoiseFloorDimension:
        """Fit on rows [N, D], N >= 2; `y` is ignored."""
        if not (self.noise_variance > 0 and self.margin >= 0):
            raise ValueError(
                "noise_variance and margin: expected > 0 and >= 0, "
                f"got {self.noise_variance} and {self.margin}"
            )
        x_ND = estimator_matrix(self, X, min_rows=2)
        self.eigenvalues_ = covariance_eigenvalues(x_ND)
        edge = (1 + np.sqrt(self.n_features_in_ / len(x_ND))) ** 2
        self.threshold_ = float(self.noise_variance * edge * (1 + self.margin))
        self.dimension_ = int((self.eigenvalues_ > self.threshold_).sum())
        return self


@dataclass(frozen=True, kw_only=True)
class StratumDimension:
    """Dimensions of one stratum; None where it lacks two distinct rows or no noise floor was given."""

    stratum: str
    num_rows: int
    pca_dimension: int | None
    noise_floor_dimension: int | None
    effective_rank: float | None
    participation_ratio: float | None


def stratum_dimensions(
    X: ArrayLike,
    labels: ArrayLike,
    *,
    variance: float = 0.75,
    noise_variance: float | None = None,
    margin: float = 0.5,
) -> list[StratumDimension]:
    """Dimensions of each stratum of the rows, in the order of the sorted labels.

    Args:
        X: rows, [N, D].
        labels: stratum of each row, [N], any sortable dtype.
        variance: see `PCADimension`.
        noise_variance: see `NoiseFloorDimension`; None leaves that column out.
        margin: see `NoiseFloorDimension`.
    """
    x_ND = as_matrix("X", X)
    labels_N = as_labels("labels", labels, len(x_ND))
    strata = []
    for stratum in np.unique(labels_N):
        rows = x_ND[labels_N == stratum]
        if len(rows) < 2 or not np.ptp(rows, axis=0).any():
            empty = dict.fromkeys(
                ("pca_dimension", "noise_floor_dimension", "effective_rank", "participation_ratio")
            )
            strata.append(StratumDimension(stratum=str(stratum), num_rows=len(rows), **empty))
            continue
        pca = PCADimension(variance).fit(rows)
        floor = NoiseFloorDimension(noise_variance, margin).fit(rows) if noise_variance is not None else None
        strata.append(
            StratumDimension(
                stratum=str(stratum),
                num_rows=len(rows),
                pca_dimension=pca.dimension_,
                noise_floor_dimension=None if floor is None else floor.dimension_,
                effective_rank=pca.effective_rank_,
                participation_ratio=pca.participation_ratio_,
            )
        )
    return strata


def _shares(eigenvalues: ArrayLike) -> np.ndarray:
    values = as_array(eigenvalues).astype(np.float64)
    if values.ndim != 1 or (values < 0).any() or not values.sum() > 0:
        raise ValueError("eigenvalues: expected non-negative numbers, not all zero (are all rows equal?)")
    return values / values.sum()
