"""Figures of an analysis: views, p-value maps, growth curves, dimensions, number of strata, perplexity.

Legend: N rows, C chosen points, K neighbors, S strata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from stratcore.analysis._panels import (
    ACCENT,
    CONTRAST,
    DOMAIN_COLORS,
    INK,
    MUTED,
    colors_of,
    domain_colors,
    draw_legend,
    rarefied,
)
from stratcore.analysis.plots._style import styled

_SMALLEST_P = 1e-12


@dataclass(frozen=True, kw_only=True)
class GrowthCurve:
    """Neighbor radii of one point and what the test found there.

    Args:
        name: what a reader would call the point.
        radii: sorted, [K]. Unit: length.
        change: rank at which the dimension changes, or None.
        inside: dimension before the change (or everywhere).
        outside: dimension after it, or None.
        p_value: of the test.
    """

    name: str
    radii: np.ndarray
    change: int | None
    inside: float
    outside: float | None
    p_value: float


@styled
def views_2d(points_N3: np.ndarray, shares: Sequence[float], groups: Mapping[str, np.ndarray]) -> Figure:
    """Two leading principal components, once for each grouping of the rows ("domain", "stratum", ...)."""
    figure = Figure(figsize=(0.6 + 5.4 * len(groups), 5.4), layout="constrained")
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (what, label_N) in zip(panels, groups.items(), strict=True):
        names_N = label_N.astype(str)
        colors = domain_colors(names_N)
        axes.scatter(
            *rarefied(points_N3[:, :2]).T, s=8, c=rarefied(colors_of(names_N, colors)), lw=0, alpha=0.7
        )
        axes.set_title(f"by {what}")
        axes.set_xlabel(f"PC 1 ({100 * shares[0]:.1f} % of variance)")
        draw_legend(axes, colors)
    panels[0].set_ylabel(f"PC 2 ({100 * shares[1]:.1f} % of variance)")
    return figure


@styled
def views_3d(points_N3: np.ndarray, groups: Mapping[str, np.ndarray]) -> Figure:
    """Three leading principal components, once for each grouping of the rows."""
    figure = Figure(figsize=(0.6 + 6.2 * len(groups), 5.6), layout="constrained")
    for index, (what, label_N) in enumerate(groups.items()):
        axes: Any = figure.add_subplot(1, len(groups), index + 1, projection="3d")
        names_N = label_N.astype(str)
        colors = domain_colors(names_N)
        axes.scatter(*rarefied(points_N3).T, s=6, c=rarefied(colors_of(names_N, colors)), depthshade=True)
        axes.view_init(elev=18, azim=-60)
        axes.set(xlabel="PC 1", ylabel="PC 2", zlabel="PC 3")
        axes.set_title(f"by {what}")
        axes.patch.set_visible(False)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_formatter(NullFormatter())
            axis.labelpad = -8
        axes.set_box_aspect((1, 1, 0.85), zoom=1.1)
        draw_legend(axes, colors)
    return figure


@styled
def p_value_map(points_N3: np.ndarray, p_values: Mapping[str, np.ndarray], shares: Sequence[float]) -> Figure:
    """Rows at their first two components, colored by the p-value of each test; untested rows in gray."""
    figure = Figure(figsize=(0.6 + 5.2 * len(p_values), 4.8), layout="constrained")
    panels = figure.subplots(1, len(p_values), sharex=True, sharey=True, squeeze=False)[0]
    shown: Any = None
    for axes, (test, p_N) in zip(panels, p_values.items(), strict=True):
        tested_N = np.isfinite(p_N)
        axes.scatter(*rarefied(points_N3[~tested_N, :2]).T, s=6, c="#D5D9DE", lw=0)
        strength_N = -np.log10(np.maximum(p_N, _SMALLEST_P))
        order = np.argsort(np.where(tested_N, strength_N, -1.0))[-int(tested_N.sum()) or len(p_N) :]
        order = order[-6000:]
        shown = axes.scatter(
            *points_N3[order, :2].T, s=8, c=strength_N[order], cmap="viridis_r", vmin=0, vmax=6, lw=0
        )
        axes.set_title(test)
        axes.set_xlabel(f"PC 1 ({100 * shares[0]:.1f} % of variance)")
    panels[0].set_ylabel(f"PC 2 ({100 * shares[1]:.1f} % of variance)")
    figure.colorbar(shown, ax=list(panels), label="−log₁₀ p (6 and above: darkest)", shrink=0.8)
    return figure


@styled
def p_value_ranks(p_values: Mapping[str, np.ndarray], level: float) -> Figure:
    """Sorted p-values against what even ones would be; a curve below the diagonal holds small p-values."""
    figure = Figure(figsize=(6.6, 5), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for (test, p_N), color in zip(p_values.items(), DOMAIN_COLORS, strict=False):
        sorted_n = np.sort(p_N[np.isfinite(p_N)])
        if not len(sorted_n):
            continue
        even_n = (np.arange(len(sorted_n)) + 0.5) / len(sorted_n)
        axes.plot(even_n, np.maximum(sorted_n, _SMALLEST_P), color=color, lw=2, label=test)
        lowest = min(lowest, even_n[0])
    axes.plot([lowest, 1], [lowest, 1], color=MUTED, lw=1.2, label="no structure")
    axes.axhline(level, color=MUTED, lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="share of points with a p-value at or below (if even)")
    axes.set_ylabel(f"p-value (dotted: {level:g})")
    axes.set_title("p-values of all points, sorted")
    axes.legend()
    return figure


@styled
def growth_curves(curves: Sequence[GrowthCurve]) -> Figure:
    """Neighbors within a radius, against the radius, on logarithmic axes: the slope is the local dimension."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(0.5 + 3.9 * columns, 0.5 + 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, curve in zip(panels, curves, strict=False):
        rank_K = np.arange(1, len(curve.radii) + 1)
        axes.loglog(curve.radii, rank_K, color=INK, lw=1.8)
        if curve.change is None or curve.outside is None:
            words = f"dimension {curve.inside:.1f}, p = {curve.p_value:.2g}"
        else:
            axes.axvline(curve.radii[min(curve.change, len(curve.radii)) - 1], color=CONTRAST, lw=1.2)
            words = f"{curve.inside:.1f} → {curve.outside:.1f}, p = {curve.p_value:.2g}"
        axes.set_title(f"{curve.name}\n{words}", fontsize=9.5)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="radius", ylabel="neighbors")
    for axes in figure.axes[len(curves) :]:
        axes.remove()
    return figure


