"""Dimension debiased by closed manifolds simulated at the size of the cloud, with the error of doing so.

Legend: M distinct rows, D features, C centers, K neighbors, S simulated manifolds, F features of a cloud, Q queries.

Above dimension 10 the nearest of a few thousand rows are far away: on a unit sphere S^40 they stand at 60 degrees,
and every estimator reads what the manifold does there. Two manifolds of one dimension then differ by more than two
dimensions do on one manifold. So the correction is read not from the estimate alone but from the shape of the
neighborhoods (`shape_statistics`) and the distances of all pairs (`pair_statistics`), by kriging between families
of manifolds; and its error is what is left on a family that was not among them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis._manifolds import calibration_manifolds
from stratcore.analysis._neighborhoods import neighborhoods, pair_statistics, shape_statistics
from stratcore.analysis.local_dim import NeighborEstimator, inverse_dimensions
from stratcore.analysis.neighbors import nearest_neighbors

NEIGHBORS = 50
MLE_NEIGHBORS = 20
LARGEST_ROWS = 5000
_CENTERS, _PAIR_ROWS, _DRAWS = 400, 2000, 64
# Length scales of the features, in the order of `_features`, and the variances of the process: chosen to make the
# errors on left-out families small at 2,500 rows.
_SCALES = np.array([690.0, 0.51, 0.19, 0.56, 1.0, 5.3, 0.94, 0.30, 0.146, 5800.0, 32.0])
_AMPLITUDE, _NOISE, _LINEAR = 0.068, 0.052**2, 3.16
# How far the error on one left-out family speaks of that on another cloud, in the same features.
_ERROR_SCALES = np.array([0.3, 0.1, 0.05, 0.5, 0.5, 0.1, 0.2, 0.1, 0.2, 0.5, 0.3])
# Too uneven a curvature for any correction here: they count for the error, not for the correction.
_ERROR_ONLY = ("sphere and torus",)


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


@lru_cache(maxsize=8)
def _simulate(num_rows: int, seed: int) -> list[tuple[str, int, np.ndarray, float]]:
    """Family, dimension, features [F] and spread of the cosine of every manifold at `num_rows` rows."""
    rows = []
    for index, (family, members) in enumerate(calibration_manifolds().items()):
        for number, (dimension, sample) in enumerate(members):
            x_MD = sample(np.random.default_rng([seed, index, number]), num_rows)
            centers = min(num_rows, max(100, min(_CENTERS, 2**23 // num_rows)))
            values_C7 = _neighborhood_values(x_MD, *_neighbors_of_first(x_MD, centers, NEIGHBORS))
            features = _features(values_C7.mean(axis=0), pair_statistics(x_MD[:_PAIR_ROWS]))
            rows.append((family, dimension, features, float(values_C7[:, 2].std())))
    return rows


@lru_cache(maxsize=16)
def calibration(num_rows: int, leave_out: frozenset[str] = frozenset(), seed: int = 0) -> Calibration:
    """The simulated manifolds at `num_rows` rows, but the families to leave out, with what the MLE says of them.

    Kept for the process, as is the simulation that all `leave_out` share.
    """
    rows = [row for row in _simulate(num_rows, seed) if row[0] not in leave_out]
    family_S, dimension_S, features_S, spread_S = (np.array(column) for column in zip(*rows, strict=True))
    correction_S = np.log(dimension_S) - features_S[:, 0]
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
    """The maximum likelihood estimate (K = 20) of the dimension, debiased by simulated manifolds of as many rows.

    Args:
        leave_out: families of `calibration_manifolds` not to use, to judge the calibration on them.
        level: of the interval.
        random_state: seed of the simulation and of the bootstrap, an int.
        device: where neighbors are searched; None leaves the choice to `nearest_neighbors`.

    Attributes:
        dimension_, low_, high_, standard_error_: the estimate; the interval holds the bootstrap over rows and the
            error of the calibration.
        raw_dimension_: before the correction.
        calibration_error_: standard error of log dimension_ on manifolds that were not simulated.
        displaced_share_: rows whose neighbors lie more to one side than on a closed manifold.
        warning_: what forbids a sharper answer, in words, or None.
        num_duplicates_: rows that are copies of another one; they are left out.

    Numerics: boundary, noise and uneven density bias the answer; `warning_` names them. Of more than 5,000 distinct
    rows a random 5,000 are used.
    Determinism: a function of the rows and `random_state`.
    Cost: the simulation, once for a number of rows (to 5 %) and seed.
    """

    def __init__(
        self,
        leave_out: Collection[str] = (),
        level: float = 0.95,
        random_state: int = 0,
        device: str | None = None,
    ) -> None:
        self.leave_out = leave_out
        self.level = level
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> CalibratedDimension:
        """Fit on rows [N, D], more than 50 of them distinct; `y` is ignored."""
        unknown = set(self.leave_out) - set(calibration_manifolds())
        if unknown:
            raise ValueError(f"leave_out: expected families of calibration_manifolds, got {sorted(unknown)}")
        x_MD, _ = self._distinct(X, NEIGHBORS)
        rng = np.random.default_rng(self.random_state)
        if len(x_MD) > LARGEST_ROWS:
            x_MD = x_MD[rng.choice(len(x_MD), LARGEST_ROWS, replace=False)]
        found = nearest_neighbors(x_MD, NEIGHBORS, device=self.device)
        values_M7 = _neighborhood_values(x_MD, found.distances, found.indices)
        pairs = pair_statistics(x_MD[rng.permutation(len(x_MD))[:_PAIR_ROWS]])
        # A number of rows to two digits: the calibration changes with its logarithm over the dimension.
        rounded = int(float(f"{len(x_MD):.1e}"))
        table = calibration(rounded, frozenset(self.leave_out), self.random_state)
        counts = rng.multinomial(len(x_MD), np.full(len(x_MD), 1 / len(x_MD)), size=_DRAWS)
        means = np.concatenate([values_M7.mean(axis=0)[None], counts @ values_M7 / len(x_MD)])
        features = np.stack([_features(mean, pairs) for mean in means])
        correction, error = table.predict(features)
        logs = features[:, 0] + correction
        self.raw_dimension_ = math.exp(features[0, 0])
        self.calibration_error_ = float(error[0])
        dimension = math.exp(logs[0])
        self._set(dimension, dimension * math.hypot(float(logs[1:].std()), float(error[0])))
        self.displaced_share_ = _displaced_share(table, values_M7[:, 2], dimension)
        self.warning_ = self._words(table, means[0])
        return self

    def _words(self, table: Calibration, mean_7: np.ndarray) -> str | None:
        words = []
        if self.displaced_share_ > 0.05:
            share = f"{100 * self.displaced_share_:.0f} %"
            words.append(
                f"boundary, noise or uneven density: the neighbors of {share} of the rows lie to one side"
            )
        elif mean_7[0] < 0.9 * mean_7[1]:
            words.append("noise or uneven curvature: the dimension falls with the distance")
        if self.calibration_error_ > (0.05 if self.dimension_ <= 10 else 0.10):
            words.append(
                "curvature: manifolds that look alike at this number of rows differ in dimension by "
                f"{100 * self.calibration_error_:.0f} %"
            )
        if self.dimension_ > 1.1 * table.dimension.max():
            words.append(f"beyond the simulated dimensions, up to {table.dimension.max()}")
        return "; ".join(words) or None


def _neighborhood_values(x_MD: np.ndarray, distances_CK: np.ndarray, neighbors_CK: np.ndarray) -> np.ndarray:
    """Fields of `Neighborhoods` and the inverse of the local MLE, [C, 7]."""
    inverse_C = inverse_dimensions(distances_CK[:, :MLE_NEIGHBORS])
    return np.column_stack([neighborhoods(x_MD, distances_CK, neighbors_CK).stack(), inverse_C])


def _neighbors_of_first(x_MD: np.ndarray, centers: int, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the neighbors of the first rows; samples of a simulation have no copies."""
    squares = np.einsum("md,md->m", x_MD, x_MD)
    cross_CM = squares[:centers, None] + squares - 2 * x_MD[:centers] @ x_MD.T
    np.fill_diagonal(cross_CM, np.inf)
    nearest_CK = np.argpartition(cross_CM, num_neighbors, axis=1)[:, :num_neighbors]
    exact_CK = np.linalg.norm(x_MD[nearest_CK] - x_MD[:centers, None], axis=2)
    order = np.argsort(exact_CK, axis=1)
    return np.take_along_axis(exact_CK, order, 1), np.take_along_axis(nearest_CK, order, 1)


