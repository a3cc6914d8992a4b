"""Do labels follow domains? Agreement with intervals and floors, and the length control.

The statistics depend on the rows only through the contingency table, so rows are left out cell by cell, and the
permutation floor draws tables of the same margins: both exact, both fast.

Legend: N rows, G domains, E labels (experts or clusters), T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis._checks import as_array, as_labels
from stratcore.analysis.contingency_tables import contingency, shuffled_tables
from stratcore.analysis.resampling import Resampling
from stratcore.analysis.table_intervals import (
    ADJUSTED_RAND_INDEX,
    NORMALIZED_MUTUAL_INFORMATION,
    TableStatistic,
    population_interval,
    without_chance,
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic of a sample, what it says of the population, and what shuffled labels score.

    value: of the rows at hand. Chance raises it, the more the fewer rows there are.
    corrected: estimate of the population's, free of that chance; equal to `value` where chance does not raise it.
    low, high: interval of the population's, about `corrected`; see `population_interval`. It need not hold `value`.
    floor, floor_high: mean over shuffles, and their upper quantile at the same level; compare with `value`.
    p_value: share of shuffles at or above the value, counting the value itself (so it is never zero).
    """

    value: float
    corrected: float
    low: float
    high: float
    floor: float
    floor_high: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Adjusted Rand index and normalized mutual information (arithmetic mean) of labels and domains."""

    ari: Estimate
    nmi: Estimate
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Agreement inside one bin (low, high] of a confounder, free of chance; NaN where it holds a single domain."""

    low: float
    high: float
    num_rows: int
    ari: float
    nmi: float


@dataclass(frozen=True, kw_only=True)
class BinnedAgreement:
    """Row-weighted mean of the agreement within bins, with interval and floor, and the bins themselves."""

    ari: Estimate
    nmi: Estimate
    num_rows: int
    bins: list[Bin]


_STATISTICS = (ADJUSTED_RAND_INDEX, NORMALIZED_MUTUAL_INFORMATION)


def agreement(assign: ArrayLike, domain: ArrayLike, resampling: Resampling | None = None) -> Agreement:
    """ARI and NMI of labels and domains, each with an interval (see `Estimate`) and a permutation floor.

    Args:
        assign: label (expert or cluster) of each row, [N].
        domain: domain of each row, [N].
        resampling: how many draws, at which level, from which seed.

    Raises:
        ValueError: no rows, not one domain and one label a row, or a row without one.

    Numerics: NMI of unrelated labels is above zero in a finite sample: read `value` against the floor, `corrected`
    against zero. ARI is corrected for chance by itself. Intervals cover the choice of rows, not of seeds.
    """
    table_GE, _, _ = contingency(domain, assign)
    resampling = resampling or Resampling()
    ari, nmi = table_estimates([table_GE], _STATISTICS, resampling)
    return Agreement(ari=ari, nmi=nmi, num_rows=int(table_GE.sum()))


def quantile_bins(values: ArrayLike, num_bins: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Sort rows into bins of nearly equal count.

    Returns:
        bin of each row, [N], and edges [B + 1]; bin b holds edges[b] < value <= edges[b + 1], the first one
        its lower edge too. Ties are never split, so B may be less than `num_bins`.
    """
    values_N = as_array(values).astype(np.float64)
    if values_N.ndim != 1 or len(values_N) == 0 or not np.isfinite(values_N).all() or num_bins < 1:
        raise ValueError("values: expected one finite number a row and num_bins >= 1")
    last = -(-len(values_N) * np.arange(1, num_bins + 1) // num_bins) - 1  # rank that ends each bin
    upper = np.unique(np.sort(values_N)[last])
    return np.searchsorted(upper, values_N, side="left"), np.r_[values_N.min(), upper]


def within_bins(
    assign: ArrayLike,
    domain: ArrayLike,
    values: ArrayLike,
    num_bins: int = 5,
    resampling: Resampling | None = None,
) -> BinnedAgreement:
    """Agreement within quantile bins of a confounder, such as the token count.

    If labels follow domains only because both follow the confounder, the agreement within bins falls to its
    floor. The mean weighs bins by rows; a bin with a single domain can show nothing and is left out of it.

    Args:
        assign: label of each row, [N].
        domain: domain of each row, [N].
        values: the confounder, [N].
        num_bins: bins of nearly equal count; 5 makes quintiles.
        resampling: draws are made within bins, so the floor keeps each bin's own margins.
    """
    bins: list[Bin] = []
    tables: list[np.ndarray] = []
    for low, high, table_GE in binned_tables(assign, domain, values, num_bins):
        informative = len(table_GE) > 1
        ari, nmi = (
            without_chance(table_GE, statistic) if informative else np.nan for statistic in _STATISTICS
        )
        bins.append(Bin(low=low, high=high, num_rows=int(table_GE.sum()), ari=ari, nmi=nmi))
        if informative:
            tables.append(table_GE)
    if not tables:
        raise ValueError("domain: every bin holds a single domain, so nothing can be said within bins")
    ari_mean, nmi_mean = table_estimates(tables, _STATISTICS, resampling or Resampling())
    num_rows = sum(int(table.sum()) for table in tables)
    return BinnedAgreement(ari=ari_mean, nmi=nmi_mean, num_rows=num_rows, bins=bins)


def binned_tables(
    assign: ArrayLike, domain: ArrayLike, values: ArrayLike, num_bins: int = 5
) -> list[tuple[float, float, np.ndarray]]:
    """Contingency table [G, E] of each quantile bin of a confounder, with the bin's edges.

    A table has a row for each domain that the bin holds, so a table of one row can show nothing.

    Args:
        assign: label of each row, [N].
        domain: domain of each row, [N].
        values: the confounder, [N].
        num_bins: see `quantile_bins`.
    """
    bin_N, edges = quantile_bins(values, num_bins)
    num_rows = as_array(domain).size
    if len(bin_N) != num_rows == as_array(assign).size:
        raise ValueError(f"values: expected a number for each of {num_rows} rows, got {len(bin_N)}")
    assign_N, domain_N = (
        as_labels(name, each, len(bin_N)) for name, each in (("assign", assign), ("domain", domain))
    )
    return [
        (float(low), float(high), contingency(domain_N[bin_N == index], assign_N[bin_N == index])[0])
        for index, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


def table_estimates(
    tables: Sequence[np.ndarray], statistics: Sequence[TableStatistic], resampling: Resampling
) -> list[Estimate]:
    """Means over tables, weighted by rows, of each statistic, with intervals and floors.

    Args:
        tables: counts, each [G, E].
        statistics: what is counted of them.
        resampling: shuffles, level and seed.
    """
    rng, count = resampling.generator(), resampling.num_resamples
    shuffled = [shuffled_tables(table_GE, count, rng) for table_GE in tables]
    weights = np.array([table.sum() for table in tables], dtype=np.float64)
    weights /= weights.sum()
    estimates = []
    for statistic in statistics:
        value, floor = (
            sum(weight * statistic.function(table) for weight, table in zip(weights, group, strict=True))
            for group in (tables, shuffled)
        )
        corrected, low, high = population_interval(tables, statistic, floor, resampling.level)
        estimates.append(
            Estimate(
                value=float(value),
                corrected=corrected,
                low=low,
                high=high,
                floor=float(np.mean(floor)),
                floor_high=float(np.quantile(floor, resampling.level)),
                p_value=float((1 + (floor >= value - 1e-12).sum()) / (1 + count)),
            )
        )
    return estimates
