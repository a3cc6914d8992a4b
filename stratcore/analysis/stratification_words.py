"""What the report of an analysis says in words, all derived from `AnalysisResults`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratcore.analysis.dimensions import ALL_ROWS
from stratcore.analysis.narrative import beyond_chance, format_count, format_number, format_percent
from stratcore.analysis.schema import to_plain
from stratcore.analysis.stratification_results import AnalysisResults

CALIBRATED = ", calibrated"

ANALYSIS_CAPTIONS = {
    "views_2d": (
        "The rows, in two components",
        "The same points once for each grouping. Overlap in two dimensions does not prove overlap in the full "
        "space.",
    ),
    "views_3d": ("The rows, in three components", "A third axis separates what the first two fold together."),
    "dimension_forest": (
        "Dimension of each stratum",
        "Intervals of one estimator that lie apart between strata are what a stratified space would show. "
        "Estimators disagree where noise, curvature or a boundary misleads them.",
    ),
    "p_value_map": (
        "Where neighborhoods change dimension",
        "Dark points have small p-values, gray ones cannot be tested. Left a rise of the dimension with the radius, "
        "right any change. Both tests have the size they name where the data are flat.",
    ),
    "p_value_ranks": (
        "All p-values, sorted",
        "On data without structure the curve follows the gray line. Below it there are more small p-values "
        "than chance gives; above it the test is conservative here.",
    ),
    "growth_curves": (
        "Growth of neighborhoods",
        "The slope is the local dimension. Shown are the points of the smallest p-values and, for comparison, "
        "points drawn at random.",
    ),
    "strata_choice": (
        "How many strata?",
        "A flat curve means that the data do not say; the smallest number within one standard error of the "
        "best is taken.",
    ),
    "gate_heatmap": (
        "Gate by domain",
        "Each row is a domain and sums to one. A gate that learned nothing shows the even value everywhere.",
    ),
    "perplexity": (
        "Perplexity by group",
        "Median perplexity of the texts with its 95 % interval. Groups that differ here need not differ in "
        "dimension: see the text above.",
    ),
}


def analysis_answer(results: AnalysisResults) -> list[str]:
    """The answer in plain words: singular points, dimension, strata, experts, perplexity."""
    r = to_plain(results)
    sentences = [
        _singular_sentence(r),
        _dimension_sentence(r["dimensions"]),
        _strata_sentence(r["strata"]),
        _strata_domain_sentence(r["strata"]),
        _experts_sentence(r["experts"]),
        _perplexity_sentence(r["perplexity"]),
    ]
    return [sentence for sentence in sentences if sentence]


def analysis_numbers(results: AnalysisResults) -> list[tuple[str, str, str]]:
    """Name, value and comparison of the numbers to see first."""
    r = to_plain(results)
    tiles = []
    for test in r["tests"]:
        share = test["num_rejected"] / test["num_tested"] if test["num_tested"] else None
        after = f"of {format_count(test['num_tested'])} points"
        if test["num_bh"] is not None:
            after += f"; {format_count(test['num_bh'])} by Benjamini-Hochberg"
        tiles.append((f"Rejected: {test['name']}", format_percent(share), after))
    for row in r["dimensions"]:
        if row["stratum"] == ALL_ROWS and row["value"] is not None and _leads(row):
            tiles.append((f"Dimension, {row['estimator']}", f"{row['value']:.1f}", _range(row)))
    strata = r["strata"]
    tiles.append(
        (
            "Strata",
            str(strata["num_strata"]),
            f"silhouette {format_number(strata['silhouette'])}; stability {format_number(strata['stability'])}",
        )
    )
    return tiles


def analysis_caveats(results: AnalysisResults) -> list[tuple[str, str]]:
    """What the numbers do not say: a word and a sentence each."""
    r = to_plain(results)
    words = [
        (
            "Size",
            "The spacings test is exact on flat manifolds of uniform density in their own metric. Chord distances "
            "on curved manifolds, strong gradients of density and boundaries move its two-sided form; the "
            "one-sided form, which asks for a rise of dimension, is hardly moved.",
        ),
        (
            "Scale",
            f"Neighborhoods reach from neighbor {r['tests'][0]['window'][0]} to {r['tests'][0]['window'][1]}. "
            "What happens below or beyond is not seen."
            if r["tests"]
            else "No test was asked for.",
        ),
        (
            "Dimension",
            "Every estimator falls short in high dimension. The calibrated ones are corrected by simulated "
            "manifolds without boundary; a hollow dot in the figure says that the data do not look like one.",
        ),
        (
            "Strata",
            "A clustering always finds clusters. Read their number against its interval. Agreement with domains is "
            "given with chance taken off, as a larger sample would have it.",
        ),
    ]
    if r["perplexity"] is not None:
        words.append(
            (
                "Perplexity",
                "It is that of one language model, and it falls with the length of a text. The comparison at equal "
                "length removes that part; it does not make the rest a cause.",
            )
        )
    return [*words, *(("Rows", note) for note in r["data"]["notes"])]


def _leads(row: Mapping[str, Any]) -> bool:
    return row["estimator"].endswith(CALIBRATED) or row["estimator"].startswith("PCA")


def _range(row: Mapping[str, Any]) -> str:
    if row["low"] is None or row["high"] is None:
        return row["warning"] or ""
    interval = f"95 % interval {row['low']:.1f} to {row['high']:.1f}"
    return f"{interval}; {row['warning']}" if row["warning"] else interval


def _singular_sentence(r: Mapping[str, Any]) -> str:
    own = {test["null"]: test for test in r["tests"] if test["procedure"] == "spacings"}
    if not own:
        return ""
    bundle, manifold = own.get("fiber bundle"), own.get("manifold")
    count = format_count(next(iter(own.values()))["num_tested"])
    parts = []
    if bundle is not None:
        parts.append(
            f"at {format_count(bundle['num_holm'])} the dimension rises with the radius (fiber bundle rejected; "
            f"family-wise error {bundle['level']:g})"
        )
    if manifold is not None:
        parts.append(f"at {format_count(manifold['num_holm'])} it changes at all (manifold rejected)")
    found = any(test["num_holm"] for test in own.values())
    lead = "There are singular points" if found else "There is no evidence of singular points"
    sentence = f"{lead}: of {count} points, {' and '.join(parts)}."
    source = next((test for test in r["tests"] if test["procedure"] == "source"), None)
    if source is not None and source["num_tested"]:
        share = format_percent(source["num_rejected"] / source["num_tested"])
        sentence += (
            f" The rule of the source documents rejects {share} of the same points; on smooth manifolds it "
            "rejects half of the points at least, mostly all."
        )
    return sentence


def _dimension_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    calibrated = [row for row in rows if row["estimator"].endswith(CALIBRATED) and row["value"] is not None]
    whole = [row for row in calibrated if row["stratum"] == ALL_ROWS]
    strata = [row for row in calibrated if row["stratum"] != ALL_ROWS]
    if not whole:
        return ""
    row = whole[0]
    sentence = f"The rows have about {row['value']:.1f} dimensions ({row['estimator']}, {_range(row)})."
    same = [other for other in strata if other["estimator"] == row["estimator"]]
    if len(same) > 1:
        least, most = min(same, key=_value), max(same, key=_value)
        apart = least["high"] is not None and most["low"] is not None and least["high"] < most["low"]
        sentence += (
            f" The strata run from {least['value']:.1f} ({least['stratum']}) to {most['value']:.1f} "
            f"({most['stratum']}), " + ("with intervals apart." if apart else "with intervals that overlap.")
        )
    return sentence


def _value(row: Mapping[str, Any]) -> float:
    return float(row["value"])


def _strata_sentence(strata: Mapping[str, Any]) -> str:
    number, method = strata["num_strata"], strata["method"]
    if strata["criterion"] is None:
        sentence = f"{number} strata were asked for ({method})"
    elif number == 1:
        return f"One stratum describes the rows as well as more do ({method}, by {strata['criterion']})."
    else:
        sentence = f"{number} strata are chosen by {strata['criterion']} ({method})"
    if strata["stability"] is not None:
        sentence += (
            f"; another start or sample gives the same ones with ARI {strata['stability']:.2f} "
            f"[{format_number(strata['stability_low'])}, {format_number(strata['stability_high'])}]"
        )
    sentence += "."
    if strata["criterion"] is not None and strata["criterion"].startswith("held-out likelihood"):
        sentence += (
            " The likelihood is that of Gaussians: rows of heavy tails can read as a second stratum, a wide one "
            "about the center of a narrow one."
        )
    return sentence


def _strata_domain_sentence(strata: Mapping[str, Any]) -> str:
    if strata["agreement"] is None:
        return ""
    return _agreement("Strata and domains", strata["agreement"], strata["within_length"])


def _agreement(what: str, agreement: Mapping[str, Any], within: Mapping[str, Any] | None) -> str:
    nmi = agreement["nmi"]
    verdict = "agree beyond chance" if beyond_chance(nmi) else "do not agree beyond chance"
    sentence = (
        f"{what} {verdict}: NMI {nmi['corrected']:.2f} [{nmi['low']:.2f}, {nmi['high']:.2f}] with chance taken "
        f"off ({nmi['value']:.2f} as counted, shuffled up to {nmi['floor_high']:.2f})"
    )
    if within is not None:
        inside = within["nmi"]
        ends = f"[{inside['low']:.2f}, {inside['high']:.2f}]"
        sentence += f"; among texts of like length {inside['corrected']:.2f} {ends}"
    return sentence + "."


def _experts_sentence(experts: Mapping[str, Any] | None) -> str:
    if experts is None:
        return ""
    sparsity = (
        f"Weighted sparsity is {experts['mean_sparsity']:.1f} active atoms on held-out rows; an untrained gate gives "
        f"{experts['uniform_gate']:.1f}."
    )
    if experts["agreement_with_domains"] is None:
        return sparsity
    agreement = _agreement(
        "Experts and domains", experts["agreement_with_domains"], experts["agreement_within_length"]
    )
    return f"{agreement} {sparsity}"


def _perplexity_sentence(perplexity: Mapping[str, Any] | None) -> str:
    if perplexity is None:
        return ""
    parts = []
    for key, what in (("by_domain", "domains"), ("by_stratum", "strata"), ("by_expert", "experts")):
        found = perplexity[key]
        if found is not None:
            share = found["explained"]
            parts.append(
                f"{what} {format_percent(share['corrected'])} [{format_percent(share['low'])}, "
                f"{format_percent(share['high'])}]"
            )
    given = perplexity["local_dimension_given_length"] or perplexity["local_dimension"]
    condition = " at equal length" if perplexity["local_dimension_given_length"] else ""
    correlation = (
        f"its rank correlation with local dimension{condition} is {given['value']:.2f} "
        f"[{given['low']:.2f}, {given['high']:.2f}] (p = {given['p_value']:.2g})"
    )
    if not parts:
        return f"Perplexity and dimension: {correlation}."
    return (
        f"Of the variance of the texts' perplexity ranks, with chance taken off, {', '.join(parts)} hold; "
        f"{correlation}."
    )
