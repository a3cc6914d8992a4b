"""Figures of a run. Functions take arrays or parts of `Results` and return a `matplotlib.figure.Figure`.

Legend: N rows, G domains, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from stratcore.analysis._panels import (
    ACCENT,
    CONTRAST,
    DOMAIN_COLORS,
    MUTED,
    View,
    colors_of,
    domain_colors,
    draw_assignment,
    draw_bars,
    draw_dimensions,
    draw_fvu,
    draw_gate,
    draw_interval,
    draw_legend,
    draw_matrix,
    draw_scatter,
    draw_sparsity,
    expert_colors,
    expert_legend,
    rarefied,
)
from stratcore.analysis.plots._style import styled
from stratcore.analysis.results import Results
from stratcore.analysis.schema import to_plain


@styled
def embedding_2d(view: View, levels: Sequence[int]) -> Figure:
    """Two leading principal components, by domain and by expert side by side."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    draw_scatter(left, view, view.domains, domain_colors(view.domains))
    left.set_title("The same held-out rows by domain")
    draw_scatter(right, view, view.experts, expert_colors(levels))
    right.set_title("and by the expert that they were assigned to")
    right.set_ylabel("")
    draw_legend(left, domain_colors(view.domains))
    draw_legend(right, expert_legend(levels), columns=4)
    return figure


@styled
def embedding_3d(view: View, levels: Sequence[int]) -> Figure:
    """Three leading principal components: by domain above, by expert below, each from two sides."""
    figure = Figure(figsize=(11.5, 9), layout="constrained")
    rows: tuple[tuple[Any, Any, Any, str], ...] = (
        (view.domains, domain_colors(view.domains), domain_colors(view.domains), "by domain"),
        (view.experts, expert_colors(levels), expert_legend(levels), "by expert"),
    )
    for row, (labels, colors, legend, what) in enumerate(rows):
        for column, azimuth in enumerate((-60, 30)):
            axes: Any = figure.add_subplot(2, 2, 1 + 2 * row + column, projection="3d")
            axes.scatter(
                *rarefied(view.points).T, s=6, c=rarefied(colors_of(labels, colors)), depthshade=True
            )
            axes.view_init(elev=18, azim=azimuth)
            axes.set(xlabel="PC 1", ylabel="PC 2", zlabel="PC 3")
            axes.set_title(
                f"Held-out rows {what}, " + ("from the front" if column == 0 else "from the right")
            )
            axes.patch.set_visible(False)
            for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
                # With empty labels instead, matplotlib before 3.11 gives up the constrained layout.
                axis.set_major_formatter(NullFormatter())
                axis.labelpad = -8
            axes.set_box_aspect((1, 1, 0.85), zoom=1.1)
            if column == 1:
                draw_legend(axes, legend)
    return figure


@styled
def gate_heatmap(mean_gate_GE: np.ndarray, domains: Sequence[str], levels: Sequence[int]) -> Figure:
    """Mean gate probability of each expert in each domain, with numbers."""
    figure = Figure(figsize=(1.9 + 0.85 * len(levels), 1.7 + 0.5 * len(domains)), layout="constrained")
    draw_gate(figure.subplots(), np.asarray(mean_gate_GE), domains, levels)
    return figure


@styled
def assignment_histogram_plot(
    shares_GE: np.ndarray, counts_GE: np.ndarray, domains: Sequence[str], levels: Sequence[int]
) -> Figure:
    """Share of each domain's held-out rows by expert, one stacked bar a domain."""
    figure = Figure(figsize=(9.5, 1.8 + 0.5 * len(domains)), layout="constrained")
    axes = figure.subplots()
    totals = np.asarray(counts_GE).sum(axis=1)
    names = [f"{name}  (n = {total})" for name, total in zip(domains, totals, strict=True)]
    draw_assignment(axes, np.asarray(shares_GE), names, levels)
    draw_legend(axes, expert_legend(levels), columns=min(len(levels), 7))
    return figure


