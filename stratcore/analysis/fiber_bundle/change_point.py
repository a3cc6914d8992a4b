"""Change point of the mean in a sequence of exponential variables.

Legend: P points, n spacings of a point, s spacings left of a split, S splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratcore.analysis.fiber_bundle.scan_law import Side, null_law

_CHUNK = 1 << 22  # doubles in flight when statistics of many points are taken


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """The best split of each sequence.

    Args:
        statistic: log likelihood ratio of two means against one, maximal over splits, [P].
        split: spacings left of the best split, [P]; 0 where no split is allowed by the side.
        p_value: [P].
    """

    statistic: np.ndarray
    split: np.ndarray
    p_value: np.ndarray


def scan(spacings_Pn: np.ndarray, smallest: int, side: Side) -> Scan:
    """Test whether the mean of independent exponential variables changes along a sequence.

        LR(s) = n log mean - s log mean_left - (n - s) log mean_right,    maximal over smallest <= s <= n - smallest

    Args:
        spacings_Pn: one sequence a row, > 0. The unit does not matter.
        smallest: least number of spacings on either side of a split.
        side: `change`: any change; `rise`: only splits at which the mean falls (the dimension 1 / mean rises).

    Raises:
        ValueError: too few spacings for a split.

    Null: independent exponential variables of one mean. The law of the statistic does not depend on that mean, so the
        p-value is exact; see `null_law`.
    """
    num_points, count = spacings_Pn.shape
    if not 1 <= smallest <= count // 2:
        raise ValueError(
            f"smallest: expected 1 to {count // 2} spacings on either side of a split, got {smallest}"
        )
    statistic_P, split_P = np.zeros(num_points), np.zeros(num_points, dtype=np.int64)
    step = max(1, _CHUNK // count)
    for begin in range(0, num_points, step):
        part = slice(begin, begin + step)
        statistic_P[part], split_P[part] = _largest_ratio(spacings_Pn[part], smallest, side)
    return Scan(
        statistic=statistic_P, split=split_P, p_value=null_law(count, smallest, side).p_value(statistic_P)
    )


def ratios(share_Pn: np.ndarray, count: int, smallest: int) -> np.ndarray:
    """LR of every allowed split from the cumulated shares of the first s of n spacings, [P, S]."""
    left_S = np.arange(smallest, count - smallest + 1)
    share_PS = share_Pn[:, smallest - 1 : count - smallest]
    with np.errstate(divide="ignore"):
        return -left_S * np.log(share_PS * count / left_S) - (count - left_S) * np.log(
            (1 - share_PS) * count / (count - left_S)
        )


def _largest_ratio(spacings_pn: np.ndarray, smallest: int, side: Side) -> tuple[np.ndarray, np.ndarray]:
    count = spacings_pn.shape[1]
    cumulated_pn = np.cumsum(spacings_pn, axis=1)
    share_pn = cumulated_pn / cumulated_pn[:, -1:]
    ratio_pS = ratios(share_pn, count, smallest)
    if side == "rise":
        left_S = np.arange(smallest, count - smallest + 1)
        ratio_pS[share_pn[:, smallest - 1 : count - smallest] * count <= left_S] = 0.0
    best_p = ratio_pS.argmax(axis=1)
    value_p = ratio_pS[np.arange(len(best_p)), best_p]
    return value_p, np.where(value_p > 0, best_p + smallest, 0)
