"""The neighborhood tests of an analysis. Legend: N rows, P distinct rows, K neighbors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from stratcore.analysis.fiber_bundle import (
    NeighborhoodTest,
    Side,
    corrected_p_values,
    fitting_window,
    neighborhood_test,
    spacings_of,
)
from stratcore.analysis.neighbors import distinct_rows, nearest_neighbors
from stratcore.analysis.plots.stratification import GrowthCurve
from stratcore.recipes.analysis import TestOptions

NULLS: dict[Side, Literal["manifold", "fiber bundle"]] = {"change": "manifold", "rise": "fiber bundle"}
NAMES = {
    ("spacings", "rise"): "fiber bundle, spacings",
    ("spacings", "change"): "manifold, spacings",
    ("reference", "rise"): "fiber bundle, published procedure",
    ("reference", "change"): "manifold, published procedure",
    ("source", "rise"): "rule of the source documents",
}
_SOURCE_NEIGHBORS = 1000  # the source's rule counts all neighbors within its radii; beyond these it sees none
_MOST_ROWS_OF_SOURCE = 10_000


@dataclass(frozen=True, eq=False)
class Neighborhoods:
    """Distances of the distinct rows to their neighbors, and which distinct row each row is.

    radii: [P, K]. place: [N]. window: as used.
    """

    radii: np.ndarray
    place: np.ndarray
    window: tuple[int, int]

    @property
    def local_dimension(self) -> np.ndarray:
        """Levina and Bickel's dimension of each row over the window, [N]; NaN where distances are equal."""
        spacing_Pn = spacings_of(self.radii, self.window)
        return ((spacing_Pn.shape[1] - 1) / spacing_Pn.sum(axis=1))[self.place]


@dataclass(frozen=True, eq=False)
class RowTest:
    """One test spread to all rows: what results.json says of it, and what was found at each row."""

    result: dict[str, Any]
    found: NeighborhoodTest
    holm: np.ndarray | None


def find_neighborhoods(x_ND: np.ndarray, options: TestOptions, device: torch.device) -> Neighborhoods:
    """Search the neighbors that the tests need; copies of a row count once."""
    distinct_PD, place_N = distinct_rows(x_ND)
    window = fitting_window(options.window, len(distinct_PD), x_ND.shape[1])
    wanted = max(window[1], options.published_window[1])
    if "source" in options.procedures and len(distinct_PD) <= _MOST_ROWS_OF_SOURCE:
        wanted = max(wanted, _SOURCE_NEIGHBORS)
    found = nearest_neighbors(distinct_PD, min(wanted, len(distinct_PD) - 1), device=device)
    return Neighborhoods(found.distances, place_N, window)


def run_tests(
    neighborhoods: Neighborhoods, options: TestOptions, strata: np.ndarray
) -> tuple[list[RowTest], list[str]]:
    """Run every asked procedure.

    Returns:
        The tests, ours first, and sentences on what was left out.
    """
    tests, notes = [], []
    for procedure in sorted(options.procedures, key=("spacings", "reference", "source").index):
        sides: tuple[Side, ...] = ("rise",) if procedure == "source" else ("rise", "change")
        window = neighborhoods.window
        if procedure == "reference":
            first, last = options.published_window
            window = (first, min(last, neighborhoods.radii.shape[1] + 1))
        for side in sides:
            began = time.perf_counter()
            try:
                found = neighborhood_test(
                    neighborhoods.radii,
                    procedure,
                    side,
                    window=window,
                    level=options.level,
                    alpha=options.published_alpha,
                )
            except ValueError as error:
                notes.append(f"The published procedure was left out: {error}.")
                break
            seconds = time.perf_counter() - began
            tests.append(_row_test(procedure, side, window, found, neighborhoods, options, strata, seconds))
    return tests, notes


