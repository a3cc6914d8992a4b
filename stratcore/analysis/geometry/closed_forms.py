"""What random rows show in each figure of a scan, where a closed form says it.

Legend: N rows, D features, k order of a simplex, gamma = D / N.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import beta, chi2

from stratcore.ops.simplex_baseline import cv_gaussian

_LARGEST_DIM = 1e12
_GRID = 4001


def gaussian_dim_from_cv(cv: float, k: int = 4) -> float:
    """Dimension D in which standard normal rows have this CV of simplex volumes, `cv_gaussian(D, k) = cv`.

    Args:
        cv: coefficient of variation, > 0.
        k: order of the simplices, >= 1.

    Returns:
        D, a real number >= k; NaN where cv is larger than in k dimensions, infinity beyond 1e12.

    Raises:
        ValueError: cv or k out of range.
    """
    if k < 1 or not (cv > 0 and math.isfinite(cv)):
        raise ValueError(f"gaussian_dim_from_cv: expected a finite cv > 0 and k >= 1, got {cv} and {k}")
    if cv > cv_gaussian(k, k):
        return math.nan
    if cv <= cv_gaussian(_LARGEST_DIM, k):
        return math.inf

    def surplus(log_dim: float) -> float:
        return math.log(cv_gaussian(max(math.exp(log_dim), k), k) / cv)

    return math.exp(brentq(surplus, math.log(k), math.log(_LARGEST_DIM), xtol=1e-14))


def sphere_cosine_quantile(share: ArrayLike, dim: int) -> np.ndarray:
    """Quantile of the cosine of two independent uniform points on the unit sphere of R^dim.

    (1 + cos) / 2 is Beta((D - 1) / 2, (D - 1) / 2) in law; for D = 1 the cosine is -1 or 1.
    """
    share = np.asarray(share, dtype=np.float64)
    if dim == 1:
        return np.where(share < 0.5, -1.0, 1.0)
    return 2 * beta.ppf(share, (dim - 1) / 2, (dim - 1) / 2) - 1


def sphere_cosine_density(cosine: ArrayLike, dim: int) -> np.ndarray:
    """Density of the cosine of two independent uniform points on the unit sphere of R^dim, dim >= 2."""
    cosine = np.asarray(cosine, dtype=np.float64)
    return beta.pdf((1 + cosine) / 2, (dim - 1) / 2, (dim - 1) / 2) / 2


def sphere_mean_cosine_range(num_rows: int, dim: int, level: float = 0.95) -> tuple[float, float]:
    """Central interval of the mean cosine over all pairs of N uniform points on the unit sphere of R^dim.

    The mean is (N |m|^2 - 1) / (N - 1) with m the mean of the points, and N D |m|^2 is chi^2_D for large N.
    """
    quantiles = chi2.ppf([(1 - level) / 2, (1 + level) / 2], dim) / dim
    low, high = (quantiles - 1) / (num_rows - 1)
    return float(low), min(float(high), 1.0)


def isotropic_participation_ratio(num_rows: int, dim: int) -> float:
    """Participation ratio that N isotropic normal rows in R^D show, as a ratio of expectations.

    E (tr S)^2 / E tr S^2 = (D + 2 / n) / (1 + (D + 1) / n),    n = N - 1, at most D.
    """
    n = num_rows - 1
    return (dim + 2 / n) / (1 + (dim + 1) / n)


def isotropic_effective_rank(num_rows: int, dim: int) -> float:
    """Effective rank exp(H) that N isotropic normal rows in R^D show: D e^(-D / 2n), for D <= n = N - 1.

    For D > n the same with D and n exchanged: the non-zero eigenvalues of both Gram matrices are the same.
    Source: Page 1993, Average entropy of a subsystem.
    """
    small, large = sorted((num_rows - 1, dim))
    return max(1.0, small * math.exp(-small / (2 * large)))


def marchenko_pastur_eigenvalues(num_rows: int, dim: int) -> np.ndarray:
    """Eigenvalues that the covariance of N isotropic rows of variance 1 in R^D shows, largest first.

    Quantiles of the Marchenko-Pastur law at (i - 1/2) / min(D, n), n = N - 1, so that the first lies just below
    its edge (1 + sqrt(D / n))^2.

    Returns:
        [min(D, n)], float64, with sum D; the other D - n, where D > n, are 0.
    """
    n = num_rows - 1
    gamma = dim / n
    middle, radius = 1 + gamma, 2 * math.sqrt(gamma)
    angle = np.linspace(0, math.pi, _GRID)
    value = middle + radius * np.cos(angle)  # from the upper edge down
    density = np.sin(angle) ** 2 / np.maximum(value, 1e-300)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    count = min(dim, n)
    eigenvalues = np.interp((np.arange(count) + 0.5) / count, mass / mass[-1], value)
    return eigenvalues * dim / eigenvalues.sum()