@styled
def dimension_forest(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each stratum's dimension by each estimator, with its interval; a hollow dot carries a warning.

    Args:
        rows: `stratum`, `estimator`, `value`, `low`, `high`, `warning` each; values may be None.
    """
    strata = list(dict.fromkeys(row["stratum"] for row in rows))
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    gap = 1 / (len(estimators) + 1)
    figure = Figure(
        figsize=(9.5, 1.6 + len(strata) * max(0.34, 0.16 * len(estimators))), layout="constrained"
    )
    axes = figure.subplots()
    for index, (estimator, color) in enumerate(zip(estimators, DOMAIN_COLORS, strict=False)):
        axes.plot([], [], "o", color=color, label=estimator)
        for row in rows:
            if row["estimator"] != estimator or row["value"] is None:
                continue
            y = strata.index(row["stratum"]) + (index - (len(estimators) - 1) / 2) * gap
            if row["low"] is not None and row["high"] is not None:
                axes.plot([row["low"], row["high"]], [y, y], color=color, lw=1.6)
            face = "white" if row["warning"] else color
            axes.plot(row["value"], y, "o", color=color, mfc=face, ms=5.5)
    for border in range(1, len(strata)):
        axes.axhline(border - 0.5, color="#E3E6EA", lw=0.8)
    axes.set(yticks=range(len(strata)), yticklabels=strata, ylim=(len(strata) - 0.5, -0.5))
    values = [row["value"] for row in rows if row["value"]]
    if values and max(values) > 8 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("dimension, 95 % interval (hollow: with a warning)")
    axes.set_title("Dimension by stratum and estimator")
    axes.grid(axis="x")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


@styled
def strata_choice(table: Sequence[Mapping[str, Any]], chosen: int, criterion: str) -> Figure:
    """The criterion against the number of strata, with intervals, the choice marked.

    Args:
        table: `num_strata`, `value`, `low`, `high` each.
        chosen: the number taken.
        criterion: what the axis measures.
    """
    figure = Figure(figsize=(6.2, 4), layout="constrained")
    axes = figure.subplots()
    number = [row["num_strata"] for row in table]
    value = [np.nan if row["value"] is None else row["value"] for row in table]
    axes.plot(number, value, color=ACCENT, lw=1.6)
    for row in table:
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["num_strata"]] * 2, [row["low"], row["high"]], color=ACCENT, lw=1.6)
    axes.plot(number, value, "o", color=ACCENT, ms=6)
    axes.axvline(chosen, color=CONTRAST, lw=1.2)
    axes.set(xlabel="number of strata", ylabel=criterion, xticks=number)
    axes.set_title(f"Number of strata: {chosen} taken")
    axes.grid(axis="y")
    return figure


@styled
def value_by_group(panels: Mapping[str, Sequence[Mapping[str, Any]]], what: str) -> Figure:
    """Median of a row's value in each group, with its interval, one panel a grouping.

    Args:
        panels: `group`, `num_rows`, `median`, `low`, `high` of each group, by the grouping's name.
        what: the value, for the axis.
    """
    tallest = max(len(groups) for groups in panels.values())
    figure = Figure(figsize=(0.8 + 5 * len(panels), 1.6 + 0.42 * tallest), layout="constrained")
    for axes, (title, groups) in zip(
        figure.subplots(1, len(panels), sharex=True, squeeze=False)[0], panels.items(), strict=True
    ):
        for y, group in enumerate(groups):
            if group["low"] is not None:
                axes.plot([group["low"], group["high"]], [y, y], color=ACCENT, lw=2)
            axes.plot(group["median"], y, "o", color=ACCENT, ms=6)
        labels = [f"{group['group']}  (n = {group['num_rows']})" for group in groups]
        axes.set(yticks=range(len(groups)), yticklabels=labels, ylim=(len(groups) - 0.5, -0.5), xlabel=what)
        axes.set_title(f"by {title}")
        axes.grid(axis="x")
    return figure
