"""One door to every way of finding strata. Legend: N rows, D features, C strata."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN, AgglomerativeClustering, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from stratcore.analysis._checks import as_labels, as_matrix, cluster_count
from stratcore.analysis.strata.flats import Dims
from stratcore.analysis.strata.k_subspaces import KSubspaces
from stratcore.analysis.strata.mixture_of_ppca import MixtureOfPPCA
from stratcore.analysis.strata.separation import is_noise
from stratcore.analysis.strata.spherical_kmeans import SphericalKMeans

StrataMethod = Literal[
    "kmeans",
    "spherical_kmeans",
    "gaussian_mixture",
    "dbscan",
    "agglomerative",
    "k_subspaces",
    "mixture_of_ppca",
    "given",
]
DENSITY_METHODS: tuple[StrataMethod, ...] = ("gaussian_mixture", "mixture_of_ppca")
MAX_AGGLOMERATIVE_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class DBSCANOptions:
    """The neighborhood of DBSCAN.

    Args:
        eps: its radius; "k_distance" takes `percentile` of the distances to the `min_samples`-th other row, the
            rule of the source documents with 90. Unit: length.
        percentile: in (0, 100].
        min_samples: rows that make a dense neighborhood, the row itself counted.
    """

    eps: float | Literal["k_distance"] = "k_distance"
    percentile: float = 90.0
    min_samples: int = 5


@dataclass(frozen=True, kw_only=True)
class StrataFit:
    """Strata of rows, however they were found.

    labels: stratum of each row, [N]; -1 is DBSCAN's noise.
    num_strata: different labels, noise not counted: fewer than asked for where rows repeat (agglomerative cuts equal
        rows apart), 0 if all is noise.
    num_noise: rows labeled -1.
    dims: dimension of each stratum, by label, where the method has one.
    converged: False where the method stopped at its limit of steps.
    estimator: what was fitted; None for labels that were given.
    """

    method: StrataMethod
    seed: int
    labels: np.ndarray
    num_strata: int
    num_noise: int
    dims: tuple[int, ...] | None
    converged: bool
    estimator: BaseEstimator | None

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Stratum of other rows, [N].

        Raises:
            ValueError: the method has no rule for other rows (DBSCAN, agglomerative, given labels).
        """
        if self.estimator is None or not hasattr(self.estimator, "predict"):
            raise ValueError(f"method {self.method!r}: has no rule for rows that it was not fitted on")
        return self.estimator.predict(as_matrix("X", X))


