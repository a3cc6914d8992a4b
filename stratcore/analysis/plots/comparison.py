"""Figures of comparisons between arms: intervals of differences, curves over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stratcore.analysis._panels import DOMAIN_COLORS, INK, MUTED
from stratcore.analysis.plots._style import styled


@styled
def difference_intervals(
    rows: Sequence[tuple[str, Mapping[str, Any]]], *, unit: str, margin: float | None = None
) -> Figure:
    """Differences with their intervals, one line each, beside the line of no difference.

    Args:
        rows: name and mapping with `value`, `low`, `high` (None: no interval), the first on top.
        unit: of the differences.
        margin: shade what counts as no loss.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("rows: expected at least one difference")
    figure = Figure(figsize=(8.5, 1.0 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = np.arange(len(rows))[::-1]
    if margin is not None:
        axes.axvspan(-margin, margin, color=MUTED, alpha=0.15, lw=0)
    axes.axvline(0, color=MUTED, lw=1)
    for y, (_, found) in zip(height, rows, strict=True):
        if found["low"] is not None:
            axes.plot([found["low"], found["high"]], [y, y], color=INK, lw=1.6)
        axes.plot(found["value"], y, "o", color=DOMAIN_COLORS[0], ms=5)
    axes.set_yticks(height, [name for name, _ in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel(f"difference, {unit}")
    axes.grid(axis="x")
    return figure


@styled
def mean_curves(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, x_label: str = "step", y_label: str
) -> Figure:
    """Mean over runs of a number against the step, a line an arm, each run faint behind it.

    Args:
        curves: by arm, runs as lists of (x, y); all runs of an arm have the same x.
        x_label: of the x axis.
        y_label: of the y axis.

    Raises:
        ValueError: no arm, or runs of an arm with different x.
    """
    if not curves:
        raise ValueError("curves: expected at least one arm")
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, runs) in enumerate(curves.items()):
        color = DOMAIN_COLORS[index % len(DOMAIN_COLORS)]
        points = [np.array(sorted(run)) for run in runs]
        if any(not np.array_equal(run[:, 0], points[0][:, 0]) for run in points):
            raise ValueError(f"curves: the runs of {name!r} have different x")
        for run in points:
            axes.plot(*run.T, color=color, lw=0.6, alpha=0.25)
        mean = np.mean([run[:, 1] for run in points], axis=0)
        marker = "o" if len(mean) == 1 else None
        axes.plot(points[0][:, 0], mean, color=color, lw=1.8, marker=marker, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid()
    axes.legend(loc="best")
    return figure
