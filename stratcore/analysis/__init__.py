"""Statistics, figures and the report of a run: NumPy in, NumPy or plain Python out.

Names are loaded on first use: `import stratcore.analysis` costs nothing, and matplotlib is imported only for
`plots` and `report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "association": ("Association", "GroupMedian", "group_association", "rank_correlation"),
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
    "report": ("plain_answer", "write_page", "write_report"),
    "resampling": ("Resampling",),
    "results": ("SCHEMA_VERSION", "Results", "validate_results", "write_results"),
    "schema": ("check_schema", "to_plain", "write_json"),
    "sparse_coding": (
        "KSVD",
        "LassoResult",
        "OnlineDictionaryLearning",
        "alista",
        "alista_weight",
        "batch_orthogonal_matching_pursuit",
        "fista",
        "ista",
        "iterative_hard_thresholding",
        "least_squares_codes",
        "lipschitz_constant",
        "orthogonal_matching_pursuit",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMES])
