"""The schema of results.json, its check, and its writing.

`Results` is what `report.write_report` reads and what `write_results` writes. Scores and estimates are the
dataclasses of the analysis modules; they may stand in the dictionary as they are, `to_plain` turns them into
JSON. "held-out" rows are rows that neither the model, the PCA nor a baseline was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from stratcore.analysis.clustering import ClusterBaseline
from stratcore.analysis.domain_agreement import Agreement, BinnedAgreement
from stratcore.analysis.experts import ExpertDistances
from stratcore.analysis.gating import GateStatistics, StratumSparsity
from stratcore.analysis.intrinsic_dim import StratumDimension
from stratcore.analysis.pca import PCASummary
from stratcore.analysis.reconstruction import Difference, Score
from stratcore.analysis.schema import check_schema, to_plain, write_json

SCHEMA_VERSION = 2


class DomainResult(TypedDict):
    """One domain of the data; tokens are None where they are unknown."""

    name: str
    num_train: int
    num_test: int
    mean_tokens: float | None


class DataResult(TypedDict):
    """The rows that were used. `name` is what a reader would call the data set."""

    name: str
    num_train: int
    num_test: int
    num_features: int
    domains: list[DomainResult]


class ModelScore(TypedDict):
    """A model or baseline on all held-out rows. Parameters and FLOPs are None where they mean nothing."""

    name: str
    parameters: int | None
    active_flops: float | None
    mean_active_atoms: float | None
    pca_space: Score
    original_space: Score


class BaselineScore(ModelScore):
    """A baseline: its FVU minus the model's in PCA space, paired by row, and its role in the answer."""

    role: Literal["pca_equal_dimension", "topk_equal_flops", "topk_equal_parameters", "other"]
    difference: Difference


class ExpertScore(TypedDict):
    """One expert on the held-out rows that were assigned to it; scores are None where there are none."""

    expert: int
    sparsity: int
    pca_space: Score | None
    original_space: Score | None


class ReconstructionResult(TypedDict):
    """Held-out reconstruction. `overall` is the mixture as it is used."""

    overall: ModelScore
    per_expert: list[ExpertScore]
    baselines: list[BaselineScore]


class GateResult(TypedDict):
    """Statistics of the gate on held-out rows, and its mean by domain: [domain][expert]."""

    statistics: GateStatistics
    domains: list[str]
    mean_by_domain: list[list[float]]


class AssignmentResult(TypedDict):
    """Held-out rows by domain and expert, [domain][expert]; a row without domains counts as domain "all rows".

    `rule` says in words how a row gets its expert; `purity` is by expert, `concentration` by domain.
    """

    rule: str
    domains: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    purity: list[float]
    concentration: list[float]


class AgreementResult(TypedDict):
    """Experts against domains on held-out rows, with 95 % intervals.

    `within_length` is None where token counts are unknown; the whole is None where domains are.
    """

    overall: Agreement
    within_length: BinnedAgreement | None
    baselines: list[ClusterBaseline]


class DimensionsResult(TypedDict):
    """PCA dimensions at `variance`, of all rows and of each stratum. `strata` says what a stratum is."""

    strata: str
    variance: float
    overall: StratumDimension
    per_stratum: list[StratumDimension]


class SparsityResult(TypedDict):
    """Weighted sparsity sum_k p_k s_k by stratum; `uniform_gate` is what p_k = 1/E has."""

    levels: list[int]
    uniform_gate: float
    mean: float
    per_stratum: list[StratumSparsity]


class ExpertsResult(TypedDict):
    """Expert dictionaries: distances, mutual coherence and share of atoms unused on the training rows."""

    num_atoms: int
    distances: ExpertDistances
    coherence: list[float]
    dead_atoms: list[float]
    dead_atoms_chosen: list[float]


class TrainingResult(TypedDict):
    """How the training went."""

    steps: int
    seconds: float
    final_losses: dict[str, float]


class Results(TypedDict):
    """results.json. `environment` maps names such as "torch" and "device" to words."""

    schema_version: int
    recipe: str
    command: str
    environment: dict[str, Any]
    configuration: dict[str, Any]
    seeds: list[int]
    data: DataResult
    pca: PCASummary
    reconstruction: ReconstructionResult
    gate: GateResult
    assignment: AssignmentResult
    agreement: AgreementResult | None
    dimensions: DimensionsResult
    sparsity: SparsityResult
    experts: ExpertsResult
    training: TrainingResult


def validate_results(results: Mapping[str, Any]) -> None:
    """Check results against `Results`: every key is there and every container has its kind.

    Further keys are allowed. A float may be None, where it was not finite.

    Raises:
        ValueError: names the first missing key or ill-typed value by its path, e.g. `gate.statistics.load`.
    """
    plain = to_plain(results)
    check_schema(plain, Results)
    _check_experts(plain)
    if plain["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"results: schema_version: expected {SCHEMA_VERSION}, got {plain['schema_version']}")


def write_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Validate results and write them as JSON; a reader never sees half a file.

    Args:
        path: the file, in an existing folder.
        results: see `Results`.
    """
    validate_results(results)
    return write_json(Path(path), results)


def _check_experts(plain: Mapping[str, Any]) -> None:
    """Every list by expert has one entry an expert, and experts without rows keep theirs."""
    num_experts = len(plain["sparsity"]["levels"])
    by_expert = {
        "gate.statistics.load": plain["gate"]["statistics"]["load"],
        "gate.mean_by_domain[0]": plain["gate"]["mean_by_domain"][0],
        "assignment.counts[0]": plain["assignment"]["counts"][0],
        "assignment.purity": plain["assignment"]["purity"],
        "reconstruction.per_expert": plain["reconstruction"]["per_expert"],
        "experts.coherence": plain["experts"]["coherence"],
        "experts.dead_atoms": plain["experts"]["dead_atoms"],
        "experts.dead_atoms_chosen": plain["experts"]["dead_atoms_chosen"],
        "experts.distances.chordal": plain["experts"]["distances"]["chordal"],
    }
    for path, entries in by_expert.items():
        if len(entries) != num_experts:
            raise ValueError(
                f"results: {path}: expected {num_experts} entries (sparsity.levels), got {len(entries)}"
            )
