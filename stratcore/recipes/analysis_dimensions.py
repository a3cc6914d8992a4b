"""The dimensions of an analysis: all rows and each stratum, by several estimators. Legend: N rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stratcore.analysis.dimensions import ALL_ROWS, DimensionRow, dimension_table

SAMPLES = (2500, 1000, 500, 250)  # each size is calibrated once


def stratum_dimensions_table(
    x_ND: np.ndarray, strata: np.ndarray, *, variance: float, calibrated: bool, danco: bool, seed: int
) -> list[DimensionRow]:
    """Estimates of all rows and, where there are several, of each stratum.

    Every estimator sees the largest number of `SAMPLES` that a stratum has, drawn at random; strata of fewer rows
    are taken whole and not calibrated.

    Args:
        x_ND: rows, [N, D].
        strata: label of each row, [N].
        variance: share of the PCA dimension.
        calibrated: add the calibrated estimate.
        danco: add that of scikit-dimension's DANCo.
        seed: of draws, simulation and bootstrap.
    """
    names = np.unique(strata)
    groups = {ALL_ROWS: np.arange(len(x_ND))}
    if len(names) > 1:
        groups |= {str(name): np.flatnonzero(strata == name) for name in names}
    estimates = []
    for stratum, rows in groups.items():
        size = next((size for size in SAMPLES if size <= len(rows)), None)
        drawn = rows if size is None else np.random.default_rng(seed).choice(rows, size, replace=False)
        table = dimension_table(
            x_ND[drawn],
            variance=variance,
            calibrated=calibrated and size is not None,
            danco=danco,
            seed=seed,
        )
        estimates += [replace(row, stratum=stratum, num_rows=len(rows)) for row in table]
    return estimates
