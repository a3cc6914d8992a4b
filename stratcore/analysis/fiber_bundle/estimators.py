"""Manifold and fiber-bundle hypotheses at every row. Legend: N rows, P distinct rows, K neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from stratcore.analysis._checks import as_labels, estimator_matrix
from stratcore.analysis.fiber_bundle.corrections import Correction, corrected_p_values
from stratcore.analysis.fiber_bundle.reference import reference_test
from stratcore.analysis.fiber_bundle.scan_law import Side
from stratcore.analysis.fiber_bundle.source_rule import source_rule
from stratcore.analysis.fiber_bundle.spacings import NeighborhoodTest, spacings_test
from stratcore.analysis.neighbors import distinct_rows, nearest_neighbors

Method = Literal["spacings", "reference", "source"]
LEAST_SPACINGS = 6


@dataclass(frozen=True, kw_only=True)
class RejectionCount:
    """Rows of one stratum: how many were tested, how many are rejected after the correction over all rows."""

    stratum: str
    num_rows: int
    num_tested: int
    num_rejected: int


class ManifoldTest(BaseEstimator):
    """At which rows does the data's dimension change with the distance, so that they are no manifold there?

    Null at a row: within the window of neighbors the data are uniform on a flat piece of one dimension.

    Args:
        method: `spacings`: ours, exact under the null (`spacings_test`); `reference`: the published procedure
            (`reference_test`); `source`: the rule of the source documents (`source_rule`), for comparison only.
        window: first and last rank of the neighbors; lowered where rows are few, see `fitting_window`.
        level: of a rejection, after the correction.
        correction: over rows: `holm`, `benjamini_hochberg`, `benjamini_yekutieli`, or None. Only `spacings` has
            p-values to correct; the others reject by their own rules.
        period: of a flat torus, to measure distances within it; None: Euclidean.
        device: where neighbors are searched, see `nearest_neighbors`.

    Attributes:
        p_values_: [N]; NaN where a row cannot be tested (equal distances). Rows that repeat another have its value.
        adjusted_p_values_: [N], after the correction (equal to `p_values_` without one).
        rejected_: [N] bool.
        rank_: neighbors within the radius of the change, [N]; 0 without one.
        radius_: that radius, [N]; NaN without one. Unit: that of the rows.
        inside_, outside_: dimensions within and beyond it, [N].
        counts_: a `RejectionCount` for each stratum given to `fit`, in sorted order; first that of all rows.
        window_: as used.

    Numerics: copies of a row are counted once, as rows drawn from a density are never equal. On curved data chord
    distances, gradients of density and boundaries move the two-sided test; see `FiberBundleTest`.
    Source: see the three procedures.
    """

    _side: Side = "change"

    def __init__(
        self,
        method: Method = "spacings",
        window: tuple[int, int] = (10, 128),
        level: float = 0.05,
        correction: Correction | None = "holm",
        period: ArrayLike | float | None = None,
        device: str | None = None,
    ) -> None:
        self.method = method
        self.window = window
        self.level = level
        self.correction = correction
        self.period = period
        self.device = device

    def fit(self, X: Any, y: ArrayLike | None = None) -> ManifoldTest:
        """Test every row.

        Args:
            X: rows, [N, D].
            y: stratum of each row, [N], for `counts_`; None: all rows alone.

        Raises:
            ValueError: rows that are too few for the window, or not finite.
        """
        x_ND = estimator_matrix(self, X, min_rows=2)
        distinct_PD, row_N = distinct_rows(x_ND)
        self.window_ = fitting_window(self.window, len(distinct_PD), x_ND.shape[1])
        neighbors = nearest_neighbors(distinct_PD, self.window_[1], period=self.period, device=self.device)
        found = neighborhood_test(
            neighbors.distances, self.method, self._side, window=self.window_, level=self.level
        )
        radius_P = np.take_along_axis(neighbors.distances, np.maximum(found.rank - 1, 0)[:, None], axis=1)[
            :, 0
        ]
        self.p_values_ = found.p_value[row_N]
        self.rank_ = found.rank[row_N]
        self.radius_ = np.where(found.rank > 0, radius_P, np.nan)[row_N]
        self.inside_, self.outside_ = found.inside[row_N], found.outside[row_N]
        self.adjusted_p_values_, self.rejected_ = self.p_values_, found.rejected[row_N]
        if self.method == "spacings" and self.correction is not None:
            adjusted_P = corrected_p_values(found.p_value, self.correction)
            self.adjusted_p_values_, self.rejected_ = adjusted_P[row_N], (adjusted_P <= self.level)[row_N]
        self.counts_ = self._counts(y)
        return self

    def _counts(self, strata: ArrayLike | None) -> list[RejectionCount]:
        def count(name: str, own_N: np.ndarray) -> RejectionCount:
            return RejectionCount(
                stratum=name,
                num_rows=int(own_N.sum()),
                num_tested=int(np.isfinite(self.p_values_[own_N]).sum()),
                num_rejected=int(self.rejected_[own_N].sum()),
            )

        counts = [count("all rows", np.ones(len(self.p_values_), dtype=bool))]
        if strata is not None:
            labels_N = as_labels("y", strata, len(self.p_values_))
            counts += [count(str(name), labels_N == name) for name in np.unique(labels_N)]
        return counts


class FiberBundleTest(ManifoldTest):
    """At which rows does the dimension rise with the distance, so that the data are no fiber bundle there?

    A fiber bundle with noise of its own fibers looks like the product near a point and like the base farther away:
    its dimension may fall with the radius, never rise. So only a rise rejects: a line that ends in a surface, seen
    from the line. Gradients of density and boundaries, which lower the dimension with the radius, do not reject.

    Arguments and attributes are those of `ManifoldTest`.
    """

    _side: Side = "rise"


def fitting_window(window: tuple[int, int], num_rows: int, num_features: int) -> tuple[int, int]:
    """The window, lowered where rows are few.

    Its last rank falls to that of the farthest row, its first so that `LEAST_SPACINGS` ranks are left after it.

    Raises:
        ValueError: too few rows for any window.
    """
    last = min(window[1], num_rows - 1)
    first = min(window[0], last - LEAST_SPACINGS)
    if window[0] < 1 or window[1] - window[0] < LEAST_SPACINGS or first < 1:
        raise ValueError(
            f"window: expected a first rank >= 1 and at least {LEAST_SPACINGS} ranks after it, got {window} of "
            f"{num_rows} different rows (n_samples = {num_rows}, n_features = {num_features})"
        )
    return first, last


def neighborhood_test(
    radii_PK: np.ndarray,
    method: Method,
    side: Side,
    *,
    window: tuple[int, int],
    level: float = 0.05,
    alpha: float = 1e-3 / 3,
) -> NeighborhoodTest:
    """One of the three procedures on distances to neighbors.

    Args:
        radii_PK: ascending, without the point itself, [P, K].
        method: `spacings`, `reference` or `source` (which knows one side only).
        side: `change` or `rise`.
        window: ranks; not used by `source`.
        level: of `spacings`.
        alpha: of `reference`.
    """
    if method == "spacings":
        return spacings_test(radii_PK, window, side, level=level)
    if method == "reference":
        return reference_test(radii_PK, window, side, alpha=alpha)
    if method == "source":
        return source_rule(radii_PK)
    raise ValueError(f"method: expected spacings, reference or source, got {method!r}")
