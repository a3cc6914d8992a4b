"""The schema of an analysis: what results.json of `python -m stratcore.analyze` holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from stratcore.analysis.association import Association
from stratcore.analysis.domain_agreement import Agreement, BinnedAgreement, Estimate
from stratcore.analysis.experts import ExpertDistances
from stratcore.analysis.gating import GateStatistics, StratumSparsity
from stratcore.analysis.schema import check_schema, to_plain, write_json

ANALYSIS_SCHEMA_VERSION = 2


class AnalyzedDomain(TypedDict):
    """One domain; tokens are None where they are unknown."""

    name: str
    num_rows: int
    mean_tokens: float | None


class AnalyzedData(TypedDict):
    """The rows. `variance_kept` is None where nothing was reduced; `notes` tell what was left out and why."""

    name: str
    kind: str
    num_rows: int
    num_features: int
    num_analyzed_features: int
    variance_kept: float | None
    num_duplicates: int
    domains: list[AnalyzedDomain]
    notes: list[str]


class StratumRejections(TypedDict):
    """Counts of one stratum; corrections are over all points."""

    stratum: str
    num_tested: int
    num_rejected: int
    num_below_level: int | None
    num_holm: int | None
    num_bh: int | None


class TestResult(TypedDict):
    """One test over all points.

    `procedure` is ours (`spacings`), the published one (`reference`) or that of the source documents (`source`);
    `null` what is rejected. Points without a p-value (ties, too few neighbors below the reach) are `num_refused`.
    `num_rejected` is by the procedure's own rule: after Holm for ours, without a correction over points for the
    others, which have no p-values of points and None in those places.
    """

    name: str
    procedure: Literal["spacings", "reference", "source"]
    null: Literal["manifold", "fiber bundle"]
    window: list[int]
    level: float
    num_tested: int
    num_refused: int
    num_rejected: int
    num_below_level: int | None
    num_holm: int | None
    num_bh: int | None
    smallest_p: float | None
    seconds: float
    per_stratum: list[StratumRejections]


class SingularPoint(TypedDict):
    """A point whose neighborhood changes dimension, by our manifold test; most certain first."""

    row: int
    name: str
    stratum: str
    p_value: float
    p_holm: float
    rank: int
    radius: float
    dimension_inside: float
    dimension_outside: float


class DimensionEstimate(TypedDict):
    """A dimension of one stratum by one estimator; None where it has no answer, with the reason as warning."""

    stratum: str
    num_rows: int
    estimator: str
    value: float | None
    low: float | None
    high: float | None
    warning: str | None


class NumberScore(TypedDict):
    """The criterion at one number of strata."""

    num_strata: int
    value: float | None
    low: float | None
    high: float | None


class StrataResult(TypedDict):
    """The division into strata. `criterion` and `answer` are None where the number was given."""

    method: str
    num_strata: int
    criterion: str | None
    answer: str | None
    choice: list[NumberScore]
    silhouette: float | None
    davies_bouldin: float | None
    calinski_harabasz: float | None
    stability: float | None
    stability_low: float | None
    stability_high: float | None
    domains: list[str]
    counts: list[list[int]]
    strata: list[str]
    agreement: Agreement | None
    within_length: BinnedAgreement | None


class ExpertsResult(TypedDict):
    """A trained mixture: gate, sparsity and agreement on held-out rows; distances between dictionaries."""

    checkpoint: str
    num_held_out: int
    levels: list[int]
    uniform_gate: float
    mean_sparsity: float
    gate: GateStatistics
    gate_domains: list[str]
    gate_by_domain: list[list[float]]
    sparsity_by_domain: list[StratumSparsity]
    sparsity_by_stratum: list[StratumSparsity]
    agreement_with_domains: Agreement | None
    agreement_within_length: BinnedAgreement | None
    agreement_with_strata: Agreement | None
    distances: ExpertDistances


class PerplexityResult(TypedDict):
    """Perplexity of the texts against groups and local dimension; None where there is nothing to compare."""

    source: str
    num_rows: int
    median: float
    by_domain: Association | None
    by_stratum: Association | None
    by_expert: Association | None
    local_dimension: Estimate
    local_dimension_given_length: Estimate | None


class AnalysisResults(TypedDict):
    """results.json of an analysis."""

    schema_version: int
    recipe: str
    command: str
    environment: dict[str, Any]
    configuration: dict[str, Any]
    seeds: list[int]
    data: AnalyzedData
    tests: list[TestResult]
    singular_points: list[SingularPoint]
    dimensions: list[DimensionEstimate]
    strata: StrataResult
    geometry: dict[str, Any]
    geometry_words: list[str]
    experts: ExpertsResult | None
    perplexity: PerplexityResult | None
    seconds: dict[str, float]


def write_analysis(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Check results against `AnalysisResults` and write them whole.

    Raises:
        ValueError: names the first missing key or ill-typed value by its path.
    """
    plain = to_plain(results)
    check_schema(plain, AnalysisResults)
    return write_json(Path(path), plain)


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the source documents' workflows put into `<name>_summary.json`, beside what they mean.

    Their rejection rate is that of their own rule; ours stands beside it.
    """
    plain = to_plain(results)
    data, tests = plain["data"], plain["tests"]
    pca = [row for row in plain["dimensions"] if row["estimator"].startswith("PCA")]
    return {
        "workflow": plain["recipe"],
        "rows": data["num_rows"],
        "domains": len(data["domains"]),
        "features": data["num_features"],
        "analyzed_features": data["num_analyzed_features"],
        "variance_kept": data["variance_kept"],
        "rejection_rates": {
            test["name"]: test["num_rejected"] / test["num_tested"] if test["num_tested"] else None
            for test in tests
        },
        "intrinsic_dimension": {
            row["estimator"]: row["value"] for row in plain["dimensions"] if row["stratum"] == "all rows"
        },
        "stratum_dimensions": [row["value"] for row in pca if row["stratum"] != "all rows"],
        "strata": plain["strata"]["num_strata"],
        "silhouette": plain["strata"]["silhouette"],
        "experts": None if plain["experts"] is None else len(plain["experts"]["levels"]),
        "seconds": sum(plain["seconds"].values()),
    }
