"""Statistics, figures and the report of a run: NumPy in, NumPy or plain Python out.

Names are loaded on first use: `import stratcore.analysis` costs nothing, and matplotlib is imported only for
`plots` and `report`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "association": ("Association", "GroupMedian", "group_association", "rank_correlation"),
    "calibrated_dim": ("CalibratedDimension",),
    "clustering": ("ClusterBaseline", "cluster_baselines", "cluster_labels"),
    "collapse": (
        "EXIT_COLLAPSED",
        "EXIT_HEALTHY",
        "CollapseDetector",
        "CollapseMeasures",
        "CollapseOptions",
        "CollapseVerdict",
        "collapse_exit_code",
    ),
    "contingency_tables": (
        "adjusted_rand_index",
        "concentration",
        "contingency",
        "mutual_information",
        "normalized_mutual_information",
        "purity",
    ),
    "dimensions": ("DimensionRow", "dimension_table"),
    "domain_agreement": (
        "Agreement",
        "BinnedAgreement",
        "Estimate",
        "agreement",
        "quantile_bins",
        "within_bins",
    ),
    "experts": (
        "AtomMatching",
        "ExpertDistances",
        "RandomDistances",
        "atom_matching_distance",
        "chordal_distance",
        "dead_atom_share",
        "expert_basis",
        "expert_distances",
        "geodesic_distance",
        "match_atoms",
        "mutual_coherence",
        "principal_angles",
        "random_chordal_distance",
        "random_distances",
        "welch_bound",
    ),
    "fiber_bundle": (
        "FiberBundleTest",
        "ManifoldTest",
        "NeighborhoodTest",
        "RejectionCount",
        "corrected_p_values",
        "fixed_split_p_values",
        "neighborhood_test",
        "reference_test",
        "source_rule",
        "spacings_test",
    ),
    "gating": (
        "GateStatistics",
        "Histogram",
        "SparsityComparison",
        "SparsityDifference",
        "StratumSparsity",
        "assignment_histogram",
        "gate_statistics",
        "mean_gate",
        "sample_entropy",
        "sparsity_against_untrained",
        "weighted_sparsity",
    ),
    "geometric_constants": ("GEOMETRIC_CONSTANTS", "GeometricConstant", "geometric_constant"),
    "geometry": (
        "Baseline",
        "ClassCV",
        "GeometryScan",
        "GradientStarvation",
        "Measurement",
        "ModuleGradient",
        "ScanCurves",
        "describe_scan",
        "gaussian_dim_from_cv",
        "gradient_starvation",
        "scan_geometry",
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
    "plots": ("View", "read_metrics", "run_figures", "save_figures", "scan_figures"),
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
    "resampling": ("Interval", "Resampling", "mean_interval"),
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
    "strata.domains": (
        "DomainInformation",
        "DomainTable",
        "StratumDomains",
        "domain_information",
        "domain_table",
    ),
    "strata.fit": ("DBSCANOptions", "StrataFit", "fit_strata", "k_distance"),
    "strata.k_subspaces": ("KSubspaces",),
    "strata.mixture_of_ppca": ("MixtureOfPPCA",),
    "strata.selection": ("CandidateScore", "StrataChoice", "choose_num_strata", "reference_rows"),
    "strata.separation": (
        "SeparationScores",
        "calinski_harabasz",
        "davies_bouldin",
        "separation_scores",
        "silhouette",
    ),
    "strata.spherical_kmeans": ("SphericalKMeans",),
    "strata.stability": ("Stability", "stability"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMES])