@styled
def dimension_and_sparsity(dimensions: Mapping[str, Any], sparsity: Mapping[str, Any]) -> Figure:
    """PCA dimension and weighted sparsity of each stratum, beside what an untrained gate would show."""
    figure = Figure(figsize=(11, 1.9 + 0.42 * len(dimensions["per_stratum"])), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_dimensions(left, dimensions)
    draw_sparsity(right, sparsity)
    return figure


@styled
def dimension_analysis(
    cumulative_variance: Sequence[float], num_components: int, dimensions: Mapping[str, Any]
) -> Figure:
    """Cumulative PCA variance with the usual thresholds, and the dimension of each stratum."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    share = np.r_[0.0, cumulative_variance]
    left.plot(100 * share, color=ACCENT, lw=2.2)
    kept = min(num_components, len(share) - 1)
    left.vlines(kept, 0, 100 * share[kept], color=CONTRAST, lw=1.4)
    side = -1 if kept > 0.6 * len(share) else 1
    left.annotate(
        f"kept: {kept} components,\n{100 * share[kept]:.1f} %", (kept, 3), xytext=(6 * side, 0),
        textcoords="offset points", color=CONTRAST, ha="left" if side > 0 else "right",
    )  # fmt: skip
    for threshold in (0.5, 0.75, 0.9, 0.95):
        needed = int(np.searchsorted(share, threshold - 1e-12))
        if needed < len(share):
            left.plot(needed, 100 * share[needed], "o", color=ACCENT, ms=5)
            text = f"{100 * threshold:.0f} %: {needed}"
            left.annotate(text, (needed, 100 * share[needed]), xytext=(8, -12), textcoords="offset points")
    left.set(
        xlim=(0, len(share) - 1), ylim=(0, 102), xlabel="principal components", ylabel="share of variance, %"
    )
    left.set_title("Variance held by the leading components")
    draw_dimensions(right, dimensions)
    return figure


@styled
def reconstruction_bars(reconstruction: Mapping[str, Any], levels: Sequence[int]) -> Figure:
    """FVU of the model beside its baselines in both spaces, and of each expert on its own rows."""
    models = [reconstruction["overall"], *reconstruction["baselines"]]
    figure = Figure(figsize=(13, 1.8 + 0.42 * max(len(models), len(levels))), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    draw_fvu(first, models, "pca_space")
    first.set_title("FVU in PCA space")
    draw_fvu(second, models, "original_space")
    second.set(title="FVU in the original space", yticklabels=[])
    experts = [expert for expert in reconstruction["per_expert"] if expert["pca_space"] is not None]
    colors = expert_colors(levels)
    labels = [f"E{e['expert']}, k = {e['sparsity']}  (n = {e['pca_space']['num_rows']})" for e in experts]
    draw_bars(third, labels, [e["pca_space"] for e in experts], [colors[e["expert"]] for e in experts])
    third.set_title("FVU of each expert on its own rows")
    return figure


@styled
def agreement_plot(agreement: Mapping[str, Any]) -> Figure:
    """ARI and NMI of experts, all and within length bins, and of clusterings; shuffled in gray."""
    rows = [("experts", agreement["overall"])]
    if agreement["within_length"] is not None:
        rows.append(("experts, rows of like length", agreement["within_length"]))
    figure = Figure(
        figsize=(11, 1.6 + 0.42 * (len(rows) + len(agreement["baselines"]))), layout="constrained"
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key in zip(panels, ("ari", "nmi"), strict=True):
        names, top = [name for name, _ in rows], 0.0
        for y, (_, entry) in enumerate(rows):
            e = entry[key]
            axes.plot(
                [min(e["floor"], 0), e["floor_high"]], [y, y], color="#D5D9DE", lw=9, solid_capstyle="butt"
            )
            axes.plot(e["value"], y, "o", mfc="none", mec=ACCENT)
            draw_interval(axes, y, (e["corrected"], e["low"], e["high"]), ACCENT)
            top = max(top, e["high"], e["value"])
        for y, b in enumerate(agreement["baselines"], start=len(rows)):
            draw_interval(axes, y, (b[key], b[f"{key}_low"], b[f"{key}_high"]), MUTED)
            names.append(f"{b['name']}, {b['num_clusters']} clusters")
            top = max(top, b[f"{key}_high"])
        axes.set(
            yticks=range(len(names)), yticklabels=names, xlim=(min(0, axes.get_xlim()[0]), 1.25 * top + 0.02)
        )
        axes.set_title(
            {"ari": "Adjusted Rand index", "nmi": "Normalized mutual information"}[key] + " with domains"
        )
        axes.grid(axis="x")
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_xlabel("dot, line: chance taken off, 95 % interval\n(clusterings: range over seeds)")
    panels[1].set_xlabel("ring: as counted; gray bar: up to the\n95 % quantile of shuffled labels")
    return figure


@styled
def expert_distance_matrix(distances: Mapping[str, Any], levels: Sequence[int]) -> Figure:
    """Chordal and atom-matching distances of all pairs of experts, beside those of random dictionaries."""
    size = 1.6 + 0.55 * len(levels)
    figure = Figure(figsize=(2 * size + 1, size), layout="constrained")
    names = list(expert_legend(levels))
    panels = (
        ("chordal", f"Chordal distance of {distances['subspace_rank']}-dimensional subspaces"),
        ("matching", "Distance of matched atoms"),
    )
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        matrix = np.array(distances[key], dtype=float)
        draw_matrix(axes, matrix, names, [name.split()[0] for name in names], "Purples")
        axes.set_title(title)
        random = distances["random_" + key]
        if random is not None:
            axes.set_xlabel(f"unrelated dictionaries: {random:.2f}", labelpad=8)
    return figure


@styled
def training_curves(records: Iterable[Mapping[str, Any]], names: Sequence[str] | None = None) -> Figure:
    """Small multiples of the numbers in metrics.jsonl against the step.

    Args:
        records: one mapping a line with `step` and numbers. A key `split` or a prefix as in `test/loss` makes
            several lines in one panel.
        names: which metrics, in this order; None takes the first nine that change.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in records:
        for key, value in record.items():
            prefix, _, name = key.rpartition("/")
            if key in ("step", "epoch", "seconds", "time") or not _is_finite(value) or "step" not in record:
                continue
            line = prefix or str(record.get("split", "train"))
            curves.setdefault(name, {}).setdefault(line, []).append((record["step"], value))
    moving = [
        name for name, lines in curves.items() if len({y for line in lines.values() for _, y in line}) > 1
    ]
    shown = [name for name in names or (moving or list(curves))[:9] if name in curves]
    if not shown:
        raise ValueError("records: expected at least one line with 'step' and a number")
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(0.5 + 3.8 * columns, 0.4 + 2.5 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, shown, strict=False):
        for (line, points), color in zip(curves[name].items(), DOMAIN_COLORS, strict=False):
            axes.plot(*np.array(sorted(points)).T, color=color, lw=1.6, label=line)
        values = np.array([value for points in curves[name].values() for _, value in points])
        if values.min() > 0 and values.max() > 30 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(axis="y")
        if len(curves[name]) > 1:
            axes.legend()
    for axes in figure.axes[len(shown) :]:
        axes.remove()
    return figure


@styled
def results_summary(results: Results, view: View) -> Figure:
    """The run on one page: both scatter plots, the gate, assignments, reconstruction, dimensions."""
    plain = to_plain(results)
    levels = plain["sparsity"]["levels"]
    figure = Figure(figsize=(16, 9), layout="constrained")
    panels = figure.subplots(2, 3)
    draw_scatter(panels[0, 0], view, view.domains, domain_colors(view.domains))
    panels[0, 0].set_title("Held-out rows by domain")
    draw_legend(panels[0, 0], domain_colors(view.domains), columns=2)
    draw_scatter(panels[0, 1], view, view.experts, expert_colors(levels))
    panels[0, 1].set_title("The same rows by expert")
    draw_legend(panels[0, 1], expert_legend(levels), columns=4)
    gate, assignment = plain["gate"], plain["assignment"]
    draw_gate(panels[0, 2], np.array(gate["mean_by_domain"]), gate["domains"], levels)
    draw_assignment(panels[1, 0], np.array(assignment["shares"]), assignment["domains"], levels)
    models = [plain["reconstruction"]["overall"], *plain["reconstruction"]["baselines"]]
    draw_fvu(panels[1, 1], models, "pca_space")
    panels[1, 1].set_title("FVU in PCA space (lower is better)")
    draw_dimensions(panels[1, 2], plain["dimensions"])
    return figure


def run_figures(results: Results, view: View, metrics: Iterable[Mapping[str, Any]] = ()) -> dict[str, Figure]:
    """All figures of a run by name, in the order of the report; training curves only from given metrics."""
    plain = to_plain(results)
    levels = plain["sparsity"]["levels"]
    assignment, gate = plain["assignment"], plain["gate"]
    figures = {
        "results_summary": results_summary(results, view),
        "embedding_2d": embedding_2d(view, levels),
        "embedding_3d": embedding_3d(view, levels),
        "gate_heatmap": gate_heatmap(np.array(gate["mean_by_domain"]), gate["domains"], levels),
        "assignment_histogram": assignment_histogram_plot(
            np.array(assignment["shares"]), np.array(assignment["counts"]), assignment["domains"], levels
        ),
        **({} if plain["agreement"] is None else {"agreement": agreement_plot(plain["agreement"])}),
        "reconstruction": reconstruction_bars(plain["reconstruction"], levels),
        "dimension_analysis": dimension_analysis(
            plain["pca"]["cumulative_variance"], plain["pca"]["num_components"], plain["dimensions"]
        ),
        "dimension_and_sparsity": dimension_and_sparsity(plain["dimensions"], plain["sparsity"]),
        "expert_distances": expert_distance_matrix(plain["experts"]["distances"], levels),
    }
    records = list(metrics)
    return figures | ({"training_curves": training_curves(records)} if records else {})


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line cut short by a crash is left out."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number}: expected JSON, got {line[:40]!r}") from error
    return records


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
