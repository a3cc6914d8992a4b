"""Figures of a geometry scan, each with what random rows would show.

Legend: N rows, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from stratcore.analysis._panels import ACCENT, CONTRAST, INK, MUTED
from stratcore.analysis.geometry.closed_forms import sphere_cosine_density
from stratcore.analysis.geometry.results import GeometryScan, Measurement
from stratcore.analysis.plots._style import styled
from stratcore.ops.simplex_baseline import cv_gaussian, cv_uniform


@styled
def spectrum_plot(scan: GeometryScan) -> Figure:
    """Covariance eigenvalues by rank beside those of isotropic rows, and the energy of the leading axes."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = scan.curves.eigenvalues
    null = scan.curves.isotropic_eigenvalues
    if not values.sum() > 0:
        for axes in (left, right):
            _empty(axes, "All rows are equal: no variance")
        return figure
    rank = np.arange(1, len(values) + 1)
    shown = values > 1e-9 * values[0]
    left.plot(rank[shown], values[shown], color=ACCENT, lw=2, label="measured")
    left.plot(rank, null, color=MUTED, lw=2, label="isotropic rows (Marchenko-Pastur)")
    edge = scan_edge(scan)
    left.axhline(edge, color=CONTRAST, lw=1.2)
    above = int((values > edge).sum())
    left.annotate(
        f"edge: {above} axes above", (rank[-1], edge), (0, 5), textcoords="offset points", color=CONTRAST,
        ha="right",
    )  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="rank of the principal axis", ylabel="variance along it")
    left.set_title("Spectrum of the covariance")
    left.legend(loc="lower left")
    for curve, color, label in ((values, ACCENT, "measured"), (null, MUTED, "isotropic rows")):
        right.plot(
            np.r_[0, rank], 100 * np.r_[0, np.cumsum(curve)] / curve.sum(), color=color, lw=2, label=label
        )
    for name, dash in (("participation_ratio", ":"), ("effective_rank", "--")):
        value = scan[name].value
        right.axvline(value, color=CONTRAST, lw=1.4, ls=dash, label=f"{name.replace('_', ' ')}: {value:.1f}")
    right.set(xlabel="principal axes", ylabel="share of variance, %", ylim=(0, 102), xlim=(0, None))
    right.set_title("Energy of the leading axes")
    right.legend(loc="lower right")
    return figure


def scan_edge(scan: GeometryScan) -> float:
    """Largest eigenvalue of isotropic rows of the same total variance: mean variance (1 + sqrt(D / (N - 1)))^2."""
    mean = float(scan.curves.eigenvalues.sum()) / scan.num_features
    return mean * (1 + math.sqrt(scan.num_features / (scan.num_scanned - 1))) ** 2