def _features(mean_7: np.ndarray, pairs_9: np.ndarray) -> np.ndarray:
    """Features [F] from the means over centers [7] and the pair statistics [9]; the first is log of the MLE."""
    log_mle = -np.log(mean_7[6])
    shape = shape_statistics(mean_7[:6])
    (_, _, radius_3), (plain_2, curved_2, radius_2), (plain_1, curved_1, _) = pairs_9.reshape(3, 3)
    return np.array([
        log_mle,
        shape[0] - log_mle,
        *shape[1:],
        np.log(mean_7[0] / mean_7[1]),
        np.log(max(curved_2, 1.0) / plain_2),
        np.log(plain_2 / plain_1),
        radius_2,
        np.log(max(curved_1, 1.0) / plain_1),
        radius_3,
    ])  # fmt: skip


def _distance(a_QF: np.ndarray, b_SF: np.ndarray, scales_F: np.ndarray) -> np.ndarray:
    return (((a_QF[:, None] - b_SF[None]) / scales_F) ** 2).sum(axis=-1)


def _krige(x_SF: np.ndarray, y_S: np.ndarray, query_QF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a Gaussian process with a linear trend, at the queries."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        trend = _LINEAR * (1 + (a / _SCALES) @ (b / _SCALES).T)
        return _AMPLITUDE * np.exp(-0.5 * _distance(a, b, _SCALES)) + trend

    noisy_SS = covariance(x_SF, x_SF) + _NOISE * np.eye(len(x_SF))
    cross_QS = covariance(query_QF, x_SF)
    own_Q = _AMPLITUDE + _LINEAR * (1 + ((query_QF / _SCALES) ** 2).sum(axis=1))
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
