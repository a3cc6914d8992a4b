"""The dimensions of an analysis: all rows and each stratum, by several estimators. Legend: N rows."""

from __future__ import annotations

import numpy as np

from stratcore.analysis.dimensions import DimensionRow, dimension_table
from stratcore.analysis.stratification_results import DimensionEstimate
from stratcore.analysis.stratification_words import ALL_ROWS, CALIBRATED

SAMPLES = (2500, 1000, 500, 250)  # rows of estimators from neighborhoods: each size is calibrated once
LINEAR = ("pca", "effective_rank", "participation_ratio")


def stratum_estimates(
    x_ND: np.ndarray, strata: np.ndarray, *, variance: float, calibrated: bool, seed: int
) -> list[DimensionEstimate]:
    """Estimates of all rows and, where there are several, of each stratum.

    The estimators from neighborhoods see the largest number of `SAMPLES` that a stratum has, drawn at random;
    strata of fewer rows are taken whole and not calibrated.

    Args:
        x_ND: rows, [N, D].
        strata: label of each row, [N].
        variance: share of the PCA dimension.
        calibrated: add the calibrated Levina-Bickel estimate.
        seed: of draws, simulation and bootstrap.
    """
    names = np.unique(strata)
    groups = {ALL_ROWS: np.arange(len(x_ND))}
    if len(names) > 1:
        groups |= {str(name): np.flatnonzero(strata == name) for name in names}
    estimates = []
    for stratum, rows in groups.items():
        linear = dimension_table(x_ND[rows], estimators=LINEAR, variance=variance, seed=seed)
        size = next((size for size in SAMPLES if size <= len(rows)), None)
        drawn = rows if size is None else np.random.default_rng(seed).choice(rows, size, replace=False)
        local = [
            *dimension_table(x_ND[drawn], estimators=("two_nn",), calibrated=False, seed=seed),
            *dimension_table(
                x_ND[drawn],
                estimators=("levina_bickel",),
                calibrated=calibrated and size is not None,
                seed=seed,
            ),
        ]
        estimates += [_plain(stratum, len(rows), row, variance) for row in (*linear, *reversed(local))]
    return estimates


def _plain(stratum: str, num_rows: int, row: DimensionRow, variance: float) -> DimensionEstimate:
    titles = {
        "pca": f"PCA, {100 * variance:.0f} % of variance",
        "effective_rank": "effective rank",
        "participation_ratio": "participation ratio",
        "two_nn": "TwoNN",
        "levina_bickel": "Levina-Bickel",
        "levina_bickel_calibrated": f"Levina-Bickel{CALIBRATED}",
    }
    value, low, high = (float(x) if np.isfinite(x) else None for x in (row.value, row.low, row.high))
    return {
        "stratum": stratum,
        "num_rows": num_rows,
        "estimator": titles[row.estimator],
        "value": value,
        "low": low,
        "high": high,
        "warning": row.warning or None,
    }