@styled
def simplex_cv_plot(scan: GeometryScan) -> Figure:
    """CV of simplex volumes on the closed-form curves of random points; the classes with their intervals."""
    classes = [entry for entry in scan.class_cv if math.isfinite(entry.cv)]
    figure = Figure(figsize=(11.5, max(4.8, 1.8 + 0.34 * len(classes))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_cv_curves(left, scan)
    if not classes:
        _empty(right, "No classes with a CV")
        return figure
    measured = scan["class_cv_mean"]
    shuffled, sphere = measured.baselines
    right.axvspan(shuffled.low, shuffled.high, color="#D5D9DE", lw=0)
    right.axvline(sphere.value, color=MUTED, lw=1.4)
    for row, entry in enumerate(classes):
        if math.isfinite(entry.low):
            right.plot([entry.low, entry.high], [row, row], color=ACCENT, lw=2)
        right.plot(entry.cv, row, "o", color=ACCENT, ms=6)
        at = entry.high if math.isfinite(entry.high) else entry.cv
        told = f"{_whole(entry.dim)} / {_whole(entry.normal_dim)}"
        right.annotate(told, (at, row), (6, 0), textcoords="offset points", va="center")
    ends = [entry.high if math.isfinite(entry.high) else entry.cv for entry in classes]
    top = max(*ends, shuffled.value, sphere.value)
    right.set(
        yticks=range(len(classes)), yticklabels=[f"{e.label}  (n = {e.num_rows})" for e in classes],
        ylim=(len(classes) - 0.5, -0.5), xlim=(0, 1.2 * top),
        xlabel="CV of directions with 95 % interval\ngray: shuffled labels (band), uniform on the sphere (line)",
    )  # fmt: skip
    right.set_title("Classes: CV (dimension: sphere / normal)")
    right.grid(axis="x")
    return figure


def _whole(dim: float) -> str:
    return f"{dim:.0f}" if math.isfinite(dim) else "none"


def _draw_cv_curves(axes: Any, scan: GeometryScan) -> None:
    order = scan.order
    dims = np.geomspace(order, max(1000, 2 * scan.num_features), 200)
    for function, color, label in (
        (cv_uniform, INK, "uniform on the sphere, closed form"),
        (cv_gaussian, MUTED, "normal rows, closed form"),
    ):
        axes.plot(dims, [function(max(d, order), order) for d in dims], color=color, lw=1.8, label=label)
    for what, color, label in (
        ("directions", ACCENT, "measured directions"), ("rows", CONTRAST, "measured rows")
    ):  # fmt: skip
        cv, dim = scan[f"cv_{what}"], scan[f"cv_dim_{what}"]
        if not math.isfinite(dim.value):
            continue
        axes.plot([dim.value, scan.num_features], [cv.value] * 2, color=color, lw=1.2, ls=":")
        axes.plot(scan.num_features, cv.value, "o", color=color, ms=7, mfc="white")
        axes.plot(dim.value, cv.value, "o", color=color, ms=8, label=f"{label}: {dim.value:.3g} dimensions")
        if math.isfinite(dim.low):
            axes.plot([dim.low, dim.high], [cv.value] * 2, color=color, lw=4, solid_capstyle="butt")
    axes.set(
        xscale="log", yscale="log", xlabel="dimension (ring: features of the rows)", ylabel="CV of volumes"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks([4, 10, 30, 100, 300, 1000])
    axes.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1])
    axes.set_title("CV of random simplices falls with the dimension")
    axes.grid()
    axes.legend(loc="lower left")


@styled
def norms_and_cosines(scan: GeometryScan) -> Figure:
    """Histograms of the norms, beside normal rows, and of the cosines of pairs, beside uniform directions."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_norms(left, scan)
    if not len(scan.curves.cosines):
        _empty(right, "No pair of rows has a cosine")
        return figure
    cosines = scan.curves.cosines
    reach = min(1.0, 0.05 + 1.1 * float(np.quantile(np.abs(cosines), 0.999)))
    right.hist(
        cosines, bins=80, range=(-reach, reach), density=True, color=ACCENT, alpha=0.85, label="measured"
    )
    if scan.num_features > 1:
        grid = np.linspace(-1, 1, 801)[1:-1]
        label = f"uniform on the sphere, D = {scan.num_features}"
        right.plot(grid, sphere_cosine_density(grid, scan.num_features), color=CONTRAST, lw=2, label=label)
    right.set(
        xlabel=f"cosine of pairs (mean {scan['mean_cosine'].value:.3f})",
        ylabel="density",
        xlim=(-reach, reach),
    )
    right.set_title("Self-similarity")
    _legend_below(right)
    return figure


@styled
def scan_overview(scan: GeometryScan) -> Figure:
    """Each dimension-like figure of the scan beside its baseline, on one logarithmic axis."""
    names = {
        "participation_ratio": "participation ratio",
        "effective_rank": "effective rank",
        "cv_dim_directions": "from simplex CV, directions",
        "cv_dim_rows": "from simplex CV, rows",
    }
    found = [(text, scan[name]) for name, text in names.items() if math.isfinite(scan[name].value)]
    figure = Figure(figsize=(8.5, 2.0 + 0.45 * len(found)), layout="constrained")
    axes = figure.subplots()
    if not found:
        _empty(axes, "No dimension could be measured")
        return figure
    for row, (_, measurement) in enumerate(found):
        _draw_dimension(axes, row, measurement)
    axes.plot([], [], "o", color=ACCENT, label="measured, 95 % interval")
    axes.plot([], [], "|", color=CONTRAST, ms=12, mew=2, label="random rows of full dimension")
    axes.set(
        yticks=range(len(found)), yticklabels=[text for text, _ in found], ylim=(len(found) - 0.5, -0.5),
        xscale="log", xlabel="effective dimension", xlim=(1, 2 * scan.num_features + 8),
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Effective dimension of {scan.num_scanned:,} rows with {scan.num_features} features")
    axes.grid(axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2)
    return figure


def _draw_dimension(axes: Any, row: int, measurement: Measurement) -> None:
    if math.isfinite(measurement.low) and math.isfinite(measurement.high):
        axes.plot([measurement.low, measurement.high], [row, row], color=ACCENT, lw=3)
    axes.plot(measurement.value, row, "o", color=ACCENT, ms=7)
    axes.plot(measurement.baselines[0].value, row, "|", color=CONTRAST, ms=14, mew=2)
    axes.annotate(
        f"{measurement.value:.1f}", (measurement.value, row), (0, 8), textcoords="offset points", ha="center"
    )


def _draw_norms(axes: Any, scan: GeometryScan) -> None:
    norms, spread = scan.curves.norms, scan["norm_spread"]
    if np.ptp(norms) > 1e-6 * norms.max():
        axes.hist(norms, bins=60, density=True, color=ACCENT, alpha=0.85, label="measured")
    else:
        axes.axvline(norms[0], color=ACCENT, lw=3, label="measured: one norm for all rows")
    expected = scan["norm_mean"].baselines[0].value
    deviation = spread.baselines[0].value * expected
    if deviation > 1e-6 * expected:
        at = np.linspace(max(0, expected - 4 * deviation), expected + 4 * deviation, 200)
        density = np.exp(-0.5 * ((at - expected) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
        axes.plot(at, density, color=CONTRAST, lw=2, label="normal rows of this covariance")
    axes.set(xlabel=f"norm (mean {norms.mean():.3g}, spread {spread.value:.3f})", ylabel="density")
    axes.set_title("Norms of the rows")
    _legend_below(axes)


def _legend_below(axes: Any) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _empty(axes: Any, why: str) -> None:
    axes.set_title(why)
    axes.set(xticks=[], yticks=[], xlabel=" ")


def scan_figures(scan: GeometryScan) -> Mapping[str, Figure]:
    """All figures of a scan by name, in the order of a report."""
    return {
        "scan_overview": scan_overview(scan),
        "scan_simplex_cv": simplex_cv_plot(scan),
        "scan_spectrum": spectrum_plot(scan),
        "scan_norms_and_cosines": norms_and_cosines(scan),
    }
