"""Volumes of random simplices: their CV, the dimension that it stands for, and what rounding does to them.

Legend: N rows, D features, k order (a simplex has k + 1 vertices), n simplices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student

from stratcore.analysis.geometry._directions import SPHERE, TWIN, against, simulated
from stratcore.analysis.geometry._rows import SIMULATED_ROWS, GaussianTwin, Rows, directions
from stratcore.analysis.geometry.closed_forms import gaussian_dim_from_cv
from stratcore.analysis.geometry.results import Baseline, ClassCV, Measurement
from stratcore.ops.cayley_menger import simplex_measures
from stratcore.ops.simplex_baseline import cv_gaussian, cv_uniform, effective_dim_from_cv
from stratcore.ops.simplex_cv import simplex_cv

_GROUPS = 20
_CLASS_SIMPLICES = 4000
_ROUNDING_SIMPLICES = 5000


@dataclass(frozen=True, kw_only=True)
class CVEstimate:
    """CV of simplex volumes with its 95 % interval; NaN with fewer than k + 1 rows or no volume at all."""

    value: float
    low: float
    high: float


def _cv(x_ND: np.ndarray, num_simplices: int, order: int, seed: int) -> float:
    if len(x_ND) <= order:
        return math.nan
    return float(simplex_cv(torch.from_numpy(x_ND), k=order, num_simplices=num_simplices, seed=seed).cv)


def estimate_cv(x_ND: np.ndarray, num_simplices: int, order: int, seed: int) -> CVEstimate:
    """CV from simplices of all rows; its error from that of disjoint groups of rows.

    Simplices of the same rows share vertices, so their number says too little about the error. Groups share none:
    the error of the mean of their logarithms, with Student's t, is that of the whole up to terms of order 1 / N^2.
    """
    x_ND = np.ascontiguousarray(x_ND)
    value = _cv(x_ND, num_simplices, order, seed)
    groups = min(_GROUPS, len(x_ND) // (2 * (order + 1)))
    if groups < 4 or not value > 0:
        return CVEstimate(value=value, low=math.nan, high=math.nan)
    shuffled = np.random.default_rng(seed).permutation(len(x_ND))
    parts = [
        _cv(x_ND[part], num_simplices // groups + 2, order, seed + index + 1)
        for index, part in enumerate(np.array_split(shuffled, groups))
    ]
    with np.errstate(divide="ignore"):
        logs = np.log(parts)
    if not np.isfinite(logs).all():
        return CVEstimate(value=value, low=math.nan, high=math.nan)
    factor = math.exp(student.ppf(0.975, groups - 1) * logs.std(ddof=1) / math.sqrt(groups))
    return CVEstimate(value=value, low=value / factor, high=value * factor)


def sphere_dim(cv: float, order: int) -> float:
    """Dimension of the sphere with this CV; NaN where there is none."""
    return effective_dim_from_cv(cv, order).dim if cv > 0 and math.isfinite(cv) else math.nan


def _normal_dim(cv: float, order: int) -> float:
    return gaussian_dim_from_cv(cv, order) if cv > 0 and math.isfinite(cv) else math.nan


def _span(low: float, high: float, order: int) -> tuple[float, float]:
    """Ends of a dimension from those of its CV: the least dimension is `order` where the CV is beyond it."""
    return (float(order) if math.isnan(low) and not math.isnan(high) else low), high


def cv_measurements(
    rows: Rows, twin: GaussianTwin, num_simplices: int, order: int, rng: np.random.Generator
) -> list[Measurement]:
    """CV of the directions and of the rows as they are, each with the dimension that random rows would have."""
    dim = rows.x_ND.shape[1]
    size = min(len(rows.x_ND), SIMULATED_ROWS)
    draws = [twin.draw(size, rng) for _ in range(5)]
    seed = int(rng.integers(1 << 31))
    found = []
    for name, x_ND, cloud, closed, inverse, twins in (
        ("directions", rows.u_ND, SPHERE.format(dim=dim), cv_uniform, sphere_dim, [*map(directions, draws)]),
        ("rows", rows.x_ND, f"standard normal in {dim} dimensions", cv_gaussian, _normal_dim, draws),
    ):
        cv = estimate_cv(x_ND, num_simplices, order, seed)
        of_twin = simulated(TWIN, [_cv(np.ascontiguousarray(t), num_simplices, order, seed) for t in twins])
        null = closed(dim, order) if dim >= order else math.nan
        uniform = Baseline(name=cloud, source="closed form", value=null)
        at, (low, high) = (
            inverse(cv.value, order),
            _span(inverse(cv.high, order), inverse(cv.low, order), order),
        )
        found += [
            Measurement(
                name=f"cv_{name}", value=cv.value, low=cv.low, high=cv.high,
                baselines=(uniform, of_twin), reading=_cv_reading(cv, of_twin, dim, order),
            ),
            Measurement(
                name=f"cv_dim_{name}", value=at, low=low, high=high,
                baselines=(Baseline(name=cloud, source="closed form", value=float(dim)),),
                reading=f"as even as random points of {at:.3g} dimensions; clusters and heavy tails lower it too"
                if math.isfinite(at)
                else _no_dim_reading(cv, dim, order),
            ),
        ]  # fmt: skip
    return found


def _cv_reading(cv: CVEstimate, of_twin: Baseline, dim: int, order: int) -> str:
    if dim < order:
        return f"{dim} dimensions hold no simplex of order {order} with a volume"
    if not math.isfinite(cv.value):
        return f"fewer than {order + 1} different rows: no simplex has a volume"
    if against(cv.value, of_twin) == "above" and not cv.low <= of_twin.high:
        return "more uneven than normal rows of this covariance: clusters or heavy tails"
    if against(cv.value, of_twin) == "below" and not cv.high >= of_twin.low:
        return "more even than normal rows of this covariance, as rows of like length are"
    return "what the covariance alone explains"


def _no_dim_reading(cv: CVEstimate, dim: int, order: int) -> str:
    if math.isfinite(cv.value) and dim >= order:
        return f"no random cloud of {order} or more dimensions is as uneven"
    return _cv_reading(cv, Baseline(name="", source="simulation", value=math.nan), dim, order)


def class_measurements(
    rows: Rows, order: int, rng: np.random.Generator
) -> tuple[list[Measurement], tuple[ClassCV, ...]]:
    """CV of each class's directions, and their mean beside that of shuffled labels."""
    label_N = rows.label_of_directions
    if label_N is None:
        return [], ()
    seed = int(rng.integers(1 << 31))
    names, code_N = np.unique(label_N, return_inverse=True)
    classes = []
    for code, name in enumerate(names):
        own = rows.u_ND[code_N == code]
        cv = estimate_cv(own, _CLASS_SIMPLICES, order, seed)
        low, high = _span(sphere_dim(cv.high, order), sphere_dim(cv.low, order), order)
        classes.append(
            ClassCV(
                label=str(name), num_rows=len(own), cv=cv.value, low=cv.low, high=cv.high,
                dim=sphere_dim(cv.value, order), dim_low=low, dim_high=high,
                normal_dim=_normal_dim(cv.value, order),
            )
        )  # fmt: skip
    known = [entry.cv for entry in classes if math.isfinite(entry.cv)]
    mean = float(np.mean(known)) if known else math.nan
    shuffled = []
    for draw in range(10):
        mixed_N = rng.permutation(code_N)
        sizes = range(len(names)) if known else ()
        cvs = [_cv(rows.u_ND[mixed_N == code], 1000, order, seed + draw) for code in sizes]
        shuffled.append(float(np.nanmean(cvs)) if np.isfinite(cvs).any() else math.nan)
    low, high = (min(known), max(known)) if known else (math.nan, math.nan)
    measured = Measurement(
        name="class_cv_mean",
        value=mean,
        baselines=(
            Baseline(name="shuffled labels", source="shuffled labels", **_range(shuffled)),
            Baseline(
                name=SPHERE.format(dim=rows.x_ND.shape[1]), source="closed form",
                value=cv_uniform(rows.x_ND.shape[1], order) if rows.x_ND.shape[1] >= order else math.nan,
            ),
        ),
        reading=f"{len(known)} of {len(names)} classes, from {low:.3g} to {high:.3g}"
        if known
        else f"no class has {order + 1} different rows in at least {order} dimensions",
    )  # fmt: skip
    return [measured], tuple(classes)


