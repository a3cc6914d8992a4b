"""The published procedure: sliding Welch t-tests of slopes of log rank against log radius.

Legend: P points, K neighbors, V ranks, W window positions, S strata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from stratcore.analysis.fiber_bundle.scan_law import Side
from stratcore.analysis.fiber_bundle.spacings import NeighborhoodTest
from stratcore.analysis.fiber_bundle.welch import sliding_moments, welch_p_values

_CHUNK = 4096  # points at a time
_ZERO = 1e-10  # radii up to it are copies of the point to the public code


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

    The dimension on either side is the slope of a least-squares line through (log r, log v). For the further strata
    that the public code looks for see `published_strata`.

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
    position_W = scan_positions(radii_PK, window, width)
    parts = [
        _first_change(slopes, position_W, side, width, alpha, reach)
        for slopes in _slopes_in_chunks(radii_PK, window)
    ]
    return NeighborhoodTest(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def scan_positions(radii_PK: np.ndarray, window: tuple[int, int], width: int) -> np.ndarray:
    """Places in the window at which two windows of slopes fit, [W].

    Raises:
        ValueError: none does, or the neighbors do not cover the window.
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
    return position_W


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedStrata:
    """What the public code writes for each point: one entry for each stratum from the center out, [P, S] each.

    Args:
        count: strata found, [P], 1 to S. Entries beyond it are 0 in `start` and NaN elsewhere.
        start: rank at which the stratum begins.
        radius: its distance. Unit: length.
        p_value: of the change that ends it, 1 where none was found.
        dimension: slope of the least-squares line through (log r, log v) of the stratum.
        scaling: exp(intercept) / number of points, with Miller's correction as the public code has it.
        ricci: scalar curvature from the residual: mean of -6 (dimension + 2) SS / r^2.
        rise: whether the mean slope is larger beyond the change that ends it, bool.
    """

    count: np.ndarray
    start: np.ndarray
    radius: np.ndarray
    p_value: np.ndarray
    dimension: np.ndarray
    scaling: np.ndarray
    ricci: np.ndarray
    rise: np.ndarray


def published_strata(
    radii_PK: np.ndarray,
    window: tuple[int, int],
    num_points: int,
    *,
    width: int = 10,
    alpha: float = 1e-3,
    num_strata: int = 3,
) -> PublishedStrata:
    """Strata around each point, as the public code finds one after the other.

    From the first radius above 1e-10 it looks for the first change at level alpha / num_strata, fits a line through
    what lies before it, and goes on from the change, up to `num_strata` times.

    Args:
        radii_PK: ascending distances to the neighbors, without the point itself, [P, K].
        window: ranks first <= v < last that are used (the code's vol_min and vol_max).
        num_points: rows of the data, for `scaling`.
        width: of each of the two compared windows.
        alpha: published level of a point.
        num_strata: most strata looked for.

    Raises:
        ValueError: see `scan_positions`.
    """
    scan_positions(radii_PK, window, width)
    parts = [
        _strata(slopes, num_points, width, alpha / num_strata, num_strata)
        for slopes in _slopes_in_chunks(radii_PK, window)
    ]
    names = [field.name for field in fields(PublishedStrata)]
    return PublishedStrata(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )


# ---- slopes


@dataclass(frozen=True, eq=False)
class _Slopes:
    """Ranks and radii of the window of some points, and the slopes between them."""

    first: int
    radius_PV: np.ndarray
    log_rank_V: np.ndarray
    log_radius_PV: np.ndarray
    slope_PV: np.ndarray


