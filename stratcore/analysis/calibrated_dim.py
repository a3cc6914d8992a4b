"""Dimension debiased by closed manifolds simulated at the size of the cloud, with the error of doing so.

Legend: M distinct rows, D features, K neighbors, S simulated manifolds, F features of a cloud.

Above dimension 10 the nearest of a few thousand rows are far away: on a unit sphere S^40 they stand at 60 degrees,
and every estimator reads what the manifold does there. Two manifolds of one dimension then differ by more than two
dimensions do on one manifold. So the correction is read not from the estimate alone but from the shape of the
neighborhoods (`shape_statistics`) too, by kriging between twelve families of manifolds; and its error is what is
left on a family that was not among them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone

from stratcore.analysis._neighborhoods import neighborhoods, shape_statistics
from stratcore.analysis.local_dim import (
    LevinaBickel,
    LocalPCA,
    NeighborEstimator,
    SimplexCVDimension,
    TwoNN,
    inverse_dimensions,
    pca_dimensions,
)
from stratcore.analysis.manifolds import calibration_manifolds
from stratcore.analysis.neighbors import nearest_neighbors

NEIGHBORS = 50
_CENTERS = 500
# Of log estimate, log(concentration / estimate), cosine, skewness, kurtosis, log(estimate at K / at K / 5). Chosen
# to make the errors on left-out families small, for 2,500 rows.
_SCALES = np.array([9.6, 0.6, 0.75, 0.7, 0.6, 1.6])
_AMPLITUDE, _NOISE, _LINEAR = 0.11, 0.007, 4.0
# How far the error on one left-out family speaks of that on another cloud, in the same features.
_ERROR_SCALES = np.array([0.3, 0.1, 0.05, 0.3, 0.3, 0.1])
# Too uneven a curvature for any correction here: they count for the error, not for the correction.
_ERROR_ONLY = ("sphere and torus",)
_DRAWS = 64


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Simulated manifolds: features [S, F], correction log(true / estimate) [S], family and dimension of each [S].

    residual [S] is the error of log d on each manifold when its family is left out; spread [S] the standard
    deviation of the mean cosine over its centers.
    """

    features: np.ndarray
    correction: np.ndarray
    family: np.ndarray
    dimension: np.ndarray
    residual: np.ndarray
    spread: np.ndarray

    def predict(self, features_QF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correction [Q] and its standard error [Q]: that of kriging and that seen nearby on left-out families."""
        known = ~np.isin(self.family, _ERROR_ONLY)
        correction, error = _krige(self.features[known], self.correction[known], features_QF)
        near_QS = np.exp(-0.5 * _distance(features_QF, self.features, _ERROR_SCALES)) + 1e-12
        local = (near_QS * self.residual**2).sum(axis=1) / near_QS.sum(axis=1)
        return correction, np.sqrt(error**2 + local)


@lru_cache(maxsize=32)
def calibration(
    estimator: str, num_neighbors: int, num_rows: int, leave_out: frozenset[str], seed: int
) -> Calibration:
    """Simulates every family at `num_rows` rows and measures what `estimator` says of it.

    Args:
        estimator: name of the class, see `CalibratedDimension`.
        num_neighbors: its neighbors, 0 where it has none.
        num_rows: rows of each manifold.
        leave_out: families not to simulate.
        seed: of the simulation.

    Cost: some 140 manifolds; 12 s at 2,500 rows on one core. Kept for the process.
    """
    rows = []
    for index, (family, members) in enumerate(calibration_manifolds().items()):
        for number, (dimension, sample) in enumerate(members):
            if family in leave_out:
                continue
            x_MD = sample(np.random.default_rng([seed, index, number]), num_rows)
            means, spread, estimate = _measure(x_MD, estimator, num_neighbors)
            if estimate is not None:
                rows.append((family, dimension, _features(means, estimate), estimate, spread))
    family_S, dimension_S, features_S, estimate_S, spread_S = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    correction_S = np.log(dimension_S / estimate_S)
    residual_S = np.empty(len(rows))
    known_S = ~np.isin(family_S, _ERROR_ONLY)
    for family in np.unique(family_S):
        own, others = family_S == family, (family_S != family) & known_S
        found, _ = _krige(features_S[others], correction_S[others], features_S[own])
        residual_S[own] = found - correction_S[own]
    return Calibration(
        features=features_S,
        correction=correction_S,
        family=family_S,
        dimension=dimension_S,
        residual=residual_S,
        spread=spread_S,
    )


class CalibratedDimension(NeighborEstimator):
    """An estimate of the dimension, debiased by simulated closed manifolds with as many rows.

    Args:
        estimator: a `LevinaBickel`, `TwoNN`, `LocalPCA` or `SimplexCVDimension`; None: `LevinaBickel()`.
        leave_out: families of `calibration_manifolds` not to use, to judge the calibration on them.
        level: of the interval.
        random_state: seed of the simulation and of the bootstrap, an int.
        device: where neighbors are searched; None leaves the choice to `nearest_neighbors`.

    Attributes:
        dimension_, interval_, standard_error_: the estimate; the interval holds the bootstrap over rows and the
            error of the calibration.
        raw_dimension_: before the correction.
        calibration_error_: standard error of log dimension_ on manifolds that were not simulated.
        displaced_share_: rows whose neighbors lie more to one side than on a closed manifold.
        warning_: what forbids a sharper answer, in words, or "".
        num_duplicates_: rows that are copies of another one; they are left out.

    Numerics: at 2,500 rows the error is within 5 % up to dimension 10 and 10 % up to 40 on manifolds whose
    neighborhoods are not much more curved in some directions than in others; on flat tori, where they are, it grows
    to 35 % from dimension 10 on. Boundary, noise and uneven density bias the answer; `warning_` names them.
    Determinism: a function of the rows and `random_state`.
    Cost: the simulation, once for a number of rows (to 5 %), estimator and seed: 12 s at 2,500 rows.
    """

    def __init__(
        self,
        estimator: NeighborEstimator | SimplexCVDimension | None = None,
        leave_out: Collection[str] = (),
        level: float = 0.95,
        random_state: int = 0,
        device: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.leave_out = leave_out
        self.level = level
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> CalibratedDimension:
        """Fit on rows [N, D], more than 50 of them distinct; `y` is ignored."""
        base = LevinaBickel() if self.estimator is None else clone(self.estimator)
        if not isinstance(base, (LevinaBickel, TwoNN, LocalPCA, SimplexCVDimension)):
            raise TypeError(
                "estimator: expected LevinaBickel, TwoNN, LocalPCA or SimplexCVDimension, "
                f"got {type(base).__name__}"
            )
        unknown = set(self.leave_out) - set(calibration_manifolds())
        if unknown:
            raise ValueError(f"leave_out: expected families of calibration_manifolds, got {sorted(unknown)}")
        x_MD, _ = self._distinct(X, NEIGHBORS)
        base.fit(x_MD)
        found = nearest_neighbors(x_MD, NEIGHBORS, device=self.device)
        values_M6 = neighborhoods(x_MD, found.distances, found.indices).stack()
        self.raw_dimension_ = base.dimension_
        relative = getattr(base, "standard_error_", 0.0) / base.dimension_
        num_neighbors = getattr(base, "n_neighbors", 0)
        # A number of rows to two digits: the calibration changes with its logarithm over the dimension.
        rounded = int(float(f"{len(x_MD):.1e}"))
        table = calibration(
            type(base).__name__, num_neighbors, rounded, frozenset(self.leave_out), self.random_state
        )
        self._correct(table, values_M6, relative)
        return self

    def _correct(self, table: Calibration, values_M6: np.ndarray, relative_error: float) -> None:
        rng = np.random.default_rng(self.random_state)
        num_rows = len(values_M6)
        counts = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=_DRAWS)
        means = np.concatenate([values_M6.mean(axis=0)[None], counts @ values_M6 / num_rows])
        shifts = np.concatenate([[0.0], relative_error * rng.standard_normal(_DRAWS)])
        estimates = self.raw_dimension_ * np.exp(shifts)
        correction, error = table.predict(_features(means, estimates))
        logs = np.log(estimates) + correction
        self.calibration_error_ = float(error[0])
        dimension = math.exp(logs[0])
        self._set(dimension, dimension * math.hypot(float(logs[1:].std()), float(error[0])))
        self.displaced_share_ = _displaced_share(table, values_M6[:, 2], dimension)
        self.warning_ = self._words(table, means[0])

    def _words(self, table: Calibration, mean_6: np.ndarray) -> str:
        words = []
        if self.displaced_share_ > 0.05:
            share = f"{100 * self.displaced_share_:.0f} %"
            words.append(
                f"boundary, noise or uneven density: the neighbors of {share} of the rows lie to one side"
            )
        elif mean_6[0] < 0.9 * mean_6[1]:
            words.append("noise: the dimension falls with the distance")
        if self.calibration_error_ > (0.05 if self.dimension_ <= 10 else 0.10):
            words.append(
                "curvature: manifolds that look alike at this number of rows differ in dimension by "
                f"{100 * self.calibration_error_:.0f} %"
            )
        if self.dimension_ > 1.1 * table.dimension.max():
            words.append(f"beyond the simulated dimensions, up to {table.dimension.max()}")
        return "; ".join(words)


def _measure(x_MD: np.ndarray, estimator: str, num_neighbors: int) -> tuple[np.ndarray, float, float | None]:
    """Mean neighborhood [6], spread of the cosine, and the estimate (None where it is undefined) of a simulation."""
    centers = min(len(x_MD), max(100, min(_CENTERS, 2**23 // len(x_MD))))
    most = max(NEIGHBORS, num_neighbors)
    distances_CK, neighbors_CK = _neighbors_of_first(x_MD, centers, most)
    values_C6 = neighborhoods(x_MD, distances_CK[:, :NEIGHBORS], neighbors_CK[:, :NEIGHBORS]).stack()
    if estimator == "LevinaBickel":
        estimate = 1 / inverse_dimensions(distances_CK[:, :num_neighbors]).mean()
    elif estimator == "TwoNN":
        estimate = 1 / np.log(distances_CK[:, 1] / distances_CK[:, 0]).mean()
    elif estimator == "LocalPCA":
        estimate = pca_dimensions(x_MD, neighbors_CK[:, :num_neighbors], 0.95).mean()
    else:
        try:
            estimate = SimplexCVDimension().fit(x_MD).dimension_
        except ValueError:
            return values_C6.mean(axis=0), 0.0, None
    return values_C6.mean(axis=0), float(values_C6[:, 2].std()), float(estimate)


def _neighbors_of_first(x_MD: np.ndarray, centers: int, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the neighbors of the first rows; samples of a simulation have no copies."""
    squares = np.einsum("md,md->m", x_MD, x_MD)
    cross_CM = squares[:centers, None] + squares - 2 * x_MD[:centers] @ x_MD.T
    np.fill_diagonal(cross_CM, np.inf)
    nearest_CK = np.argpartition(cross_CM, num_neighbors, axis=1)[:, :num_neighbors]
    exact_CK = np.linalg.norm(x_MD[nearest_CK] - x_MD[:centers, None], axis=2)
    order = np.argsort(exact_CK, axis=1)
    return np.take_along_axis(exact_CK, order, 1), np.take_along_axis(nearest_CK, order, 1)


def _features(means: np.ndarray, estimates: Any) -> np.ndarray:
    """Features [..., F] of means over centers [..., 6] and estimates [...]."""
    shape = shape_statistics(means)
    logs = np.log(estimates)
    scale = np.log(means[..., 0] / means[..., 1])
    return np.stack([logs, shape[..., 0] - logs, *np.moveaxis(shape[..., 1:], -1, 0), scale], axis=-1)


def _distance(a_QF: np.ndarray, b_SF: np.ndarray, scales_F: np.ndarray) -> np.ndarray:
    return (((a_QF[:, None] - b_SF[None]) / scales_F) ** 2).sum(axis=-1)


def _krige(x_SF: np.ndarray, y_S: np.ndarray, query_QF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a Gaussian process with a linear trend, at the queries."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        trend = _LINEAR * (1 + a @ b.T)
        return _AMPLITUDE * np.exp(-0.5 * _distance(a, b, _SCALES)) + trend

    noisy_SS = covariance(x_SF, x_SF) + _NOISE * np.eye(len(x_SF))
    cross_QS = covariance(query_QF, x_SF)
    own_Q = _AMPLITUDE + _LINEAR * (1 + (query_QF**2).sum(axis=1))
    solved = np.linalg.solve(noisy_SS, np.column_stack([y_S, cross_QS.T]))
    variance_Q = own_Q - np.einsum("qs,sq->q", cross_QS, solved[:, 1:])
    return cross_QS @ solved[:, 0], np.sqrt(np.maximum(variance_Q, 0))


def _displaced_share(table: Calibration, cosine_M: np.ndarray, dimension: float) -> float:
    """Share of the rows with a mean cosine far above the median, by the spread seen on spheres."""
    spheres = table.family == "sphere"
    if not spheres.any():
        spheres = np.ones(len(table.family), dtype=bool)
    order = np.argsort(table.dimension[spheres])
    known, spread = table.dimension[spheres][order], table.spread[spheres][order]
    limit = np.median(cosine_M) + 6 * np.interp(dimension, known, spread)
    return float((cosine_M > limit).mean())