def fit_strata(
    X: ArrayLike,
    method: StrataMethod = "kmeans",
    num_strata: int | None = None,
    *,
    seed: int = 0,
    dims: Dims = None,
    dbscan: DBSCANOptions | None = None,
    labels: ArrayLike | None = None,
) -> StrataFit:
    """Find strata by a named method.

    Args:
        X: rows, [N, D]. Unit: length.
        method: `kmeans` (ten starts); `spherical_kmeans`; `gaussian_mixture` (full covariances, a thousandth of
            the mean variance on top); `dbscan`; `agglomerative` (Ward); `k_subspaces`; `mixture_of_ppca`; `given`
            for labels that something else found, such as the experts of a dictionary mixture.
        num_strata: C, in [1, N]; None for `dbscan` and `given`, which have their own.
        seed: of the starts. DBSCAN and agglomerative have none.
        dims: of `k_subspaces` and `mixture_of_ppca`, see there; None lets the data say.
        dbscan: of `dbscan`; None for the rule of the source documents.
        labels: of `given`, [N]; -1 is noise.

    Raises:
        ValueError: names the argument; agglomerative with more rows than `MAX_AGGLOMERATIVE_ROWS`, since it holds
            all pairwise distances.

    Determinism: a function of its arguments on one machine.
    """
    x_ND = as_matrix("X", X)
    if method not in get_args(StrataMethod):
        raise ValueError(f"method: expected one of {', '.join(get_args(StrataMethod))}, got {method!r}")
    own = method in ("dbscan", "given")
    if own and num_strata is not None:
        raise ValueError(f"num_strata: {method!r} finds their number itself, expected None, got {num_strata}")
    if (labels is None) == (method == "given"):
        raise ValueError("labels: expected with method='given' and with no other")
    if dims is not None and method not in ("k_subspaces", "mixture_of_ppca"):
        raise ValueError(f"dims: expected None for {method!r}, got {dims}")
    if labels is not None:
        return _result(method, seed, as_labels("labels", labels, len(x_ND)), None)
    count = 0 if own else cluster_count("num_strata", num_strata, len(x_ND))
    if method == "agglomerative" and len(x_ND) > MAX_AGGLOMERATIVE_ROWS:
        raise ValueError(
            f"X: 'agglomerative' holds all pairwise distances, expected at most {MAX_AGGLOMERATIVE_ROWS} rows, "
            f"got {len(x_ND)}; draw a part of them"
        )
    if count == len(x_ND) == 1 or (len(x_ND) == 1 and own):
        return _result(method, seed, np.full(1, -1 if own else 0), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged` and `num_strata`
        if method == "dbscan":
            estimator = _dbscan(x_ND, dbscan or DBSCANOptions())
        else:
            estimator = _ESTIMATORS[method](x_ND, count, seed, dims)
        estimator.fit(x_ND)
    found = estimator.labels_ if hasattr(estimator, "labels_") else estimator.predict(x_ND)
    return _result(method, seed, np.asarray(found, dtype=np.int64), estimator)


def k_distance(X: ArrayLike, num_neighbors: int = 5, percentile: float = 90.0) -> float:
    """Percentile of the distances of the rows to their k-th nearest other row. Unit: length.

    Args:
        X: rows, [N, D], N >= 2.
        num_neighbors: k; at most N - 1 are looked at.
        percentile: in (0, 100].

    Numerics: zero where so many rows have k others equal to them.
    """
    x_ND = as_matrix("X", X)
    if len(x_ND) < 2 or num_neighbors < 1 or not 0 < percentile <= 100:
        raise ValueError(
            "X, num_neighbors and percentile: expected 2 rows, 1 and a number in (0, 100] at least, "
            f"got {len(x_ND)}, {num_neighbors} and {percentile}"
        )
    from stratcore.analysis.neighbors import nearest_neighbors

    nearest = nearest_neighbors(x_ND, min(num_neighbors, len(x_ND) - 1))
    return float(np.percentile(nearest.distances[:, -1], percentile))


def _dbscan(x_ND: np.ndarray, options: DBSCANOptions) -> DBSCAN:
    if options.eps == "k_distance":
        # Rows that repeat may leave a radius of zero, which DBSCAN refuses.
        eps = max(k_distance(x_ND, options.min_samples, options.percentile), np.finfo(float).tiny)
    else:
        eps = float(options.eps)
    if not eps > 0 or options.min_samples < 1:
        raise ValueError(f"dbscan: expected eps > 0, min_samples >= 1, got {eps}, {options.min_samples}")
    return DBSCAN(eps=eps, min_samples=options.min_samples)


def _gaussian_mixture(x_ND: np.ndarray, count: int, seed: int, dims: Dims) -> GaussianMixture:
    ridge = max(1e-3 * float(x_ND.var(axis=0).mean()), 1e-12)
    return GaussianMixture(count, reg_covar=ridge, max_iter=300, random_state=seed)


_ESTIMATORS: dict[str, Callable[[np.ndarray, int, int, Dims], Any]] = {
    "kmeans": lambda x_ND, count, seed, dims: KMeans(count, n_init=10, random_state=seed),
    "spherical_kmeans": lambda x_ND, count, seed, dims: SphericalKMeans(count, random_state=seed),
    "gaussian_mixture": _gaussian_mixture,
    "agglomerative": lambda x_ND, count, seed, dims: AgglomerativeClustering(count),
    "k_subspaces": lambda x_ND, count, seed, dims: KSubspaces(count, dims=dims, random_state=seed),
    "mixture_of_ppca": lambda x_ND, count, seed, dims: MixtureOfPPCA(count, dims=dims, random_state=seed),
}


def _result(method: StrataMethod, seed: int, labels_N: np.ndarray, estimator: Any) -> StrataFit:
    noise_N = is_noise(labels_N)
    dims = getattr(estimator, "dims_", None)
    limit = getattr(estimator, "max_iter", None)
    steps = getattr(estimator, "n_iter_", 0)
    return StrataFit(
        method=method,
        seed=seed,
        labels=labels_N,
        num_strata=len(np.unique(labels_N[~noise_N])),
        num_noise=int(noise_N.sum()),
        dims=None if dims is None else tuple(int(dim) for dim in dims),
        converged=bool(getattr(estimator, "converged_", limit is None or steps < limit)),
        estimator=estimator,
    )