def _slopes_in_chunks(radii_PK: np.ndarray, window: tuple[int, int]) -> Iterator[_Slopes]:
    first, last = window
    log_rank_V = np.log(np.arange(first, last))
    for begin in range(0, len(radii_PK), _CHUNK):
        radius_PV = radii_PK[begin : begin + _CHUNK, first - 1 : last - 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_radius_PV = np.log(radius_PV)
            slope_PV = np.gradient(log_rank_V) / np.gradient(log_radius_PV, axis=1)
        yield _Slopes(first, radius_PV, log_rank_V, log_radius_PV, slope_PV)


def _compared(slopes: _Slopes, position_W: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """p-value and whether the slope rises, at each position, [P, W]."""
    with np.errstate(invalid="ignore"):
        mean, variance = sliding_moments(slopes.slope_PV, width)
    before, after = position_W - 2 * width, position_W + width
    p_PW = welch_p_values((mean[:, before], variance[:, before]), (mean[:, after], variance[:, after]), width)
    known_PW = np.isfinite(mean[:, before]) & np.isfinite(mean[:, after])
    return np.where(known_PW, p_PW, np.nan), mean[:, after] > mean[:, before]


def _first_change(
    slopes: _Slopes, position_W: np.ndarray, side: Side, width: int, alpha: float, reach: float | None
) -> dict[str, np.ndarray]:
    p_PW, rises_PW = _compared(slopes, position_W, width)
    if side == "rise":
        p_PW = np.where(rises_PW | np.isnan(p_PW), p_PW, 1.0)
    if reach is not None:
        p_PW = np.where(slopes.radius_PV[:, position_W + 2 * width - 1] <= reach, p_PW, np.nan)
    hit_PW = p_PW < alpha
    rejected_P: np.ndarray = np.asarray(hit_PW.any(axis=1))
    index_P = np.where(rejected_P, position_W[hit_PW.argmax(axis=1)], 0)
    known_P = np.isfinite(p_PW).any(axis=1)
    place_V = np.arange(len(slopes.log_rank_V))
    before_PV = (place_V < index_P[:, None]) | ~rejected_P[:, None]
    beyond_P = _line(slopes, ~before_PV).slope
    return {
        "p_value": np.where(known_P, np.min(np.where(np.isnan(p_PW), np.inf, p_PW), axis=1), np.nan),
        "rank": np.where(rejected_P, slopes.first + index_P, 0),
        "inside": _line(slopes, before_PV).slope,
        "outside": np.where(rejected_P, beyond_P, np.nan),
        "rejected": rejected_P,
    }


def _strata(slopes: _Slopes, num_points: int, width: int, alpha: float, num_strata: int) -> PublishedStrata:
    num_rows, num_ranks = slopes.radius_PV.shape
    row_P, place_V = np.arange(num_rows), np.arange(num_ranks)
    position_W = np.arange(2 * width, num_ranks - 2 * width)
    p_PW, rises_PW = _compared(slopes, position_W, width)
    names = ("radius", "p_value", "dimension", "scaling", "ricci")
    found = {name: np.full((num_rows, num_strata), np.nan) for name in names}
    start_PS = np.zeros((num_rows, num_strata), dtype=np.int64)
    rise_PS = np.zeros((num_rows, num_strata), dtype=bool)
    begin_P, active_P = (slopes.radius_PV > _ZERO).argmax(axis=1), np.ones(num_rows, dtype=bool)
    count_P = np.zeros(num_rows, dtype=np.int64)
    for stratum in range(num_strata):
        _compare_from_start(slopes, p_PW, rises_PW, begin_P, width)
        hit_PW = (p_PW < alpha) & (position_W >= begin_P[:, None] + 2 * width)
        changes_P, column_P = hit_PW.any(axis=1), hit_PW.argmax(axis=1)
        end_P = np.where(changes_P, position_W[column_P], num_ranks)
        line = _line(slopes, (place_V >= begin_P[:, None]) & (place_V < end_P[:, None]))
        values = {
            "radius": slopes.radius_PV[row_P, begin_P],
            "p_value": np.where(changes_P, p_PW[row_P, column_P], 1.0),
            "dimension": line.slope,
            "scaling": np.exp(line.intercept) / num_points * np.exp(0.5 * line.residual**2),
            "ricci": -6 * line.residual * (line.slope + 2) * line.inverse_square_radius,
        }
        for name, value_P in values.items():
            found[name][active_P, stratum] = value_P[active_P]
        start_PS[active_P, stratum] = (slopes.first + begin_P)[active_P]
        rise_PS[:, stratum] = active_P & changes_P & rises_PW[row_P, column_P]
        count_P += active_P
        active_P &= changes_P
        begin_P = np.where(active_P, end_P, begin_P)
    return PublishedStrata(count=count_P, start=start_PS, rise=rise_PS, **found)


def _compare_from_start(
    slopes: _Slopes, p_PW: np.ndarray, rises_PW: np.ndarray, begin_P: np.ndarray, width: int
) -> None:
    """Put the first comparison of a stratum in place: at its start the slope is the one-sided difference."""
    row_P = np.flatnonzero(begin_P + 4 * width < slopes.radius_PV.shape[1])
    begin_P = begin_P[row_P]
    before_Pv = slopes.slope_PV[row_P[:, None], begin_P[:, None] + np.arange(width)]
    after_Pv = slopes.slope_PV[row_P[:, None], begin_P[:, None] + 3 * width + np.arange(width)]
    with np.errstate(divide="ignore", invalid="ignore"):
        before_Pv[:, 0] = (slopes.log_rank_V[begin_P + 1] - slopes.log_rank_V[begin_P]) / (
            slopes.log_radius_PV[row_P, begin_P + 1] - slopes.log_radius_PV[row_P, begin_P]
        )
        before, after = ([m[:, 0] for m in sliding_moments(part, width)] for part in (before_Pv, after_Pv))
    p_P = welch_p_values((before[0], before[1]), (after[0], after[1]), width)
    p_PW[row_P, begin_P] = np.where(np.isfinite(before[0] + after[0]), p_P, np.nan)
    rises_PW[row_P, begin_P] = after[0] > before[0]


@dataclass(frozen=True, eq=False)
class _Line:
    """Least-squares line through (log r, log v), [P] each; residual: sum of squares."""

    slope: np.ndarray
    intercept: np.ndarray
    residual: np.ndarray
    inverse_square_radius: np.ndarray


def _line(slopes: _Slopes, used_PV: np.ndarray) -> _Line:
    with np.errstate(divide="ignore", invalid="ignore"):
        count_P = used_PV.sum(axis=1)
        x_PV = np.where(used_PV, slopes.log_radius_PV, 0.0)
        y_PV = np.where(used_PV, slopes.log_rank_V, 0.0)
        x_mean_P, y_mean_P = x_PV.sum(axis=1) / count_P, y_PV.sum(axis=1) / count_P
        x_PV = np.where(used_PV, x_PV - x_mean_P[:, None], 0.0)
        y_PV = np.where(used_PV, y_PV - y_mean_P[:, None], 0.0)
        slope_P = (x_PV * y_PV).sum(axis=1) / (x_PV**2).sum(axis=1)
        residual_P = ((y_PV - slope_P[:, None] * x_PV) ** 2).sum(axis=1)
        inverse_P = np.where(used_PV, 1 / slopes.radius_PV**2, 0.0).sum(axis=1) / count_P
    return _Line(slope_P, y_mean_P - slope_P * x_mean_P, residual_P, inverse_P)
