"""Every dimension of a cloud side by side: of all rows and of each stratum, with intervals.

Legend: N rows, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from stratcore.analysis._checks import as_labels, as_matrix, precision, without_rounding
from stratcore.analysis.calibrated_dim import CalibratedDimension
from stratcore.analysis.intrinsic_dim import effective_rank, participation_ratio
from stratcore.analysis.local_dim import (
    DANCo,
    LevinaBickel,
    LocalPCA,
    SimplexCVDimension,
    TwoNN,
    enough_distinct_rows,
)

ALL_ROWS = "all rows"
_LEAST_ROWS = 3
_LEAST_ROWS_OF_INTERVAL = 20
_PCA_ROWS = 4000  # rows of a part: more say nothing new of an eigenvalue's share


@dataclass(frozen=True, kw_only=True)
class DimensionRow:
    """One estimate of one stratum.

    Args:
        stratum: "all rows" or the label.
        num_rows: rows of the stratum.
        estimator: the name a reader knows it by.
        value: the dimension; None where it could not be estimated.
        low, high: 95 % interval; None where there is none.
        warning: what limits the value, or why there is none.
    """

    stratum: str
    num_rows: int
    estimator: str
    value: float | None
    low: float | None
    high: float | None
    warning: str | None


def dimension_table(
    X: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    variance: float = 0.75,
    calibrated: bool = True,
    danco: bool = False,
    seed: int = 0,
) -> list[DimensionRow]:
    """Dimensions of all rows and of each stratum by every estimator.

    Args:
        X: rows, [N, D], NumPy or torch.
        labels: stratum of each row, [N], any sortable dtype; None: all rows only.
        variance: share of the variance that counts a principal component, in (0, 1].
        calibrated: whether `CalibratedDimension` is among them; it costs a simulation per number of rows.
        danco: whether `DANCo` is among them; it needs scikit-dimension.
        seed: of the resamples, the simplices and the simulation.

    Returns:
        The rows of "all rows" first, then those of the sorted labels. Within a stratum: the three linear ones
        (upper bounds where the stratum is curved), the calibrated one, then the others.

    Raises:
        ValueError: a share out of range, a row that is not finite, labels that do not fit the rows.
        ModuleNotFoundError: DANCo is asked for and scikit-dimension not installed.

    Determinism: a function of the rows, the labels and `seed`.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance: expected a share in (0, 1], got {variance}")
    x_ND = as_matrix("X", X)
    estimators = dict(_estimators(calibrated, danco, seed))
    table = list(_stratum_rows(ALL_ROWS, x_ND, variance, estimators, seed))
    if labels is not None:
        labels_N = as_labels("labels", labels, len(x_ND))
        for label in np.unique(labels_N):
            table += _stratum_rows(str(label), x_ND[labels_N == label], variance, estimators, seed)
    return table


def _stratum_rows(
    stratum: str, x_ND: np.ndarray, variance: float, estimators: Mapping[str, BaseEstimator], seed: int
) -> Iterator[DimensionRow]:
    def row(
        name: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        warning: str | None = None,
    ) -> DimensionRow:
        numbers = (
            None if number is None or math.isnan(number) else float(number) for number in (value, low, high)
        )
        value, low, high = numbers
        return DimensionRow(
            stratum=stratum,
            num_rows=len(x_ND),
            estimator=name,
            value=value,
            low=low,
            high=high,
            warning=warning,
        )

    for name, linear in _linear(x_ND, variance, seed).items():
        yield row(name, *linear) if isinstance(linear, tuple) else row(name, None, warning=linear)
    for name, estimator in estimators.items():
        try:
            found = estimator.fit(x_ND)
        except ValueError as error:
            yield row(name, None, warning=str(error))
            continue
        low, high = getattr(found, "low_", None), getattr(found, "high_", None)
        yield row(name, found.dimension_, low, high, getattr(found, "warning_", None))


def _estimators(calibrated: bool, danco: bool, seed: int) -> Iterator[tuple[str, BaseEstimator]]:
    if calibrated:
        yield "MLE, calibrated", CalibratedDimension(random_state=seed)
    yield "TwoNN", TwoNN()
    yield "MLE, k = 20", LevinaBickel(k=20)
    yield "local PCA, k = 100", LocalPCA(k=100)
    yield "simplex CV", SimplexCVDimension(random_state=seed)
    if danco:
        yield "DANCo", DANCo(random_state=seed)


def _linear(x_ND: np.ndarray, variance: float, seed: int) -> dict[str, tuple[float, float, float] | str]:
    """Value and interval of each linear dimension, or why there is none."""
    names = (f"PCA, {100 * variance:g} % of variance", "participation ratio", "effective rank")
    try:
        enough_distinct_rows(x_ND, _LEAST_ROWS - 1)
    except ValueError:
        return dict.fromkeys(names, f"expected at least {_LEAST_ROWS} distinct rows, got {len(x_ND)} rows")
    rng, (num_rows, num_features) = np.random.default_rng(seed), x_ND.shape
    centered_ND = x_ND - x_ND.mean(axis=0)
    rounding = precision(x_ND) * float(np.abs(x_ND).max())
    values = _spectrum_dimensions(centered_ND, variance, rounding)
    if num_rows < _LEAST_ROWS_OF_INTERVAL:
        return {name: (value, math.nan, math.nan) for name, value in zip(names, values, strict=True)}
    # A bootstrap repeats rows, which narrows the spectrum; a part of the rows does not. The spread over parts of m of
    # N rows is that of N rows times sqrt(N / m - 1).
    size = min(num_rows // 2, _PCA_ROWS)
    draws = [
        _spectrum_dimensions(centered_ND[rng.choice(num_rows, size, replace=False)], variance, rounding)
        for _ in range(50 if num_features <= 256 else 20)
    ]
    spread = 1.96 * np.std(draws, axis=0, ddof=1) / math.sqrt(num_rows / size - 1)
    return {
        name: (value, max(1.0, value - half), value + half)
        for name, value, half in zip(names, values, spread, strict=True)
    }


def _spectrum_dimensions(x_ND: np.ndarray, variance: float, rounding: float) -> tuple[float, float, float]:
    centered = x_ND - x_ND.mean(axis=0)
    product = centered.T @ centered if centered.shape[0] >= centered.shape[1] else centered @ centered.T
    values = without_rounding(np.linalg.eigvalsh(product)[::-1].clip(min=0), rounding, x_ND.shape)
    held = np.cumsum(values / values.sum()) < variance - 1e-12
    return float(held.sum() + 1), participation_ratio(values), effective_rank(values)
