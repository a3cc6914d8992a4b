"""The spacings test: does the dimension change between two ranks of a point's neighbors?

Legend: P points, K neighbors, n spacings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import f

from stratcore.analysis.fiber_bundle.change_point import scan
from stratcore.analysis.fiber_bundle.scan_law import Side


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborhoodTest:
    """What a test found at each point.

    Args:
        p_value: [P]; NaN where the point cannot be tested.
        rank: neighbors inside the radius of the change, [P]; 0 where there is none.
        inside: dimension within that radius (of the whole window where there is no change), [P].
        outside: dimension beyond it, [P]; NaN where there is no change.
        rejected: by the procedure's own rule, before any correction over points, [P] bool.
    """

    p_value: np.ndarray
    rank: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    rejected: np.ndarray


def spacings_of(radii_PK: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Renyi's spacings of the radii of neighbors, [P, last - first].

        E_v = v log(r_{v+1} / r_v),    first <= v < last

    Where points lie uniformly in a flat space of dimension d, these are independent and exponential of mean 1 / d,
    whatever d, the density and the number of points. Points with a zero radius or two equal ones inside the window
    get NaN: copies or a lattice, of which the law says nothing.

    Args:
        radii_PK: ascending distances to the neighbors, without the point itself, [P, K].
        window: first and last rank, 1 <= first < last <= K.

    Raises:
        ValueError: a window that the neighbors do not cover.
    """
    first, last = window
    if not 1 <= first < last <= radii_PK.shape[1]:
        raise ValueError(f"window: expected ranks 1 <= first < last <= {radii_PK.shape[1]}, got {window}")
    inside_Pm = radii_PK[:, first - 1 : last]
    with np.errstate(divide="ignore", invalid="ignore"):
        spacing_Pn = np.arange(first, last) * np.diff(np.log(inside_Pm), axis=1)
    spacing_Pn[~((inside_Pm[:, 0] > 0) & (np.diff(inside_Pm, axis=1) > 0).all(axis=1))] = np.nan
    return spacing_Pn


def spacings_test(
    radii_PK: np.ndarray,
    window: tuple[int, int],
    side: Side,
    *,
    smallest: int | None = None,
    level: float = 0.05,
) -> NeighborhoodTest:
    """Scan every split of the window for a change of dimension.

    Null: around the point the data are uniform on a flat piece of one dimension, at every radius of the window
    (side `change`, the manifold hypothesis), or at least the dimension never rises with the radius (side `rise`,
    the fiber-bundle hypothesis, whose nearest case is the constant one).

    Args:
        radii_PK: ascending distances to the neighbors, without the point itself and without copies, [P, K].
        window: first and last rank.
        side: see above.
        smallest: least number of spacings on either side of a split; None: a tenth of them, at least 3.
        level: of `rejected`.

    Numerics: exact under the null: the spacings are then exponential, and the law of the scan depends on their
    number alone. p-values of different points are each exact but not independent of one another, since neighbors
    share neighbors; Holm's correction does not need independence.
    Source: the spacings of Renyi (1953); Levina and Bickel (2005) for the dimension.
    """
    spacing_Pn = spacings_of(radii_PK, window)
    num_points, count = spacing_Pn.shape
    tested_P = np.isfinite(spacing_Pn).all(axis=1)
    least = max(3, count // 10) if smallest is None else smallest
    found = scan(spacing_Pn[tested_P], least, side)
    p_value_P = np.full(num_points, np.nan)
    p_value_P[tested_P] = found.p_value
    split_P = np.zeros(num_points, dtype=np.int64)
    split_P[tested_P] = found.split
    cumulated_Pn = np.cumsum(spacing_Pn, axis=1)
    row_P, changed_P = np.arange(num_points), split_P > 0
    left_P = np.where(changed_P, cumulated_Pn[row_P, split_P - 1], cumulated_Pn[:, -1])
    inside_P = np.where(changed_P, split_P, count) / left_P
    with np.errstate(divide="ignore", invalid="ignore"):
        outside_P = np.where(changed_P, (count - split_P) / (cumulated_Pn[:, -1] - left_P), np.nan)
    return NeighborhoodTest(
        p_value=p_value_P,
        rank=np.where(changed_P, window[0] + split_P, 0),
        inside=inside_P,
        outside=outside_P,
        rejected=p_value_P <= level,
    )


def fixed_split_p_values(radii_PK: np.ndarray, window: tuple[int, int], split: int, side: Side) -> np.ndarray:
    """p-values of a split that was named beforehand, [P]: the F test of two means of exponential variables.

        mean_left / mean_right ~ F(2 s, 2 (n - s)),    s = split - first

    Args:
        radii_PK: see `spacings_test`.
        window: first and last rank.
        split: rank at which the dimension is thought to change, first < split < last.
        side: `change`: two-sided; `rise`: the dimension beyond is larger.
    """
    spacing_Pn = spacings_of(radii_PK, window)
    count, left = spacing_Pn.shape[1], split - window[0]
    if not 0 < left < count:
        raise ValueError(f"split: expected a rank between {window[0]} and {window[1]}, got {split}")
    quotient_P = spacing_Pn[:, :left].mean(axis=1) / spacing_Pn[:, left:].mean(axis=1)
    law = f(2 * left, 2 * (count - left))
    upper_P = law.sf(quotient_P)
    return upper_P if side == "rise" else np.minimum(2 * np.minimum(upper_P, law.cdf(quotient_P)), 1.0)
