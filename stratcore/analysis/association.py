"""Whether a number a row carries (a perplexity, a length) goes with another number or with groups of rows.

All statistics work on ranks, so one text of enormous perplexity cannot make them. Legend: N rows, G groups,
R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from stratcore.analysis._checks import as_array, as_labels
from stratcore.analysis.domain_agreement import Estimate, quantile_bins
from stratcore.analysis.resampling import Resampling


@dataclass(frozen=True, kw_only=True)
class GroupMedian:
    """Median of the values of one group, with its bootstrap interval; None where the group has one row."""

    group: str
    num_rows: int
    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Association:
    """Association of values with groups: share of the rank variance between groups, and the groups' medians.

    `within_control` is the same among rows of like control (each rank minus the mean of its quantile bin's);
    None where no control was given.
    """

    explained: Estimate
    within_control: Estimate | None
    groups: list[GroupMedian]


def rank_correlation(
    a: ArrayLike, b: ArrayLike, *, control: ArrayLike | None = None, resampling: Resampling | None = None
) -> Estimate:
    """Spearman's rank correlation, with a bootstrap interval and a two-sided permutation p-value.

    With a control c it is the partial correlation: the correlation of what is left of rank(a) and rank(b) after
    a linear fit on rank(c).

    Args:
        a: numbers, [N], finite, N >= 4.
        b: numbers, [N].
        control: numbers, [N], or None.
        resampling: draws, level, seed. Draws resample rows; the permutation shuffles `b` (after the fit).

    Returns:
        `floor` is the mean over shuffles, `floor_high` the upper quantile of |shuffled| at the level.

    Raises:
        ValueError: not finite, of unlike length, too few, or constant.
    """
    columns = [_finite_column(name, value) for name, value in (("a", a), ("b", b))]
    if control is not None:
        columns.append(_finite_column("control", control))
    if len({len(column) for column in columns}) > 1 or len(columns[0]) < 4:
        raise ValueError(f"a, b, control: expected 4 or more numbers each, got {[len(c) for c in columns]}")
    resampling = resampling or Resampling()
    rng, count, rows = resampling.generator(), resampling.num_resamples, len(columns[0])
    value = float(_correlation(np.stack(columns)))
    drawn = [_correlation(np.stack(columns)[:, rng.integers(rows, size=rows)]) for _ in range(count)]
    left, right = _residuals(np.stack(columns))
    shuffled = np.array([left @ rng.permutation(right) for _ in range(count)])
    low, high = resampling.interval(np.nan_to_num(drawn))
    return Estimate(
        value=value,
        corrected=value,
        low=low,
        high=high,
        floor=float(shuffled.mean()),
        floor_high=float(np.quantile(np.abs(shuffled), resampling.level)),
        p_value=float((1 + (np.abs(shuffled) >= abs(value) - 1e-12).sum()) / (1 + count)),
    )


def group_association(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    control: ArrayLike | None = None,
    num_bins: int = 5,
    resampling: Resampling | None = None,
) -> Association:
    """How much of the variance of the ranks lies between groups (eta squared of Kruskal and Wallis).

        explained = sum_g n_g (mean rank_g - mean rank)^2 / sum_i (rank_i - mean rank)^2,    in [0, 1]

    Unrelated groups explain (G - 1) / (N - 1) in the mean. The estimate of the population's share takes what shuffled
    groups explain off (epsilon squared), and so does its interval, whose draws are moved until that is their mean:

        corrected = (explained - shuffled) / (1 - shuffled)

    Args:
        values: numbers, [N], finite.
        groups: label of each row, [N], any sortable dtype.
        control: a confounder such as the token count, [N]; ranks are then centered within its quantile bins.
        num_bins: bins of the control.
        resampling: draws, level, seed.

    Raises:
        ValueError: not finite, of unlike length, fewer than two groups, or constant values.

    Source: Kelley 1935 (epsilon squared).
    """
    values_N = _finite_column("values", values)
    names, group_N = np.unique(as_labels("groups", groups, len(values_N)), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"groups: expected at least 2 different groups, got {len(names)}")
    resampling = resampling or Resampling()
    rank_N = rankdata(values_N)
    within = None
    if control is not None:
        bin_N, _ = quantile_bins(control, num_bins)
        bin_N = as_labels("control", bin_N, len(values_N))
        within = _explained_estimate(_centered(rank_N, bin_N), group_N, bin_N, resampling)
    return Association(
        explained=_explained_estimate(rank_N, group_N, np.zeros(len(rank_N)), resampling),
        within_control=within,
        groups=[
            _group_median(str(name), values_N[group_N == index], resampling)
            for index, name in enumerate(names)
        ],
    )


def _finite_column(name: str, value: ArrayLike) -> np.ndarray:
    column_N = as_array(value).astype(np.float64)
    if column_N.ndim != 1 or not np.isfinite(column_N).all():
        raise ValueError(f"{name}: expected one finite number a row, got shape {column_N.shape}")
    if len(column_N) and not np.ptp(column_N):
        raise ValueError(f"{name}: all {len(column_N)} numbers are equal, nothing can go with them")
    return column_N


def _residuals(columns_CN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the first two columns, free of the third's, centered and of unit norm."""
    ranks_CN = rankdata(columns_CN, axis=1)
    ranks_CN -= ranks_CN.mean(axis=1, keepdims=True)
    pair_2N = ranks_CN[:2]
    if len(ranks_CN) == 3:
        control_N = ranks_CN[2] / max(np.linalg.norm(ranks_CN[2]), 1e-300)
        pair_2N = pair_2N - (pair_2N @ control_N)[:, None] * control_N
    norm_2 = np.linalg.norm(pair_2N, axis=1, keepdims=True)
    left_N, right_N = pair_2N / np.where(norm_2 > 1e-9 * pair_2N.shape[1], norm_2, np.inf)
    return left_N, right_N


def _correlation(columns_CN: np.ndarray) -> float:
    left, right = _residuals(columns_CN)
    return float(left @ right)


def _centered(rank_N: np.ndarray, bin_N: np.ndarray) -> np.ndarray:
    return rank_N - (np.bincount(bin_N, rank_N) / np.maximum(np.bincount(bin_N), 1))[bin_N]


def _explained(rank_N: np.ndarray, group_N: np.ndarray) -> float:
    rank_N = rank_N - rank_N.mean()
    count_G = np.bincount(group_N)
    sum_G = np.bincount(group_N, rank_N)
    total = rank_N @ rank_N
    return float((sum_G**2 / np.maximum(count_G, 1)).sum() / total) if total > 0 else 0.0


def _explained_estimate(
    rank_N: np.ndarray, group_N: np.ndarray, bin_N: np.ndarray, resampling: Resampling
) -> Estimate:
    """The share with its interval; its floor shuffles the groups within bins."""
    rng, count, rows = resampling.generator(), resampling.num_resamples, len(rank_N)
    place_N = np.argsort(bin_N, kind="stable")

    def shuffle() -> np.ndarray:
        shuffled_N = np.empty_like(group_N)
        shuffled_N[place_N] = group_N[np.lexsort((rng.random(rows), bin_N))]
        return shuffled_N

    value = _explained(rank_N, group_N)
    chosen = (rng.integers(rows, size=rows) for _ in range(count))
    drawn = np.array([_explained(rank_N[rows_N], group_N[rows_N]) for rows_N in chosen])
    shuffled = np.array([_explained(rank_N, shuffle()) for _ in range(count)])
    floor = float(shuffled.mean())
    corrected = (value - floor) / (1 - floor) if floor < 1 else value
    low, high = np.clip(resampling.interval(drawn + (corrected - drawn.mean())), 0, 1)
    return Estimate(
        value=value,
        corrected=max(corrected, 0.0),
        low=float(low),
        high=float(high),
        floor=floor,
        floor_high=float(np.quantile(shuffled, resampling.level)),
        p_value=float((1 + (shuffled >= value - 1e-12).sum()) / (1 + count)),
    )


def _group_median(name: str, values_n: np.ndarray, resampling: Resampling) -> GroupMedian:
    low, high = None, None
    if len(values_n) > 1:
        rows = resampling.generator().integers(len(values_n), size=(resampling.num_resamples, len(values_n)))
        low, high = resampling.interval(np.median(values_n[rows], axis=1))
    return GroupMedian(
        group=name, num_rows=len(values_n), median=float(np.median(values_n)), low=low, high=high
    )
