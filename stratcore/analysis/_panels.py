"""Panels: what a figure draws on one axes. Nothing here imports matplotlib; the axes come from `plots`.

Domains have categories' colors (Okabe and Ito's, safe for color-blind readers); experts have an order, their
sparsity, and so a sequential scale (viridis): dark is sparse, bright is dense. Legend: G domains, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

INK, MUTED, ACCENT, CONTRAST = "#222222", "#9AA3AD", "#0072B2", "#D55E00"
DOMAIN_COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#7A5230",
    "#4D4D4D",
    "#B8A800",
    "#7E57C2",
)
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]) / 255


@dataclass(frozen=True, kw_only=True)
class View:
    """Held-out rows as the scatter plots see them.

    Args:
        points: leading principal components, [N, 3].
        domains: domain of each row, [N].
        experts: expert of each row, [N], integers.
        variance_shares: share of the variance that each of the three components holds, [3].
    """

    points: np.ndarray
    domains: np.ndarray
    experts: np.ndarray
    variance_shares: Sequence[float]


def draw_scatter(axes: Any, view: View, labels: np.ndarray, colors: Mapping[Any, Any]) -> None:
    """Rows at their first two components, colored by label."""
    axes.scatter(
        *rarefied(view.points[:, :2]).T, s=9, c=rarefied(colors_of(labels, colors)), lw=0, alpha=0.75
    )
    for index, setter in enumerate((axes.set_xlabel, axes.set_ylabel)):
        setter(f"PC {index + 1} ({100 * view.variance_shares[index]:.1f} % of variance)")


def draw_legend(axes: Any, colors: Mapping[str, Any], columns: int = 3) -> None:
    """Name the colors below the axes, or right of 3-D axes."""
    solid = hasattr(axes, "zaxis")
    for name, color in colors.items():
        axes.plot(*[[]] * (3 if solid else 2), "o", color=color, ms=7, label=name)
    anchor = (1.05, 0.5) if solid else (0.5, -0.13)
    axes.legend(
        loc="center left" if solid else "upper center",
        bbox_to_anchor=anchor,
        ncols=1 if solid else columns,
        handletextpad=0.2,
    )


def draw_gate(axes: Any, gate_GE: np.ndarray, domains: Sequence[str], levels: Sequence[int]) -> None:
    """Heat map of the mean gate probability of each expert (column) in each domain (row)."""
    names = [name.replace(" ", "\n") for name in expert_legend(levels)]
    draw_matrix(axes, gate_GE, domains, names, "Blues")
    axes.set(title="Mean gate probability", xlabel=f"expert (an even gate: {1 / len(levels):.2f})")


def draw_matrix(
    axes: Any, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], colormap: str
) -> None:
    """Heat map with its numbers written in."""
    high = np.nanmax(matrix, initial=1e-9)
    axes.imshow(matrix, cmap=colormap, vmin=0, vmax=1.25 * high, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            ink = "white" if value > 0.66 * high else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_assignment(axes: Any, shares_GE: np.ndarray, names: Sequence[str], levels: Sequence[int]) -> None:
    """One stacked bar a domain: the share of its rows that each expert got."""
    left_G = np.zeros(len(shares_GE))
    y = np.arange(len(shares_GE))
    for expert, color in expert_colors(levels).items():
        share_G = 100 * shares_GE[:, expert]
        axes.barh(y, share_G, left=left_G, color=color, height=0.72, edgecolor="white", lw=0.8)
        for row in np.flatnonzero(share_G >= 7):
            ink = "white" if np.dot(color, (0.21, 0.72, 0.07)) < 0.5 else INK
            label = f"{share_G[row]:.0f}"
            axes.text(
                left_G[row] + share_G[row] / 2, row, label, ha="center", va="center", color=ink, fontsize=9
            )
        left_G += share_G
    axes.set(yticks=y, yticklabels=names, xlim=(0, 100), xlabel="share of the domain's held-out rows, %")
    axes.set_title("Which expert each domain's rows go to")
    axes.invert_yaxis()


def draw_dimensions(axes: Any, dimensions: Mapping[str, Any]) -> None:
    """PCA dimension (bar) and effective rank (diamond) of each stratum and of all rows."""
    strata = [stratum for stratum in dimensions["per_stratum"] if stratum["pca_dimension"] is not None]
    strata = [*strata, dimensions["overall"]]
    y = np.arange(len(strata))
    colors = [ACCENT] * (len(strata) - 1) + [MUTED]
    axes.barh(y, [stratum["pca_dimension"] for stratum in strata], color=colors, height=0.6)
    axes.plot([stratum["effective_rank"] for stratum in strata], y, "D", color=CONTRAST, ms=5, ls="none")
    for row, stratum in enumerate(strata):
        axes.text(
            stratum["pca_dimension"] - 0.3,
            row,
            stratum["pca_dimension"],
            ha="right",
            va="center",
            color="white",
        )
    labels = [f"{stratum['stratum']}  (n = {stratum['num_rows']})" for stratum in strata]
    axes.set(
        yticks=y,
        yticklabels=labels,
        xlabel=f"at {100 * dimensions['variance']:.0f} % variance (bar), effective rank (◆)",
    )
    axes.set_title("Dimension of each stratum")
    axes.grid(axis="x")
    axes.invert_yaxis()


def draw_sparsity(axes: Any, sparsity: Mapping[str, Any]) -> None:
    """Weighted sparsity of each stratum as a departure from the even gate."""
    strata = sparsity["per_stratum"]
    y = np.arange(len(strata))
    uniform = sparsity["uniform_gate"]
    values = [stratum["weighted_sparsity"] for stratum in strata]
    axes.axvline(uniform, color=MUTED, lw=1.2)
    axes.hlines(y, uniform, values, color=ACCENT, lw=2)
    axes.plot(values, y, "o", color=ACCENT, ms=7)
    for row, value in enumerate(values):
        side = 1 if value >= uniform else -1
        axes.annotate(
            f"{value:.1f}", (value, row), (8 * side, 0), textcoords="offset points",
            ha="left" if side > 0 else "right", va="center",
        )  # fmt: skip
    reach = 1.35 * max(abs(value - uniform) for value in values) + 1
    axes.set(
        yticks=y,
        yticklabels=[f"{s['stratum']}  (n = {s['num_rows']})" for s in strata],
        xlim=(uniform - reach, uniform + reach),
    )
    axes.set(xlabel=f"active atoms, gate-weighted (gray line: even gate, {uniform:.1f})")
    axes.set(title="Weighted sparsity of each stratum", ylim=(len(strata) - 0.5, -0.5))


def draw_fvu(axes: Any, models: Sequence[Mapping[str, Any]], space: str) -> None:
    """FVU of the model (first) and its baselines in one space."""
    colors = [ACCENT] + [MUTED] * (len(models) - 1)
    draw_bars(axes, [model["name"] for model in models], [model[space] for model in models], colors)


def draw_bars(
    axes: Any, labels: Sequence[str], scores: Sequence[Mapping[str, Any]], colors: Sequence[Any]
) -> None:
    """FVU bars with intervals and numbers."""
    y = np.arange(len(scores))
    axes.barh(y, [score["fvu"] for score in scores], color=colors, height=0.62)
    for row, score in enumerate(scores):
        axes.plot([score["fvu_low"], score["fvu_high"]], [row, row], color=INK, lw=1.4)
        axes.annotate(
            f"{score['fvu']:.3f}", (score["fvu_high"], row), (5, 0), textcoords="offset points", va="center"
        )
    axes.set(yticks=y, yticklabels=labels, xlim=(0, 1.25 * max(score["fvu_high"] for score in scores)))
    axes.set_xlabel("unexplained share of held-out variance")
    axes.invert_yaxis()


def draw_interval(axes: Any, y: float, interval: tuple[float, float, float], color: str) -> None:
    """A value with its interval on row y."""
    value, low, high = interval
    axes.plot([low, high], [y, y], color=color, lw=2)
    axes.plot(value, y, "o", color=color, ms=7)
    axes.annotate(f"{value:.2f}", (high, y), (7, 0), textcoords="offset points", va="center")


def domain_colors(domains: Sequence[str] | np.ndarray) -> dict[str, Any]:
    """Color of each domain, by sorted name."""
    names = [str(name) for name in np.unique(domains)]
    return {name: DOMAIN_COLORS[index % len(DOMAIN_COLORS)] for index, name in enumerate(names)}


def expert_colors(levels: Sequence[int]) -> dict[int, Any]:
    """Color of each expert, by the rank of its sparsity level."""
    rank = np.argsort(np.argsort(levels, kind="stable"))
    place = 0.87 * rank / max(len(levels) - 1, 1)
    stops = np.linspace(0, 1, len(VIRIDIS))
    channels = [np.interp(place, stops, channel) for channel in VIRIDIS.T]
    return {expert: tuple(color) for expert, color in enumerate(zip(*channels, strict=True))}


def expert_legend(levels: Sequence[int]) -> dict[str, Any]:
    """Color of each expert by the name that figures give it: number and sparsity level."""
    return {f"E{expert} k={levels[expert]}": color for expert, color in expert_colors(levels).items()}


def colors_of(labels: np.ndarray, colors: Mapping[Any, Any]) -> np.ndarray:
    """Color of each row, [N]."""
    kind = type(next(iter(colors)))
    return np.array([colors[kind(label)] for label in labels])


def rarefied(rows: np.ndarray, most: int = 4000) -> np.ndarray:
    """At most `most` rows in a fixed random order, so that no group is painted over by the next."""
    return np.asarray(rows)[np.random.default_rng(0).permutation(len(rows))[:most]]
