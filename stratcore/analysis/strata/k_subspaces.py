"""Lloyd's steps with affine or linear subspaces in the place of centers. Legend: N rows, D features, C clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from stratcore.analysis._checks import cluster_count, estimator_matrix, precision
from stratcore.analysis.strata.flats import (
    NOISE_FLOOR,
    Dims,
    check_dims,
    num_varying,
    principal_axes,
    signal_dimension,
    start_labels,
)


@dataclass
class _Solution:
    means: list[np.ndarray]
    bases: list[np.ndarray]
    rates: np.ndarray
    labels: np.ndarray
    inertia: float
    noise_variance: float
    objective: float
    steps: int = 0
    converged: bool = False


class KSubspaces(ClusterMixin, BaseEstimator):
    """Clusters rows by the nearest of C subspaces and fits each subspace to its rows, in turns.

        minimize sum_n r_n,    r_n = |x_n - m_c - U_c U_c^T (x_n - m_c)|^2 + s^2 rate_c,    c = label of n

    With dimensions given the rate is zero. Where they are chosen, a cluster keeps the directions that noise of
    unknown variance does not explain (Tracy-Widom at .0001), and its rate, sum_j log(lambda_cj / s^2), is what
    the coefficients along them cost at the precision s of the noise: else the largest subspace would take the
    rows of the others.

    Args:
        n_clusters: C, at most the number of rows.
        dims: dimension of all subspaces, one for each (which cluster gets which is part of the fit), or None to
            choose them. In [0, D - 1]; 0 makes KMeans.
        affine: subspaces have centers; False puts them all through the origin.
        n_init: starts; see `start_labels`. The best of them is kept.
        max_iter: steps of each start at most.
        random_state: of the starts.

    Attributes:
        cluster_centers_: points on the subspaces, [C, D], the means of their rows (zero if not affine).
        bases_: orthonormal columns, C arrays [D, d_c].
        dims_: d_c, [C]; below what was asked where a cluster has fewer rows.
        labels_: [N].
        inertia_: sum of the squared residuals. Unit: length^2.
        noise_variance_: mean squared residual in each of its dimensions, below the noise's own by a share of about
            (d + 1) C / N. Unit: length^2.
        n_iter_: steps of the start that was kept.
        converged_: whether these ended with labels that stay.

    Numerics: an empty cluster is begun again at the row of largest residual. With dimensions given the objective
    never grows, but for that; with chosen ones it may.
    Determinism: a function of the rows and `random_state` on one machine.
    Cost: O(N D (D + sum d_c)) a step; the starts by lines look at 1,500 rows.
    Source: Bradley and Mangasarian 2000; Vidal 2011.
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        dims: Dims = None,
        affine: bool = True,
        n_init: int = 3,
        max_iter: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.dims = dims
        self.affine = affine
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> KSubspaces:
        """Fit on rows [N, D], N >= 2; `y` is ignored."""
        x_ND = estimator_matrix(self, X, min_rows=2)
        cluster_count("n_clusters", self.n_clusters, len(x_ND))
        self._given = check_dims(self.dims, self.n_clusters, self.n_features_in_)
        if self.n_init < 1 or self.max_iter < 1:
            raise ValueError(f"n_init and max_iter: expected >= 1, got {self.n_init} and {self.max_iter}")
        self._rounding = (precision(x_ND) * float(np.abs(x_ND).max())) ** 2
        shift_D = x_ND.mean(axis=0) if self.affine else np.zeros(self.n_features_in_)
        x_ND = x_ND - shift_D
        starts = start_labels(x_ND, self.n_clusters, self.n_init, check_random_state(self.random_state))
        best = min((self._lloyd(x_ND, labels_N) for labels_N in starts), key=lambda found: found.objective)
        self.cluster_centers_ = np.stack(best.means) + shift_D
        self.bases_ = best.bases
        self.dims_ = np.array([basis.shape[1] for basis in best.bases])
        self.labels_ = best.labels
        self.inertia_, self.noise_variance_ = best.inertia, best.noise_variance
        self.n_iter_, self.converged_ = best.steps, best.converged
        self._rates = best.rates
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Cluster of each row, [N]."""
        return self._costs(X).argmin(axis=1)

    def distances(self, X: ArrayLike) -> np.ndarray:
        """Distance of each row from each subspace, [N, C]. Unit: length."""
        return np.sqrt(np.maximum(self._costs(X) - self._rates * self.noise_variance_, 0))

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Minus the mean squared residual of the rows. Unit: length^2."""
        costs_NC = self._costs(X)
        labels_N = costs_NC.argmin(axis=1)
        costs_N = costs_NC[np.arange(len(labels_N)), labels_N]
        return -float((costs_N - self._rates[labels_N] * self.noise_variance_).mean())

    def _costs(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x_ND = estimator_matrix(self, X, reset=False)
        return _residuals(x_ND, self.cluster_centers_, self.bases_) + self._rates * self.noise_variance_

    def _lloyd(self, x_ND: np.ndarray, labels_N: np.ndarray) -> _Solution:
        worst = np.random.RandomState(0).permutation(len(x_ND))
        step, converged = 0, False
        while step < self.max_iter and not converged:
            step += 1
            found = self._update(x_ND, _without_empty(labels_N, self.n_clusters, worst))
            residual_NC = _residuals(x_ND, found.means, found.bases)
            cost_NC = residual_NC + found.rates * found.noise_variance
            nearest_N = cost_NC.argmin(axis=1)
            converged = bool((nearest_N == labels_N).all())
            labels_N = nearest_N
            worst = np.argsort(-cost_NC.min(axis=1), kind="stable")
        found.labels, found.steps, found.converged = labels_N, step, converged
        found.inertia = float(residual_NC[np.arange(len(x_ND)), labels_N].sum())
        found.objective = (
            found.inertia if self._given is not None else self._code_length(found, x_ND.shape[1])
        )
        return found

    def _update(self, x_ND: np.ndarray, labels_N: np.ndarray) -> _Solution:
        """Subspaces of labeled rows; rows labeled -1 take no part."""
        num_features, varying = x_ND.shape[1], num_varying(x_ND)
        floor = max(NOISE_FLOOR * float((x_ND**2).mean()), self._rounding, np.finfo(float).tiny)
        counts = np.array([(labels_N == c).sum() for c in range(self.n_clusters)])
        axes = [principal_axes(x_ND[labels_N == c], center=self.affine) for c in range(self.n_clusters)]
        if self._given is None:
            dims = [
                signal_dimension(values, varying, n, floor)
                for (_, values, _), n in zip(axes, counts, strict=True)
            ]
        else:
            scatters = [values * n for (_, values, _), n in zip(axes, counts, strict=True)]
            dims = _matched_dims(scatters, self._given, self._rounding * counts)
        kept = [values[:dim] for (_, values, _), dim in zip(axes, dims, strict=True)]
        tails = [max(values[dim:].sum(), 0.0) for (_, values, _), dim in zip(axes, dims, strict=True)]
        freedom = max(float(counts @ (num_features - np.array(dims))), 1.0)
        noise = max(float(counts @ np.array(tails)) / freedom, floor)
        chosen = self._given is None
        rates = [float(np.log(np.maximum(values / noise, 1.0)).sum()) if chosen else 0.0 for values in kept]
        return _Solution(
            means=[mean for mean, _, _ in axes],
            bases=[columns[:, :dim] for (_, _, columns), dim in zip(axes, dims, strict=True)],
            rates=np.array(rates),
            labels=labels_N,
            inertia=np.inf,
            noise_variance=noise,
            objective=np.inf,
        )

    def _code_length(self, found: _Solution, num_features: int) -> float:
        """Nats for rows, given subspaces and noise, and for the subspaces, half a log N a parameter."""
        num_rows, dims = len(found.labels), np.array([basis.shape[1] for basis in found.bases])
        rows = found.inertia / found.noise_variance + num_rows * num_features * np.log(found.noise_variance)
        parameters = (dims * num_features - dims * (dims - 1) / 2 + num_features).sum()
        return float(rows + found.rates[found.labels].sum() + np.log(num_rows) * parameters) / 2


def _residuals(x_ND: np.ndarray, means: Any, bases: list[np.ndarray]) -> np.ndarray:
    """Squared distances from the subspaces, [N, C]."""
    residual_NC = np.empty((len(x_ND), len(bases)))
    for c, (mean_D, basis_Dd) in enumerate(zip(means, bases, strict=True)):
        rows_ND = x_ND - mean_D
        inside = ((rows_ND @ basis_Dd) ** 2).sum(axis=1)
        residual_NC[:, c] = np.maximum((rows_ND**2).sum(axis=1) - inside, 0)
    return residual_NC


def _without_empty(labels_N: np.ndarray, num_clusters: int, worst: np.ndarray) -> np.ndarray:
    """Labels in which every cluster has a row: an empty one takes the next of `worst` from a larger cluster."""
    counts = np.bincount(labels_N[labels_N >= 0], minlength=num_clusters)
    if counts.min() > 0:
        return labels_N
    labels_N, free = labels_N.copy(), iter(worst)
    for c in np.flatnonzero(counts == 0):
        row = next(n for n in free if labels_N[n] < 0 or counts[labels_N[n]] > 1)
        if labels_N[row] >= 0:
            counts[labels_N[row]] -= 1
        labels_N[row], counts[c] = c, 1
    return labels_N


def _matched_dims(scatters: list[np.ndarray], dims: list[int], rounding_C: np.ndarray) -> list[int]:
    """The order of the given dimensions that leaves the least residual; fewer where its rows span fewer.

    Args:
        scatters: of each cluster, largest first. Unit: length^2.
        dims: in any order.
        rounding_C: scatter that rounding alone makes. Unit: length^2.
    """
    if len(set(dims)) > 1:
        residual_CC = np.array([[scatter[dim:].sum() for dim in dims] for scatter in scatters])
        dims = [dims[column] for column in linear_sum_assignment(residual_CC)[1]]
    ranks = [
        int(np.count_nonzero(scatter > max(rounding, NOISE_FLOOR**2 * scatter.max(initial=0))))
        for scatter, rounding in zip(scatters, rounding_C, strict=True)
    ]
    return [min(dim, rank) for dim, rank in zip(dims, ranks, strict=True)]
