"""Statistics, figures and the report of a run: NumPy in, NumPy or plain Python out.

Names are loaded on first use: `import stratcore.analysis` costs nothing, and matplotlib is imported only for
`plots` and `report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "calibrated_dim": ("CalibratedDimension",),
    "clustering": (
        "Agreement",
        "BinnedAgreement",
        "ClusterBaseline",
        "Estimate",
        "adjusted_rand_index",
        "agreement",
        "cluster_baselines",
        "cluster_labels",
        "concentration",
        "contingency",
        "normalized_mutual_information",
        "purity",
        "quantile_bins",
        "silhouette",
        "within_bins",
    ),
    "dimensions": ("DimensionRow", "dimension_table"),
    "experts": (
        "ExpertDistances",
        "atom_matching_distance",
        "chordal_distance",
        "dead_atom_share",
        "expert_basis",
        "expert_distances",
        "geodesic_distance",
        "mutual_coherence",
        "principal_angles",
        "random_chordal_distance",
    ),
    "gating": (
        "GateStatistics",
        "Histogram",
        "StratumSparsity",
        "assignment_histogram",
        "gate_statistics",
        "mean_gate",
        "sample_entropy",
        "weighted_sparsity",
    ),
    "intrinsic_dim": (
        "NoiseFloorDimension",
        "PCADimension",
        "StratumDimension",
        "covariance_eigenvalues",
        "effective_rank",
        "participation_ratio",
        "stratum_dimensions",
    ),
    "local_dim": ("DANCo", "LevinaBickel", "LocalPCA", "SimplexCVDimension", "TwoNN"),
    "neighbors": ("Neighbors", "nearest_neighbors"),
    "pca": ("PCASummary", "fit_pca", "pca_summary", "variance_share"),
    "plots": ("View", "read_metrics", "run_figures", "save_figures"),
    "reconstruction": (
        "Difference",
        "Score",
        "fvu",
        "fvu_difference",
        "group_scores",
        "pca_reconstruction",
        "score_reconstruction",
    ),
    "report": ("plain_answer", "write_report"),
    "resampling": ("Resampling",),
    "results": ("SCHEMA_VERSION", "Results", "to_plain", "validate_results", "write_results"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMES])