def _range(draws: list[float]) -> dict[str, float]:
    baseline = simulated("", draws)
    return {"value": baseline.value, "low": baseline.low, "high": baseline.high}


def rounding_measurements(rows: Rows, order: int, rng: np.random.Generator) -> list[Measurement]:
    """Share of simplices with a Cayley-Menger determinant of the right sign: in exact terms, and by careless float32.

    That the share is 1 for real points is a theorem. A determinant of the wrong sign is a rounding error of the one
    who computed it.
    """
    count, dim = rows.x_ND.shape
    names = ("valid_share", "degenerate_share", "float32_sign_errors")
    if count <= order or dim < order:
        why = f"no simplex of order {order} has a volume with {count} rows of {dim} features"
        return [Measurement(name=name, value=math.nan, reading=why) for name in names]
    seed = int(rng.integers(1 << 31))
    signs = _signs(rows.x_ND, order, seed)
    uniform = _signs(directions(rng.standard_normal((min(count, SIMULATED_ROWS), dim))), order, seed)
    sphere = SPHERE.format(dim=dim)
    readings = (
        "a theorem, no finding: real points always make a valid simplex",
        "share of simplices of volume 0: rows that repeat, or lie in a plane",
        "share of determinants with the wrong sign when distances are expanded in float32"
        if math.isfinite(signs[2])
        else "no simplex has a volume",
    )
    theorem = Baseline(name="any real points", source="closed form", value=1.0, low=1.0, high=1.0)
    baselines = (
        theorem,
        Baseline(name=sphere, source="closed form", value=0.0),
        Baseline(name=sphere, source="simulation", value=uniform[2]),
    )
    return [
        Measurement(name=name, value=value, baselines=(baseline,), reading=reading)
        for name, value, baseline, reading in zip(names, signs, baselines, readings, strict=True)
    ]


