"""Change point of the mean in a sequence of exponential variables: the scan statistic and its exact null law.

Legend: P points, n spacings of a point, s spacings left of a split, T thresholds, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import betainc, betaincinv

Side = Literal["change", "rise"]

_DRAWS = 4096
_LARGEST = 60.0  # a likelihood ratio beyond which the p-value is below 1e-20
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

    Numerics: the null law does not depend on the mean, so it is known exactly up to simulation; see `null_law`.
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


def ratios(share_Rn: np.ndarray, count: int, smallest: int) -> np.ndarray:
    """LR of every allowed split from the cumulated shares of the first s of n spacings, [R, S]."""
    left_S = np.arange(smallest, count - smallest + 1)
    share_RS = share_Rn[:, smallest - 1 : count - smallest]
    with np.errstate(divide="ignore"):
        return -left_S * np.log(share_RS * count / left_S) - (count - left_S) * np.log(
            (1 - share_RS) * count / (count - left_S)
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


@dataclass(frozen=True, eq=False)
class NullLaw:
    """Upper tail of the scan statistic on a grid of thresholds, [T] each; p-values in between are interpolated."""

    thresholds: np.ndarray
    log_tail: np.ndarray

    def p_value(self, statistic: np.ndarray) -> np.ndarray:
        """P(max LR >= statistic); beyond the grid the last slope goes on."""
        slope = np.diff(self.log_tail[-2:]) / np.diff(self.thresholds[-2:])
        beyond = np.maximum(statistic - self.thresholds[-1], 0) * slope
        return np.exp(np.interp(statistic, self.thresholds, self.log_tail) + beyond)


@lru_cache(maxsize=32)
def null_law(count: int, smallest: int, side: Side) -> NullLaw:
    """The null law of the scan, at any depth of the tail.

        P(max_s LR(s) >= x) = sum_s P(LR(s) >= x) E[1 / #{t : LR(t) >= x} | LR(s) >= x]

    Each P(LR(s) >= x) is a tail of Beta(s, n - s), the law of the left share. The expectation is simulated under
    the condition: the split s with probability proportional to its tail, the left share inside the tail, the
    spacings on either side as uniform on a simplex. The relative error is the same at p = 0.1 and at p = 1e-12:
    about 1.5 % (one standard deviation).

    Args:
        count: spacings.
        smallest: least number on either side.
        side: see `scan`.

    Determinism: a fixed seed; equal for equal arguments.
    Source: the importance sampling of scan statistics of Naiman and Priebe (2001).
    """
    rng = np.random.default_rng([count, smallest, 0 if side == "change" else 1])
    left_S = np.arange(smallest, count - smallest + 1)
    uniform_R2 = rng.random((_DRAWS, 2))
    spacings_Rn = rng.exponential(size=(_DRAWS, count))
    thresholds = np.r_[0.0, np.geomspace(0.05, _LARGEST, 39)]
    log_tail = np.zeros_like(thresholds)
    for index, threshold in enumerate(thresholds[1:], start=1):
        below_S = betainc(left_S, count - left_S, _critical_share(left_S, count, threshold))
        if side == "rise":
            below_S = np.zeros(len(left_S))
        right_S = count - left_S
        above_S = betainc(
            right_S, left_S, _critical_share(right_S, count, threshold)
        )  # the right share is small
        union = float((below_S + above_S).sum())
        tail_C = np.r_[below_S, above_S]
        column_R = np.searchsorted(np.cumsum(tail_C), uniform_R2[:, 0] * union).clip(max=len(tail_C) - 1)
        split_R = left_S[column_R % len(left_S)]
        inner_R = uniform_R2[:, 1] * tail_C[column_R]
        upper_R = column_R >= len(left_S)
        share_R = np.where(
            upper_R,
            1 - betaincinv(count - split_R, split_R, inner_R),
            betaincinv(split_R, count - split_R, inner_R),
        )
        ratio_RS, cumulated_RS = _ratios_given(spacings_Rn, split_R, share_R, count, smallest)
        hit_RS = ratio_RS >= threshold * (1 - 1e-9)
        if side == "rise":
            hit_RS &= cumulated_RS * count > left_S
        log_tail[index] = np.log(union * np.mean(1 / np.maximum(hit_RS.sum(axis=1), 1)))
    return NullLaw(thresholds, np.minimum.accumulate(np.minimum(log_tail, 0.0)))


def _ratios_given(
    spacings_Rn: np.ndarray, split_R: np.ndarray, share_R: np.ndarray, count: int, smallest: int
) -> tuple[np.ndarray, np.ndarray]:
    """LR of all splits, and their left shares, when the first `split` spacings hold `share` of the sum."""
    is_left_Rn = np.arange(count) < split_R[:, None]
    left_R = (spacings_Rn * is_left_Rn).sum(axis=1)
    right_R = spacings_Rn.sum(axis=1) - left_R
    scaled_Rn = spacings_Rn * np.where(
        is_left_Rn, (share_R / left_R)[:, None], ((1 - share_R) / right_R)[:, None]
    )
    share_Rn = np.cumsum(scaled_Rn, axis=1)
    share_Rn /= share_Rn[:, -1:]
    return ratios(share_Rn, count, smallest), share_Rn[:, smallest - 1 : count - smallest]


def _critical_share(part_S: np.ndarray, count: int, threshold: float) -> np.ndarray:
    """Share of the sum, below its mean part / count, at which the ratio of that part reaches a threshold."""

    def ratio(log_share_S: np.ndarray) -> np.ndarray:
        rest_S = np.log1p(-np.exp(log_share_S)) + np.log(count / (count - part_S))
        return -part_S * (log_share_S + np.log(count / part_S)) - (count - part_S) * rest_S

    near_S = np.log(part_S / count)
    far_S = near_S - (threshold + count) / part_S - 1  # the first term alone reaches the threshold there
    for _ in range(100):
        middle_S = (near_S + far_S) / 2
        reached_S = ratio(middle_S) >= threshold
        far_S, near_S = np.where(reached_S, middle_S, far_S), np.where(reached_S, near_S, middle_S)
    return np.exp(far_S)
