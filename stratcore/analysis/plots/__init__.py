"""Figures: `runs` those of a training run, `geometry` those of a scan, `comparison` those of arms over seeds.

Functions take arrays or typed results and return a `matplotlib.figure.Figure`; `save_figures` writes them. Only
this folder and `report` import matplotlib.
"""

from __future__ import annotations

from stratcore.analysis._panels import View
from stratcore.analysis.plots._style import STYLE, png_bytes, save_figures, styled
from stratcore.analysis.plots.comparison import difference_intervals, mean_curves
from stratcore.analysis.plots.geometry import (
    norms_and_cosines,
    scan_figures,
    scan_overview,
    simplex_cv_plot,
    spectrum_plot,
)
from stratcore.analysis.plots.runs import (
    agreement_plot,
    assignment_histogram_plot,
    dimension_analysis,
    dimension_and_sparsity,
    embedding_2d,
    embedding_3d,
    expert_distance_matrix,
    gate_heatmap,
    read_metrics,
    reconstruction_bars,
    results_summary,
    run_figures,
    training_curves,
)

__all__ = [
    "STYLE",
    "View",
    "agreement_plot",
    "assignment_histogram_plot",
    "difference_intervals",
    "dimension_analysis",
    "dimension_and_sparsity",
    "embedding_2d",
    "embedding_3d",
    "expert_distance_matrix",
    "gate_heatmap",
    "mean_curves",
    "norms_and_cosines",
    "png_bytes",
    "read_metrics",
    "reconstruction_bars",
    "results_summary",
    "run_figures",
    "save_figures",
    "scan_figures",
    "scan_overview",
    "simplex_cv_plot",
    "spectrum_plot",
    "styled",
    "training_curves",
]
