"""Welch's t-test of sliding windows of slopes. Legend: P points, V slopes of a point, W window positions."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import stdtr


def sliding_moments(slope_PV: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of every window of `width` slopes, [P, V - width + 1] each."""
    window_PWv = sliding_window_view(slope_PV, width, axis=1)
    mean_PW = window_PWv.mean(axis=2)
    deviation_PWv = window_PWv - mean_PW[..., None]
    return mean_PW, np.einsum("pwv,pwv->pw", deviation_PWv, deviation_PWv) / (width - 1)


def welch_p_values(
    before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray], width: int
) -> np.ndarray:
    """Two-sided p-values of equal means of two windows of `width` numbers, of any shape.

    Args:
        before: mean and unbiased variance.
        after: likewise.
        width: numbers in each window, at least 2.

    Returns:
        NaN where both windows are constant and equal, 0 where they are constant and differ, as scipy's
        `ttest_ind(..., equal_var=False)` has it.
    """
    first, second = before[1] / width, after[1] / width
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (before[0] - after[0]) / np.sqrt(first + second)
        freedom = (first + second) ** 2 / ((first**2 + second**2) / (width - 1))
    return 2 * stdtr(np.where(np.isnan(freedom), 1.0, freedom), -np.abs(t))
