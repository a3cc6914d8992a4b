"""The published procedure: sliding Welch t-tests of slopes of log rank against log radius.

Legend: P points, V ranks, W window positions.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle.scan_law import Side
from stratcore.analysis.fiber_bundle.spacings import NeighborhoodTest

_CHUNK = 4096  # points at a time


def reference_test(
    radii_PK: np.ndarray,
    window: tuple[int, int],
    side: Side,
    *,
    width: int = 10,
    alpha: float = 1e-3 / 3,
    reach: float | None = None,
) -> NeighborhoodTest:
    """The test of the public code of Robinson, Dey and Chiang on the same distances.

        slope_v = d log v / d log r_v,    Welch's t-test of slope[w - 2 width : w - width] against
        slope[w + width : w + 2 width] at every w; the first p < alpha is a change

    The dimension on either side is the slope of a least-squares line through (log r, log v).

    Args:
        radii_PK: ascending distances to the neighbors, without the point itself, [P, K].
        window: ranks first <= v < last that are used (the code's vol_min and vol_max).
        side: `change`: any change rejects (manifold hypothesis); `rise`: only one at which the mean slope is
            larger beyond it (fiber-bundle hypothesis).
        width: of each of the two compared windows.
        alpha: of each position, the published 1e-3 divided by the number of strata looked for.
        reach: radius beyond which nothing is looked at; None: all.

    Returns:
        `p_value` is the smallest over positions: it is not corrected for their number, and slopes that share
        neighbors are not independent, so it is no p-value of the point. NaN where no position is left within the
        reach or a slope is not finite.

    Raises:
        ValueError: a window so short that no position exists: the scan could never reject anything. The published
            defaults (10 to 50 at width 10) are such a window.

    Source: Robinson, Dey, Chiang (2025), arXiv 2504.01002, and the public code's settings.
    """
    first, last = window
    if not 1 <= first < last <= radii_PK.shape[1] + 1:
        raise ValueError(f"window: expected ranks 1 <= first < last <= {radii_PK.shape[1] + 1}, got {window}")
    position_W = np.arange(2 * width, last - first - 2 * width)
    if not len(position_W):
        raise ValueError(
            f"window: {first} to {last} leaves no position for two windows of {width} at a distance of {width} on "
            f"either side: the scan is empty and can never reject; expected at least {4 * width + 1} ranks"
        )
    parts = [
        _chunk(
            radii_PK[begin : begin + _CHUNK, first - 1 : last - 1],
            first,
            position_W,
            side,
            width,
            alpha,
            reach,
        )
        for begin in range(0, len(radii_PK), _CHUNK)
    ]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return NeighborhoodTest(**columns)


def _chunk(
    radii_PV: np.ndarray,
    first: int,
    position_W: np.ndarray,
    side: Side,
    width: int,
    alpha: float,
    reach: float | None,
) -> dict[str, np.ndarray]:
    log_rank_V = np.log(np.arange(first, first + radii_PV.shape[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_radius_PV = np.log(radii_PV)
        slope_PV = np.gradient(log_rank_V) / np.gradient(log_radius_PV, axis=1)
    window_Pwv = np.lib.stride_tricks.sliding_window_view(slope_PV, width, axis=1)
    before_PWv = window_Pwv[:, position_W - 2 * width]
    after_PWv = window_Pwv[:, position_W + width]
    with np.errstate(divide="ignore", invalid="ignore"):
        p_PW = ttest_ind(before_PWv, after_PWv, axis=2, equal_var=False).pvalue
    if side == "rise":
        p_PW = np.where(
            after_PWv.mean(axis=2) > before_PWv.mean(axis=2), p_PW, np.where(np.isnan(p_PW), p_PW, 1.0)
        )
    if reach is not None:
        p_PW = np.where(radii_PV[:, position_W + 2 * width - 1] <= reach, p_PW, np.nan)
    hit_PW = p_PW < alpha
    rejected_P = hit_PW.any(axis=1)
    index_P = np.where(rejected_P, position_W[hit_PW.argmax(axis=1)], 0)
    known_P = np.isfinite(p_PW).any(axis=1)
    smallest_P = np.where(known_P, np.nanmin(np.where(np.isnan(p_PW), np.inf, p_PW), axis=1), np.nan)
    inside_P, outside_P = _slopes(log_radius_PV, log_rank_V, index_P)
    return {
        "p_value": smallest_P,
        "rank": np.where(rejected_P, first + index_P, 0),
        "inside": inside_P,
        "outside": outside_P,
        "rejected": rejected_P,
    }


def _slopes(
    log_radius_PV: np.ndarray, log_rank_V: np.ndarray, index_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of least-squares lines before and from an index (0: one line through all, nothing beyond)."""
    place_V = np.arange(len(log_rank_V))
    before_PV = (place_V < index_P[:, None]) | (index_P[:, None] == 0)
    return (
        _line(log_radius_PV, log_rank_V, before_PV),
        np.where(index_P > 0, _line(log_radius_PV, log_rank_V, ~before_PV), np.nan),
    )


def _line(x_PV: np.ndarray, y_V: np.ndarray, used_PV: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        count_P = used_PV.sum(axis=1)
        x_PV = np.where(used_PV, x_PV, 0)
        y_PV = np.where(used_PV, y_V, 0)
        x_mean, y_mean = x_PV.sum(axis=1) / count_P, y_PV.sum(axis=1) / count_P
        covariance = (x_PV * y_PV).sum(axis=1) - count_P * x_mean * y_mean
        return covariance / ((x_PV**2).sum(axis=1) - count_P * x_mean**2)
