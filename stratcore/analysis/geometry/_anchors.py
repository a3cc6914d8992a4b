"""How rows share anchors on the sphere, beside how uniform rows would share the same anchors.

Legend: N rows, D features, A anchors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import entr

from stratcore.analysis._checks import as_matrix
from stratcore.analysis.geometry._directions import SPHERE, against, simulated
from stratcore.analysis.geometry._rows import Rows, directions
from stratcore.analysis.geometry._simplices import CVEstimate, estimate_cv
from stratcore.analysis.geometry.results import Baseline, Measurement
from stratcore.ops.simplex_baseline import cv_uniform

_BLOCK = 4096
_DRAWS = 10
NAMES = ("anchor_entropy", "anchor_gini", "anchor_dead_share", "anchor_top_share")


def nearest_anchor(x_ND: Any, anchor_AD: np.ndarray) -> np.ndarray:
    """Anchor of largest cosine to each row, [N], ties to the lower; anchors are unit rows."""
    blocks = [(x_ND[at : at + _BLOCK] @ anchor_AD.T).argmax(axis=1) for at in range(0, len(x_ND), _BLOCK)]
    return np.concatenate(blocks)


def usage(count_A: np.ndarray) -> tuple[float, float, float, float]:
    """Entropy of the shares over log A, Gini coefficient, share of anchors without a row, largest share of rows."""
    num, total = len(count_A), count_A.sum()
    share = np.sort(count_A) / total
    entropy = float(entr(share).sum() / math.log(num)) if num > 1 else 1.0
    gini = float((2 * np.arange(1, num + 1) - num - 1) @ share / num)
    return entropy, gini, float((count_A == 0).mean()), float(share[-1])


def unit_anchors(anchors: Any, dim: int) -> np.ndarray:
    """Anchors as unit rows [A, D].

    Raises:
        ValueError: no matrix, another number of columns than the rows have, NaN, or an anchor of length 0.
    """
    anchor_AD = as_matrix("anchors", anchors)
    if anchor_AD.shape[1] != dim:
        raise ValueError(f"anchors: expected {dim} columns, as X has, got {anchor_AD.shape[1]}")
    norm_A = np.linalg.norm(anchor_AD, axis=1)
    if (norm_A == 0).any():
        raise ValueError(f"anchors: row {int((norm_A == 0).argmax())} is 0 and has no direction")
    return anchor_AD / norm_A[:, None]


def anchor_measurements(
    rows: Rows, anchor_AD: np.ndarray | None, order: int, rng: np.random.Generator
) -> list[Measurement]:
    """Entropy, Gini coefficient, dead share and largest share of the anchors; CV of the anchors themselves."""
    if anchor_AD is None:
        return []
    num, dim = anchor_AD.shape
    count = len(rows.u_ND)
    if not count:
        return [
            Measurement(name=name, value=math.nan, reading="no row is different from 0") for name in NAMES
        ]
    used = usage(np.bincount(nearest_anchor(rows.u_ND, anchor_AD), minlength=num))
    draws = []
    for _ in range(_DRAWS):
        uniform = directions(rng.standard_normal((count, dim)))
        draws.append(usage(np.bincount(nearest_anchor(uniform, anchor_AD), minlength=num)))
    name = SPHERE.format(dim=dim) + ", same anchors"
    null = [simulated(name, list(column)) for column in zip(*draws, strict=True)]
    effective = num ** used[0]
    readings = (
        f"as if {effective:.3g} of {num} anchors were used evenly",
        f"use is {against(used[1], null[1])} the inequality of uniform rows",
        f"{round(used[2] * num)} of {num} anchors have no row",
        f"the busiest anchor holds {100 * used[3]:.3g} % of the rows, {100 / num:.3g} % if even",
    )
    found = [
        Measurement(name=which, value=value, baselines=(baseline,), reading=reading)
        for which, value, baseline, reading in zip(NAMES, used, null, readings, strict=True)
    ]
    if num > order and dim >= order:
        cv = estimate_cv(anchor_AD, 4000, order, int(rng.integers(1 << 31)))
        null_cv = Baseline(name=SPHERE.format(dim=dim), source="closed form", value=cv_uniform(dim, order))
        found.append(
            Measurement(
                name="anchor_cv", value=cv.value, low=cv.low, high=cv.high, baselines=(null_cv,),
                reading=_cv_reading(cv, null_cv.value),
            )
        )  # fmt: skip
    return found


def _cv_reading(cv: CVEstimate, uniform: float) -> str:
    if not math.isfinite(cv.value):
        return "the anchors span no simplex with a volume"
    if not math.isfinite(cv.low):
        return "too few anchors for an interval"
    if cv.low > uniform:
        return "anchors lie more unevenly than uniform ones"
    return f"anchors lie {'more evenly than' if cv.high < uniform else 'as evenly as'} uniform ones"