def _signs(x_ND: np.ndarray, order: int, seed: int) -> tuple[float, float, float]:
    """Shares of simplices that are valid, of volume 0, and of the wrong sign by expanded float32 distances."""
    table = torch.from_numpy(np.ascontiguousarray(x_ND / (np.abs(x_ND).max() or 1.0)))
    sample = simplex_cv(table, k=order, num_simplices=_ROUNDING_SIMPLICES, seed=seed).indices
    squared = simplex_measures(table, sample, outputs=("squared_volume",)).squared_volume
    volume = np.asarray(squared)
    solid = volume > 0
    if not solid.any():
        return float((volume >= 0).mean()), 1.0, math.nan
    points = table[sample].float().numpy()[solid]
    square = np.einsum("nid,nid->ni", points, points)
    gram = np.einsum("nid,njd->nij", points, points)
    bordered = np.ones((len(points), order + 2, order + 2), np.float32)
    bordered[:, 1:, 1:] = square[:, :, None] + square[:, None, :] - 2 * gram
    bordered[:, 0, 0] = 0
    np.einsum("nii->ni", bordered)[:, 1:] = 0
    wrong = np.linalg.det(bordered) * (-1) ** (order + 1) <= 0
    return float((volume >= 0).mean()), float((~solid).mean()), float(wrong.mean())
