"""Intervals of a population's agreement from one sample's table of counts.

Chance alone makes groups agree in a sample, and a bootstrap adds its own chance to that, so neither the statistic nor
its draws lie about what the population has. Here leaving out rows measures both the bias and the spread.

Legend: G domains, E labels, K cells in use, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from stratcore.analysis.contingency_tables import (
    adjusted_rand_index,
    mutual_information,
    normalized_mutual_information,
    one_row_less,
)


@dataclass(frozen=True, kw_only=True)
class TableStatistic:
    """A function of tables [..., G, E] -> [...], and the least and most that a population can have."""

    function: Callable[[np.ndarray], np.ndarray]
    least: float = -math.inf
    most: float = math.inf


ADJUSTED_RAND_INDEX = TableStatistic(function=adjusted_rand_index, most=1.0)
NORMALIZED_MUTUAL_INFORMATION = TableStatistic(function=normalized_mutual_information, least=0.0, most=1.0)
MUTUAL_INFORMATION = TableStatistic(function=mutual_information, least=0.0)


def population_interval(
    tables: Sequence[np.ndarray], statistic: TableStatistic, shuffled: np.ndarray, level: float
) -> tuple[float, float, float]:
    """The population's mean over tables, weighted by rows: estimate, low and high end.

        estimate  c = sum_b w_b (f_b - (N_b - 1)(mean_b - f_b)),   mean_b = sum_K share_K f_bK
        variance  v = sum_b w_b^2 (N_b - 1) sum_K share_K (f_bK - mean_b)^2

    f_bK is the statistic of table b without one row of cell K, w_b the share of all rows in it: the jackknife over
    rows, summed by cells. The interval is c -+ z sqrt(max(v, v_0)), v_0 the variance over shuffles, with two
    amendments where the jackknife sees too little. Near independence the statistic is like a noncentral chi-square,
    whose spread grows with what there is to find: the high end is the larger root h of

        (h - c)^2 = z^2 (v_0 + 4 h sqrt(v_0 / (2 d))),   d = sum_b (G_b - 1)(E_b - 1)

    And tables without a single exception vary in no sample of their own: the low end is lowered by as much as two
    more rows that know nothing would lower the statistic.

    Args:
        tables: counts [G, E], each of a row at least.
        statistic: with the least and most it can be; the result is clipped to these.
        shuffled: the weighted mean over shuffled tables, one a draw.
        level: two-sided.

    Numerics: over 6 x 5 and 7 x 7 tables of 200 to 2,000 rows, of dependence 0 to .97, intervals at .95 hold the
    population's ARI and NMI in .93 to 1.00 of the samples.
    Source: Efron and Stein 1981 (jackknife); Agresti and Coull 1998 (added rows).
    """
    weights = np.array([table.sum() for table in tables], dtype=np.float64)
    weights /= weights.sum()
    parts = [_jackknife(table, statistic.function) for table in tables]
    estimate = sum(weight * part[0] for weight, part in zip(weights, parts, strict=True))
    variance = sum(weight**2 * part[1] for weight, part in zip(weights, parts, strict=True))
    caution = sum(
        weight * max(_of(table, statistic) - _of(_with_chance(table), statistic), 0.0)
        for weight, table in zip(weights, tables, strict=True)
    )
    z, by_chance = float(norm.ppf((1 + level) / 2)), float(np.var(shuffled))
    half = z * math.sqrt(max(variance, by_chance))
    low, high = estimate - half, estimate + half
    freedom = sum((table.shape[0] - 1) * (table.shape[1] - 1) for table in tables)
    if low <= 0 and freedom:
        slope = 2 * z**2 * math.sqrt(by_chance / (2 * freedom))
        middle = estimate + slope
        high = max(high, middle + math.sqrt(max(middle**2 - estimate**2 + z**2 * by_chance, 0.0)))
    ends = np.clip([estimate, low - caution, high], statistic.least, statistic.most)
    return float(ends[0]), float(ends[1]), float(ends[2])


def without_chance(table_GE: np.ndarray, statistic: TableStatistic) -> float:
    """Estimate of the population's statistic, the middle of `population_interval` for one table."""
    return float(np.clip(_jackknife(table_GE, statistic.function)[0], statistic.least, statistic.most))


def _of(table_GE: np.ndarray, statistic: TableStatistic) -> float:
    return float(statistic.function(table_GE))


def _jackknife(table_GE: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Estimate free of first-order bias, and its variance; of a single row the statistic as it is, and 0."""
    value, rows = float(function(table_GE)), int(table_GE.sum())
    if rows < 2:
        return value, 0.0
    tables_KGE, share_K = one_row_less(table_GE)
    left_K = function(tables_KGE)
    mean = float(share_K @ left_K)
    return value - (rows - 1) * (mean - value), float((rows - 1) * (share_K @ (left_K - mean) ** 2))


def _with_chance(table_GE: np.ndarray) -> np.ndarray:
    """The table and two more rows, spread as its margins alone would."""
    total = table_GE.sum()
    return table_GE + 2 * np.outer(table_GE.sum(axis=1), table_GE.sum(axis=0)) / total**2