def singular_points(
    test: RowTest, neighborhoods: Neighborhoods, names: list[str], strata: np.ndarray, count: int
) -> list[dict[str, Any]]:
    """The rows of the smallest p-values of one of our tests, with what changes there."""
    found, place_N = test.found, neighborhoods.place
    p_N = np.where(np.isfinite(found.p_value), found.p_value, np.inf)[place_N]
    points = []
    for row in np.argsort(p_N, kind="stable")[:count]:
        place = place_N[row]
        if found.rank[place] == 0 or not np.isfinite(p_N[row]):
            continue
        points.append(
            {
                "row": int(row),
                "name": names[row],
                "stratum": str(strata[row]),
                "p_value": float(p_N[row]),
                "p_holm": float(test.holm[place]) if test.holm is not None else 1.0,
                "rank": int(found.rank[place]),
                "radius": float(neighborhoods.radii[place, found.rank[place] - 1]),
                "dimension_inside": float(found.inside[place]),
                "dimension_outside": float(found.outside[place]),
            }
        )
    return points


def curves_of(test: RowTest, neighborhoods: Neighborhoods, names: list[str], seed: int) -> list[GrowthCurve]:
    """Growth of the neighborhoods of the three most certain points and of three drawn at random."""
    found, place_N = test.found, neighborhoods.place
    p_N = np.where(np.isfinite(found.p_value), found.p_value, np.inf)[place_N]
    certain = np.argsort(p_N, kind="stable")[:3]
    drawn = np.random.default_rng(seed).choice(len(p_N), size=min(3, len(p_N)), replace=False)
    curves = []
    for row in dict.fromkeys([*certain, *drawn]):
        place = place_N[row]
        rank = int(found.rank[place])
        if not np.isfinite(p_N[row]):
            continue
        changed = rank > 0 and p_N[row] <= 0.05
        curves.append(
            GrowthCurve(
                name=names[row],
                radii=neighborhoods.radii[place, : neighborhoods.window[1]],
                change=rank if changed else None,
                inside=float(found.inside[place]),
                outside=float(found.outside[place]) if changed else None,
                p_value=float(p_N[row]),
            )
        )
    return curves


def _row_test(
    procedure: Literal["spacings", "reference", "source"],
    side: Side,
    window: tuple[int, int],
    found: NeighborhoodTest,
    neighborhoods: Neighborhoods,
    options: TestOptions,
    strata: np.ndarray,
    seconds: float,
) -> RowTest:
    place_N = neighborhoods.place
    tested_N = np.isfinite(found.p_value)[place_N]
    below_N = (found.p_value <= options.level)[place_N]
    holm_P = bh_P = None
    if procedure == "spacings":
        holm_P = corrected_p_values(found.p_value, "holm")
        bh_P = corrected_p_values(found.p_value, "benjamini_hochberg")

    def count(adjusted_P: np.ndarray | None, own_N: np.ndarray) -> int | None:
        if adjusted_P is None:
            return None
        return int((adjusted_P <= options.level)[place_N][own_N].sum())

    rejected_N = found.rejected[place_N] if holm_P is None else (holm_P <= options.level)[place_N]
    every_N = np.ones(len(place_N), dtype=bool)
    per_stratum = [
        {
            "stratum": str(name),
            "num_tested": int(tested_N[strata == name].sum()),
            "num_rejected": int(rejected_N[strata == name].sum()),
            "num_below_level": int(below_N[strata == name].sum()) if holm_P is not None else None,
            "num_holm": count(holm_P, strata == name),
            "num_bh": count(bh_P, strata == name),
        }
        for name in np.unique(strata)
    ]
    known = found.p_value[np.isfinite(found.p_value)]
    result = {
        "name": NAMES[procedure, side],
        "procedure": procedure,
        "null": NULLS[side],
        "window": list(window),
        "level": options.published_alpha if procedure == "reference" else options.level,
        "num_tested": int(tested_N.sum()),
        "num_refused": int((~tested_N).sum()),
        "num_rejected": int(rejected_N.sum()),
        "num_below_level": int(below_N.sum()) if holm_P is not None else None,
        "num_holm": count(holm_P, every_N),
        "num_bh": count(bh_P, every_N),
        "smallest_p": float(known.min()) if len(known) and procedure == "spacings" else None,
        "seconds": seconds,
        "per_stratum": per_stratum,
    }
    return RowTest(result, found, holm_P)
