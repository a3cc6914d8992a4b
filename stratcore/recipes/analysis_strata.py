"""The strata of an analysis: their number, their rows, how well they stand. Legend: N rows, D features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stratcore import analysis
from stratcore.recipes.analysis import StrataOptions
from stratcore.recipes.analysis_results import agreement_results
from stratcore.recipes.analysis_rows import AnalyzedRows

_STABILITY_ROWS = 1500


@dataclass(frozen=True, eq=False)
class FoundStrata:
    """Label of each row, [N] text ("S0", ... or "noise"), and what results.json says of them."""

    labels: np.ndarray
    result: dict[str, Any]
    notes: tuple[str, ...]


def find_strata(
    rows: AnalyzedRows, options: StrataOptions, seed: int, resampling: analysis.Resampling
) -> FoundStrata:
    """Choose the number of strata where none is given, find them, and compare them with the domains."""
    components = min(options.components, rows.x.shape[1], len(rows.x) - 1)
    reduced_ND = rows.x
    notes = []
    if components < rows.x.shape[1]:
        pca = analysis.fit_pca(rows.x, components)
        reduced_ND = pca.transform(rows.x)
        share = 100 * float(pca.explained_variance_ratio_.sum())
        notes.append(
            f"Strata are looked for in {components} principal components ({share:.0f} % of the variance)."
        )
    drawn = _drawn(len(rows.x), options.most, seed)
    if len(drawn) < len(rows.x):
        notes.append(f"Strata are fitted to {len(drawn):,} rows drawn at random; the others are assigned.")
    sample_ND = reduced_ND[drawn]
    number, choice = options.number, None
    if number is None and options.method != "dbscan":
        candidates = [count for count in options.candidates if count <= len(sample_ND) // 20] or [1]
        choice = analysis.choose_num_strata(
            sample_ND, options.method, candidates, criterion=options.criterion, seed=seed
        )
        number = choice.chosen
    fit = analysis.fit_strata(sample_ND, options.method, number, seed=seed)
    label_N = fit.labels if len(drawn) == len(rows.x) else fit.predict(reduced_ND)
    names_N = np.where(label_N < 0, "noise", np.char.add("S", label_N.astype(str)))
    return FoundStrata(
        names_N, _result(rows, reduced_ND, fit, choice, names_N, seed, resampling), tuple(notes)
    )


def _result(
    rows: AnalyzedRows,
    reduced_ND: np.ndarray,
    fit: analysis.StrataFit,
    choice: analysis.StrataChoice | None,
    names_N: np.ndarray,
    seed: int,
    resampling: analysis.Resampling,
) -> dict[str, Any]:
    drawn = _drawn(len(reduced_ND), 5000, seed)
    scores = analysis.separation_scores(
        reduced_ND[drawn], names_N[drawn] if fit.num_strata else fit.labels[drawn]
    )
    stable = None
    if fit.num_strata > 1:
        few = _drawn(len(reduced_ND), _STABILITY_ROWS, seed)
        number = None if fit.method == "dbscan" else fit.num_strata
        stable = analysis.stability(reduced_ND[few], fit.method, number, seeds=5, pairs=5).subsamples
    agreement, within = agreement_results(names_N, rows.domain, rows.tokens, resampling)
    strata = [str(name) for name in np.unique(names_N)]
    counts: list[list[int]] = []
    domains: list[str] = []
    if rows.domain is not None:
        table, domain_names, _ = analysis.contingency(rows.domain, names_N)
        counts, domains = table.tolist(), [str(name) for name in domain_names]
    return {
        "method": fit.method.replace("_", " "),
        "num_strata": fit.num_strata,
        "criterion": None if choice is None else CRITERIA[choice.criterion],
        "answer": None if choice is None else choice.answer,
        "choice": [] if choice is None else [
            {
                "num_strata": each.num_strata,
                "value": each.score.value,
                "low": each.score.low,
                "high": each.score.high,
            }
            for each in choice.candidates
        ],
        "silhouette": scores.silhouette,
        "davies_bouldin": scores.davies_bouldin,
        "calinski_harabasz": scores.calinski_harabasz,
        "stability": None if stable is None else stable.value,
        "stability_low": None if stable is None else stable.low,
        "stability_high": None if stable is None else stable.high,
        "domains": domains,
        "counts": counts,
        "strata": strata,
        "agreement": agreement,
        "within_length": within,
    }  # fmt: skip


CRITERIA = {"heldout": "held-out likelihood, nats a row", "stability": "stability above chance"}


def _drawn(count: int, most: int, seed: int) -> np.ndarray:
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
