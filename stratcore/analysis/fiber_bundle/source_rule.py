"""The rule of the source documents, kept to show what it does: it rejects nearly every point of smooth manifolds.

Legend: P points, K neighbors, R radii, W window positions.
"""

from __future__ import annotations

import numpy as np

from stratcore.analysis.fiber_bundle.spacings import NeighborhoodTest
from stratcore.analysis.fiber_bundle.welch import sliding_moments, welch_p_values

_CHUNK = 1024


def source_rule(
    radii_PK: np.ndarray,
    *,
    radius_range: tuple[float, float] = (0.01, 20.0),
    num_radii: int = 200,
    width: int = 10,
    alpha: float = 0.05,
) -> NeighborhoodTest:
    """Welch t-tests of slopes on an even grid of radii; any window with p < alpha and a larger mean rejects.

        N(r) = number of points within r, itself included;  slope = d log(N + 1e-10) / d log r by three-point
        differences, the ends repeated;  at every i the `width` slopes before against the `width` slopes from i on

    What is wrong with it: the grid of radii has a unit; the 180 windows (at the defaults) are not corrected for and
    overlap; N is 1 until the first neighbor, so that the slope is 0 and then jumps, an increase at every point of
    every data set. The Holm correction of the source is computed and never used in the decision; it is left out.

    Args:
        radii_PK: ascending distances to the neighbors, without the point itself, [P, K]. Counts beyond the K-th
            neighbor stay at K + 1; the rule's verdict hardly depends on them.
        radius_range: first and last radius of the grid.
        num_radii: of the grid.
        width: of each of the two compared windows.
        alpha: of each window.

    Returns:
        `p_value` is the smallest over windows with an increase, or 1: no p-value of the point.
    """
    grid_R = np.linspace(*radius_range, num_radii)
    parts = [
        _chunk(radii_PK[begin : begin + _CHUNK], grid_R, width, alpha)
        for begin in range(0, len(radii_PK), _CHUNK)
    ]
    return NeighborhoodTest(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _chunk(radii_PK: np.ndarray, grid_R: np.ndarray, width: int, alpha: float) -> dict[str, np.ndarray]:
    count_PR = 1.0 + np.stack([np.searchsorted(radii_K, grid_R, side="right") for radii_K in radii_PK])
    slope_PR = _three_point_slopes(np.log(count_PR + 1e-10), np.log(grid_R))
    position_W = np.arange(width, len(grid_R) - width)
    mean_PW, variance_PW = sliding_moments(slope_PR, width)
    before = mean_PW[:, position_W - width], variance_PW[:, position_W - width]
    after = mean_PW[:, position_W], variance_PW[:, position_W]
    p_PW = welch_p_values(before, after, width)
    p_PW = np.where((after[0] > before[0]) & np.isfinite(p_PW), p_PW, 1.0)
    hit_PW = p_PW < alpha
    rejected_P = hit_PW.any(axis=1)
    index_P = np.where(rejected_P, position_W[hit_PW.argmax(axis=1)], 0)
    row_P = np.arange(len(radii_PK))
    summed_PR = np.cumsum(np.pad(slope_PR, ((0, 0), (1, 0))), axis=1)
    inside_P = np.where(rejected_P, summed_PR[row_P, index_P] / np.maximum(index_P, 1), slope_PR.mean(axis=1))
    end_P = np.minimum(index_P + width, len(grid_R))
    beyond_P = (summed_PR[row_P, end_P] - summed_PR[row_P, index_P]) / width
    return {
        "p_value": p_PW.min(axis=1),
        "rank": np.where(rejected_P, count_PR[row_P, index_P] - 1, 0).astype(np.int64),
        "inside": inside_P,
        "outside": np.where(rejected_P, beyond_P, np.nan),
        "rejected": rejected_P,
    }


def _three_point_slopes(y_PR: np.ndarray, x_R: np.ndarray) -> np.ndarray:
    inner_PR = (y_PR[:, 2:] - y_PR[:, :-2]) / (x_R[2:] - x_R[:-2])
    return np.pad(inner_PR, ((0, 0), (1, 1)), mode="edge")
