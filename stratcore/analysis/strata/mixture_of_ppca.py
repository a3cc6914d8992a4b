"""Mixture of probabilistic principal component analyzers, by EM. Legend: N rows, D features, C components."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from stratcore.analysis._checks import cluster_count, estimator_matrix
from stratcore.analysis.strata.flats import (
    Dims,
    check_dims,
    num_varying,
    principal_axes,
    signal_dimension,
    start_labels,
)

_SHORT = 15  # steps after which only the best start goes on


@dataclass
class _Component:
    mean: np.ndarray
    basis: np.ndarray
    variances: np.ndarray
    noise: float

    def log_density(self, x_ND: np.ndarray) -> np.ndarray:
        """Of each row, [N]. Unit: nat."""
        rows_ND = x_ND - self.mean
        inside_Nq = rows_ND @ self.basis
        outside_N = np.maximum((rows_ND**2).sum(axis=1) - (inside_Nq**2).sum(axis=1), 0)
        num_features, q = self.basis.shape
        log_volume = np.log(self.variances).sum() + (num_features - q) * np.log(self.noise)
        distance_N = (inside_Nq**2 / self.variances).sum(axis=1) + outside_N / self.noise
        return -0.5 * (distance_N + log_volume + num_features * np.log(2 * np.pi))


@dataclass
class _Fit:
    components: list[_Component]
    weights: np.ndarray
    responsibilities: np.ndarray
    trace: list[float] = field(default_factory=list)
    converged: bool = False
    likeliest: tuple[list[_Component], np.ndarray] = field(default_factory=lambda: ([], np.empty(0)))  # step


class MixtureOfPPCA(DensityMixin, BaseEstimator):
    """Gaussians whose covariance is q_c directions and one noise variance: strata of dimension q_c, as a density.

        p(x) = sum_c w_c N(x; m_c, U_c diag(lambda_c) U_c^T + s_c^2 (I - U_c U_c^T)),    U_c of [D, q_c]

    The M step is the closed form: lambda_c are the leading eigenvalues of the weighted covariance, s_c^2 the mean
    of the others.

    Args:
        n_components: C, at most the number of rows.
        dims: q_c, one number for all, one for each, or None: as many directions as noise does not explain
            (Tracy-Widom at .0001), chosen anew in each step of the first half of `max_iter`. In [0, D - 1].
        n_init: starts; see `start_labels`. After 15 steps the likeliest goes on alone.
        max_iter: EM steps at most.
        tol: gain of the mean log likelihood below which a fit has converged. Unit: nat.
        noise_floor: s_c^2 and lambda_c stay above this share of the mean variance of a feature, so that rows that
            repeat have a finite density.
        random_state: of the starts.

    Attributes:
        weights_: w_c, [C].
        means_: m_c, [C, D].
        bases_: U_c, C arrays [D, q_c].
        variances_: lambda_c, C arrays [q_c], noise included. Unit: length^2.
        noise_variances_: s_c^2, [C]. Unit: length^2.
        dims_: q_c, [C]; at most half the rows of a component.
        lower_bound_: mean log likelihood of the rows, that of the likeliest step, which is kept. Unit: nat.
        lower_bounds_: that of each step of the start that was kept.
        n_iter_, converged_: steps, and whether the gain fell below `tol`.

    Numerics: with dimensions given the likelihood never falls, but where a component is left with less than two
    rows and begins again, as wide as all rows, at the row of least density.
    Determinism: a function of the rows and `random_state` on one machine.
    Cost: O(C N D^2 + C D^3) a step.
    Source: Tipping and Bishop 1999.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        dims: Dims = None,
        n_init: int = 3,
        max_iter: int = 200,
        tol: float = 1e-4,
        noise_floor: float = 1e-6,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.dims = dims
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.noise_floor = noise_floor
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> MixtureOfPPCA:
        """Fit on rows [N, D], N >= 2; `y` is ignored."""
        x_ND = estimator_matrix(self, X, min_rows=2)
        cluster_count("n_components", self.n_components, len(x_ND))
        self._given = check_dims(self.dims, self.n_components, self.n_features_in_)
        if self.n_init < 1 or self.max_iter < 1 or not 0 < self.noise_floor < 1:
            raise ValueError(
                "n_init, max_iter and noise_floor: expected >= 1, >= 1 and a share in (0, 1), "
                f"got {self.n_init}, {self.max_iter} and {self.noise_floor}"
            )
        shift_D = x_ND.mean(axis=0)
        x_ND = x_ND - shift_D
        starts = start_labels(x_ND, self.n_components, self.n_init, check_random_state(self.random_state))
        fits = [self._begin(x_ND, labels_N) for labels_N in starts]
        short = self.max_iter if len(fits) == 1 else min(_SHORT, self.max_iter)
        best = max((self._run(x_ND, each, short) for each in fits), key=lambda each: max(each.trace))
        best = self._run(x_ND, best, self.max_iter)
        components, self.weights_ = best.likeliest
        self.bases_ = [each.basis for each in components]
        self.means_ = np.stack([each.mean for each in components]) + shift_D
        self.variances_ = [each.variances for each in components]
        self.noise_variances_ = np.array([each.noise for each in components])
        self.dims_ = np.array([basis.shape[1] for basis in self.bases_])
        self.lower_bounds_, self.lower_bound_ = best.trace, max(best.trace)
        self.n_iter_, self.converged_ = len(best.trace), best.converged
        return self

    def fit_predict(self, X: ArrayLike, y: object = None) -> np.ndarray:
        """Fit, and return the likeliest component of each row, [N]."""
        return self.fit(X).predict(X)

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Log likelihood of each row, [N]. Unit: nat."""
        return logsumexp(self._joint(X), axis=1)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Mean log likelihood of the rows. Unit: nat."""
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Posterior of each component given a row, [N, C]."""
        joint_NC = self._joint(X)
        return np.exp(joint_NC - logsumexp(joint_NC, axis=1, keepdims=True))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Likeliest component of each row, [N]."""
        return self._joint(X).argmax(axis=1)

    def _joint(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x_ND = estimator_matrix(self, X, reset=False)
        parts = zip(self.means_, self.bases_, self.variances_, self.noise_variances_, strict=True)
        return _joint(x_ND, [_Component(*each) for each in parts], self.weights_)

    def _begin(self, x_ND: np.ndarray, labels_N: np.ndarray) -> _Fit:
        one_hot_NC = (labels_N[:, None] == np.arange(self.n_components)).astype(float)
        return _Fit(components=[], weights=np.empty(0), responsibilities=one_hot_NC)

    def _run(self, x_ND: np.ndarray, fit: _Fit, max_iter: int) -> _Fit:
        """EM until it has converged or made `max_iter` steps, those before counted too."""
        while len(fit.trace) < max_iter and not fit.converged:
            before = [component.basis.shape[1] for component in fit.components]
            adapt = not before or len(fit.trace) < self.max_iter // 2
            dims = self._given if self._given is not None or adapt else before
            self._maximize(x_ND, fit, dims)
            joint_NC = _joint(x_ND, fit.components, fit.weights)
            log_density_N = logsumexp(joint_NC, axis=1)
            fit.responsibilities = np.exp(joint_NC - log_density_N[:, None])
            fit.trace.append(float(log_density_N.mean()))
            if fit.trace[-1] == max(fit.trace):
                fit.likeliest = fit.components, fit.weights
            same = before == [component.basis.shape[1] for component in fit.components]
            fit.converged = same and abs(fit.trace[-1] - fit.trace[-2]) < self.tol
        return fit

    def _maximize(self, x_ND: np.ndarray, fit: _Fit, dims: list[int] | None) -> None:
        scale = float((x_ND**2).mean())
        floor = self.noise_floor * scale if scale > 0 else 1.0
        counts = fit.responsibilities.sum(axis=0)
        components, varying = [], num_varying(x_ND)
        for c, count in enumerate(counts):
            if count < min(2.0, len(x_ND) / len(counts)) - 1e-9:
                components.append(self._restart(x_ND, fit, max(scale, floor), c))
                counts[c] = 1.0
                continue
            dim = None if dims is None else dims[c]
            components.append(_maximized(x_ND, fit.responsibilities[:, c], dim, floor, varying))
        fit.components, fit.weights = components, counts / counts.sum()

    def _restart(self, x_ND: np.ndarray, fit: _Fit, scale: float, c: int) -> _Component:
        if fit.components:
            row = int(np.argsort(logsumexp(_joint(x_ND, fit.components, fit.weights), axis=1))[c])
        else:
            row = c * len(x_ND) // self.n_components
        return _Component(x_ND[row], np.empty((x_ND.shape[1], 0)), np.empty(0), scale)


def _maximized(
    x_ND: np.ndarray, weights_N: np.ndarray, dim: int | None, floor: float, varying: int
) -> _Component:
    """The likeliest component of weighted rows; of the dimension that they show where none is given."""
    num_features, count = x_ND.shape[1], float(weights_N.sum())
    mean_D, values, axes = principal_axes(x_ND, weights_N)
    if dim is None:
        dim = signal_dimension(values, varying, count, floor)
    dim = min(dim, len(values), int(count / 2))
    noise = max(float(values[dim:].sum()) / (num_features - dim), floor)
    return _Component(mean_D, axes[:, :dim], np.maximum(values[:dim], noise), noise)


def _joint(x_ND: np.ndarray, components: list[_Component], weights: np.ndarray) -> np.ndarray:
    """Joint log density log w_c + log p(x | c), [N, C]. Unit: nat."""
    return np.stack([each.log_density(x_ND) for each in components], axis=1) + np.log(weights)
