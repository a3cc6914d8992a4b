"""The parts of an analysis's results.json that need what is known about the rows. Legend: N rows, E experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratcore import analysis
from stratcore.analysis.neighbors import distinct_rows
from stratcore.recipes.analysis_rows import LEAST_PERPLEXITIES, AnalyzedRows


def data_result(rows: AnalyzedRows) -> dict[str, Any]:
    """What the rows are."""
    domains = []
    if rows.domain is not None:
        for name in np.unique(rows.domain):
            own = rows.domain == name
            tokens = None if rows.tokens is None else float(rows.tokens[own].mean())
            domains.append({"name": str(name), "num_rows": int(own.sum()), "mean_tokens": tokens})
    return {
        "name": rows.name,
        "kind": rows.kind,
        "num_rows": len(rows.x),
        "num_features": rows.num_features,
        "num_analyzed_features": rows.x.shape[1],
        "variance_kept": rows.variance_kept,
        "num_duplicates": len(rows.x) - len(distinct_rows(rows.x)[0]),
        "domains": domains,
        "notes": list(rows.notes),
    }


def agreement_results(
    labels: np.ndarray,
    domain: np.ndarray | None,
    tokens: np.ndarray | None,
    resampling: analysis.Resampling,
) -> tuple[analysis.Agreement | None, analysis.BinnedAgreement | None]:
    """Agreement of labels with domains, over all rows and among texts of like length; None where unknown."""
    if domain is None or len(np.unique(labels)) < 2:
        return None, None
    within = None if tokens is None else analysis.within_bins(labels, domain, tokens, 5, resampling)
    return analysis.agreement(labels, domain, resampling), within


def experts_result(
    rows: AnalyzedRows, strata: np.ndarray, resampling: analysis.Resampling
) -> dict[str, Any] | None:
    """Gate, sparsity and agreement of a trained mixture on its held-out rows; None without one."""
    experts = rows.experts
    if experts is None:
        return None
    held = experts.held_out
    gate_NE, chosen_N, strata_N = experts.gate[held], experts.chosen[held], strata[held]
    domain_N = None if rows.domain is None else rows.domain[held]
    tokens_N = None if rows.tokens is None else rows.tokens[held]
    levels = list(experts.levels)
    groups = np.full(len(gate_NE), "all rows") if domain_N is None else domain_N
    by_domain, names = analysis.mean_gate(gate_NE, groups)
    agreement, within = agreement_results(chosen_N, domain_N, tokens_N, resampling)
    with_strata = None
    if min(len(np.unique(chosen_N)), len(np.unique(strata_N))) > 1:
        with_strata = analysis.agreement(chosen_N, strata_N, resampling)
    return {
        "checkpoint": experts.checkpoint,
        "num_held_out": int(held.sum()),
        "levels": levels,
        "uniform_gate": float(np.mean(levels)),
        "mean_sparsity": float((gate_NE @ levels).mean()),
        "gate": analysis.gate_statistics(gate_NE),
        "gate_domains": names,
        "gate_by_domain": by_domain,
        "sparsity_by_domain": []
        if domain_N is None
        else analysis.weighted_sparsity(gate_NE, levels, domain_N),
        "sparsity_by_stratum": analysis.weighted_sparsity(gate_NE, levels, strata_N),
        "agreement_with_domains": agreement,
        "agreement_within_length": within,
        "agreement_with_strata": with_strata,
        "distances": analysis.expert_distances(
            experts.atoms, rank=min(experts.levels), weights=experts.energy
        ),
    }


def perplexity_result(
    rows: AnalyzedRows,
    source: str | None,
    strata: np.ndarray,
    local_dimension: np.ndarray,
    resampling: analysis.Resampling,
) -> dict[str, Any] | None:
    """Perplexity of the texts against domains, strata, experts and local dimension; None where it is unknown.

    Args:
        rows: with perplexities, NaN where a text could not be scored.
        source: where they come from.
        strata: label of each row, [N].
        local_dimension: of each row, [N], NaN where unknown.
        resampling: draws of the intervals.
    """
    if rows.perplexity is None or source is None:
        return None
    known = np.isfinite(rows.perplexity) & np.isfinite(local_dimension)
    if known.sum() < LEAST_PERPLEXITIES:  # neighbors at equal distances
        return None
    value_N = rows.perplexity[known]
    tokens_N = None if rows.tokens is None else rows.tokens[known]

    def by(labels: np.ndarray | None) -> analysis.Association | None:
        if labels is None or len(np.unique(labels[known])) < 2:
            return None
        return analysis.group_association(value_N, labels[known], control=tokens_N, resampling=resampling)

    given = None
    if tokens_N is not None:
        given = analysis.rank_correlation(
            value_N, local_dimension[known], control=tokens_N, resampling=resampling
        )
    return {
        "source": source,
        "num_rows": int(known.sum()),
        "median": float(np.median(value_N)),
        "by_domain": by(rows.domain),
        "by_stratum": by(strata),
        "by_expert": by(None if rows.experts is None else _expert_names(rows)),
        "local_dimension": analysis.rank_correlation(value_N, local_dimension[known], resampling=resampling),
        "local_dimension_given_length": given,
    }


def _expert_names(rows: AnalyzedRows) -> np.ndarray:
    assert rows.experts is not None
    return np.array([f"E{expert} (k={rows.experts.levels[expert]})" for expert in rows.experts.chosen])
