"""Every estimate of the dimension of every stratum, each with an interval, in one table of typed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis._checks import as_labels, as_matrix
from stratcore.analysis.calibrated_dim import CalibratedDimension
from stratcore.analysis.intrinsic_dim import effective_rank, participation_ratio
from stratcore.analysis.local_dim import DANCo, LevinaBickel, LocalPCA, SimplexCVDimension, TwoNN
from stratcore.analysis.resampling import Resampling

LINEAR = ("pca", "effective_rank", "participation_ratio")
CALIBRATED = {
    "two_nn": TwoNN,
    "levina_bickel": LevinaBickel,
    "local_pca": LocalPCA,
    "simplex_cv": SimplexCVDimension,
}
ESTIMATORS = (*LINEAR, *CALIBRATED, "danco")


@dataclass(frozen=True, kw_only=True)
class DimensionRow:
    """One estimate. estimator ends in "_calibrated" for `CalibratedDimension`.

    value, low, high are NaN where the stratum gives none, and `warning` says why; low and high alone are NaN where
    the estimator has no interval (DANCo).
    """

    stratum: str
    num_rows: int
    estimator: str
    value: float
    low: float
    high: float
    warning: str


def dimension_table(
    X: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    estimators: Sequence[str] = (*LINEAR, *CALIBRATED),
    calibrated: bool = True,
    variance: float = 0.75,
    seed: int = 0,
) -> list[DimensionRow]:
    """Estimates the dimension of each stratum by each estimator.

    Args:
        X: rows, [N, D].
        labels: stratum of each row, [N], any sortable dtype; None: one stratum "all".
        estimators: of `ESTIMATORS`. The first three are linear: the dimension of the span.
        calibrated: whether the four from neighborhoods are followed by their calibrated value.
        variance: of `PCADimension`.
        seed: of simulation and bootstrap.

    Returns:
        Rows in the order of strata, then estimators. Intervals at 95 %; those of the linear ones are
        the value with twice the spread of a bootstrap over rows, whose own center falls short.

    Raises:
        ValueError: an unknown estimator, or what `as_matrix` says of the rows.
        ModuleNotFoundError: "danco" without scikit-dimension.

    Cost: the calibration simulates once for each size of stratum and estimator, 12 s at 2,500 rows.
    """
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown:
        raise ValueError(f"estimators: expected some of {', '.join(ESTIMATORS)}, got {unknown[0]!r}")
    x_ND = as_matrix("X", X)
    labels_N = np.full(len(x_ND), "all") if labels is None else as_labels("labels", labels, len(x_ND))
    table = []
    for stratum in np.unique(labels_N):
        rows = x_ND[labels_N == stratum]
        for name in estimators:
            for mode in (name, f"{name}_calibrated")[: 1 + (calibrated and name in CALIBRATED)]:
                value, low, high, warning = _estimate(rows, mode, variance, seed)
                table.append(
                    DimensionRow(
                        stratum=str(stratum),
                        num_rows=len(rows),
                        estimator=mode,
                        value=value,
                        low=low,
                        high=high,
                        warning=warning,
                    )
                )
    return table


def _estimate(x_ND: np.ndarray, mode: str, variance: float, seed: int) -> tuple[float, float, float, str]:
    try:
        if mode in LINEAR:
            return _linear(x_ND, mode, variance, seed)
        if mode == "danco":
            return DANCo(random_state=seed).fit(x_ND).dimension_, float("nan"), float("nan"), ""
        name = mode.removesuffix("_calibrated")
        estimator = CALIBRATED[name]()
        if name != mode:
            estimator = CalibratedDimension(estimator, random_state=seed)
        found = estimator.fit(x_ND)
    except ValueError as error:
        return float("nan"), float("nan"), float("nan"), str(error)
    return found.dimension_, *found.interval_, getattr(found, "warning_", "")


def _linear(x_ND: np.ndarray, name: str, variance: float, seed: int) -> tuple[float, float, float, str]:
    """The estimate from the eigenvalues of the covariance with its bootstrap over rows."""
    if len(x_ND) < 2 or not np.ptp(x_ND, axis=0).any():
        raise ValueError(f"X: expected at least 2 distinct rows, got {len(x_ND)} equal")

    def estimate(rows: np.ndarray) -> float:
        rows = rows - rows.mean(axis=0)
        gram = rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T
        values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
        if name == "effective_rank":
            return effective_rank(values)
        if name == "participation_ratio":
            return participation_ratio(values)
        shares = values.cumsum() / values.sum()
        return float(np.searchsorted(shares, variance - 1e-12) + 1)

    resampling = Resampling(num_resamples=100, seed=seed)
    rng = resampling.generator()
    draws = [rng.integers(len(x_ND), size=len(x_ND)) for _ in range(resampling.num_resamples)]
    spread = float(np.std([estimate(x_ND[draw]) for draw in draws if np.ptp(x_ND[draw], axis=0).any()]))
    value, z = estimate(x_ND), NormalDist().inv_cdf((1 + resampling.level) / 2)
    low = value - z * spread
    return value, (low if low > 1 else 1.0), value + z * spread, ""
