"""What a report says in words: the answer, key numbers, captions and caveats, all derived from `Results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratcore.analysis.results import Results
from stratcore.analysis.schema import to_plain

SLIGHT, STRONG, LEVEL = 0.1, 0.4, 0.05

CAPTIONS = {
    "results_summary": (
        "The run on one page",
        "Compare the two scatter plots first: where a domain and an expert cover the same region, the expert "
        "has found the domain. Then the gate: if all its rows look alike, it ignores the domain.",
    ),
    "embedding_2d": (
        "Two leading components",
        "The same points twice. Experts are colored by their sparsity level, dark for few active atoms, "
        "bright for many. Overlap in two dimensions does not prove overlap in the full space.",
    ),
    "embedding_3d": (
        "Three leading components",
        "A third axis separates what the first two fold together. Above by domain, below by expert, each "
        "from two sides.",
    ),
    "gate_heatmap": (
        "Gate by domain",
        "Each row is a domain and sums to one. A gate that learned nothing shows the even value everywhere.",
    ),
    "assignment_histogram": (
        "Assignments by domain",
        "Where the held-out rows really go. Bars of one pattern mean that experts do not follow domains.",
    ),
    "agreement": (
        "Do experts follow domains?",
        "An interval right of zero, and a ring right of its gray bar, is more than chance. If the second line falls "
        "to zero, text length alone explains the agreement. Plain clusterings show how easy the domains are to find.",
    ),
    "reconstruction": (
        "Reconstruction",
        "Shorter is better. The blue bar has to be shorter than the gray ones for the mixture to earn its "
        "keep.",
    ),
    "dimension_analysis": (
        "Variance and dimension",
        "Left: how fast the variance is used up, and how much the reduction keeps. Right: strata of unequal "
        "dimension are what a stratified space would show; equal bars speak against it.",
    ),
    "dimension_and_sparsity": (
        "Dimension and sparsity by stratum",
        "If sparsity measures complexity, strata of higher dimension also lie further right in the second "
        "panel. Points on the gray line are what an untrained gate gives.",
    ),
    "expert_distances": (
        "Distances between experts",
        "Zero is the same subspace, or the same atoms. Values near those of unrelated dictionaries, printed "
        "below each panel, mean that experts share nothing.",
    ),
    "training_curves": (
        "Training",
        "Losses should have flattened; a gap between train and held-out lines is overfitting.",
    ),
}


def plain_answer(results: Results) -> list[str]:
    """The answer in plain words, a sentence a question, derived from the numbers.

    Rules: experts follow domains if the whole interval of ARI and of NMI lies above the upper quantile of
    shuffled labels; slightly where the smaller of the two is below `SLIGHT`, strongly from `STRONG` on. A
    baseline is beaten, or beats the model, if the paired interval of the difference in FVU excludes zero.
    """
    r = to_plain(results)
    return [
        *_agreement_sentences(r["agreement"]),
        _reconstruction_sentence(r["reconstruction"]),
        _gate_sentence(r),
    ]


def key_numbers(results: Results) -> list[tuple[str, str, str]]:
    """Name, value and comparison of the numbers to see first."""
    r = to_plain(results)
    score, gate = r["reconstruction"]["overall"], r["gate"]["statistics"]
    dead, dead_chosen = (_mean(r["experts"][name]) for name in ("dead_atoms", "dead_atoms_chosen"))
    peers = [
        f"{peer['name']} {format_number(peer['pca_space']['fvu'])}"
        for peer in r["reconstruction"]["baselines"]
        if peer["role"] in ("pca_equal_dimension", "topk_equal_flops")
    ]
    fraction, nats = gate["mutual_information_fraction"], gate["mutual_information_nats"]
    return [
        ("FVU, PCA space", format_number(score["pca_space"]["fvu"]), "; ".join(peers) or "held-out rows"),
        (
            "R², original space",
            format_number(score["original_space"]["r2"]),
            f"the PCA keeps {format_percent(r['pca']['variance_share_test'])}",
        ),
        *_agreement_numbers(r["agreement"]),
        (
            "Gate information",
            format_percent(fraction),
            f"{format_number(nats)} of log {gate['num_experts']} nats",
        ),
        (
            "Experts in use",
            f"{gate['effective_experts']:.1f}",
            f"of {gate['num_experts']}; load CV {format_number(gate['load_cv'])}",
        ),
        (
            "Dead atoms",
            format_percent(dead),
            f"on rows that an expert is run on; {format_percent(dead_chosen)} on rows that it is chosen for",
        ),
        ("Training", f"{r['training']['seconds']:.0f} s", f"{format_count(r['training']['steps'])} steps"),
    ]


def caveats(results: Results) -> list[tuple[str, str]]:
    """What the numbers do not say: a word and a sentence each."""
    r = to_plain(results)
    seeds = r["seeds"]
    if len(seeds) == 1:
        seed_caveat = (
            f"Trained once, from seed {seeds[0]}. The intervals cover which rows were held out, not how "
            "another seed would train; run several before a claim."
        )
    else:
        seed_caveat = f"Trained from {len(seeds)} seeds ({', '.join(map(str, seeds))})."
    agreement = r["agreement"]
    if agreement is None or agreement["within_length"] is None:
        length_caveat = (
            "Token counts or domains are unknown, so what comes from text length is not told apart."
        )
    else:
        length_caveat = (
            "Domains differ in text length and embeddings encode length. Agreement among texts of like "
            "length controls for it; what remains may still be style or source rather than topic."
        )
    return [
        ("Seeds", seed_caveat),
        ("Length", length_caveat),
        (
            "Chance",
            "NMI of unrelated labels is above zero in a finite sample. Read what is counted against the shuffled "
            "floor, which is drawn with the same margins; intervals are of what remains with chance taken off, "
            "for the population the rows come from.",
        ),
        (
            "Strata",
            f"{r['dimensions']['strata']} Dimensions are linear: they bound a curved stratum's own from "
            "above, and a few directions of large variance lower them.",
        ),
        (
            "Reduction",
            "FVU in PCA space leaves out what the reduction dropped; FVU in the original space has it.",
        ),
    ]


def format_number(value: float | None) -> str:
    """Three decimals, or n/a."""
    return "n/a" if value is None else f"{value:.3f}"


def format_decimal(value: float | None) -> str:
    """One decimal, or n/a."""
    return "n/a" if value is None else f"{value:.1f}"


def format_percent(value: float | None) -> str:
    """A share in percent, or n/a."""
    return "n/a" if value is None else f"{100 * value:.1f}\u00a0%"


def format_count(value: float | None) -> str:
    """A whole number with separators, or n/a."""
    return "n/a" if value is None else f"{value:,.0f}"


def format_interval(estimate: Mapping[str, Any] | None) -> str:
    """Value and interval of a plain `Score`, `Estimate` (its corrected value) or `Difference`, or n/a."""
    if estimate is None:
        return "n/a"
    value, low, high = ("fvu", "fvu_low", "fvu_high") if "fvu" in estimate else ("value", "low", "high")
    value = "corrected" if "corrected" in estimate else value
    return (
        f"{format_number(estimate[value])} [{format_number(estimate[low])}, {format_number(estimate[high])}]"
    )


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def beyond_chance(estimate: Mapping[str, Any]) -> bool:
    """Whether a plain `Estimate` says that there is something: by its test and by its interval."""
    return estimate["p_value"] <= LEVEL and estimate["low"] > 0


def _agreement_numbers(agreement: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    if agreement is None:
        return []
    return [
        (
            f"{key.upper()} with domains",
            format_number(agreement["overall"][key]["corrected"]),
            f"{format_number(agreement['overall'][key]['value'])} as counted; shuffled: up to "
            f"{format_number(agreement['overall'][key]['floor_high'])}",
        )
        for key in ("ari", "nmi")
    ]


def _agreement_sentences(agreement: Mapping[str, Any] | None) -> list[str]:
    if agreement is None:
        return ["The rows carry no domains, so nothing is said of experts and domains."]
    overall, within = agreement["overall"], agreement["within_length"]
    sentences = [_overall_sentence(overall)]
    if within is not None:
        sentences.append(_length_sentence(overall["nmi"], within["nmi"]))
    if agreement["baselines"]:
        sentences.append(_clustering_sentence(overall["nmi"], agreement["baselines"]))
    return sentences


def _overall_sentence(overall: Mapping[str, Any]) -> str:
    ari, nmi = overall["ari"], overall["nmi"]
    numbers = (
        f"ARI {ari['corrected']:.2f} (95 % interval {ari['low']:.2f} to {ari['high']:.2f}) and NMI "
        f"{nmi['corrected']:.2f} ({nmi['low']:.2f} to {nmi['high']:.2f}) with chance taken off; as counted "
        f"{ari['value']:.2f} and {nmi['value']:.2f}, where shuffled labels reach {ari['floor_high']:.2f} and "
        f"{nmi['floor_high']:.2f}"
    )
    if not (beyond_chance(ari) and beyond_chance(nmi)):
        return f"There is no clear evidence that experts follow domains: {numbers}."
    smaller = min(ari["corrected"], nmi["corrected"])
    degree = "slightly" if smaller < SLIGHT else "moderately" if smaller < STRONG else "strongly"
    return f"Experts follow domains {degree}: {numbers}."


def _length_sentence(overall: Mapping[str, Any], inside: Mapping[str, Any]) -> str:
    here = f"{inside['corrected']:.2f} ({inside['low']:.2f} to {inside['high']:.2f})"
    if not beyond_chance(inside):
        return f"Text length may explain it: among texts of like length NMI is {here}."
    return (
        f"Text length alone does not explain it: among texts of like length NMI is {here}, of all rows "
        f"{overall['corrected']:.2f}."
    )


def _clustering_sentence(nmi: Mapping[str, Any], baselines: list[Mapping[str, Any]]) -> str:
    best = max(baselines, key=lambda baseline: baseline["nmi"])
    if best["nmi"] > nmi["high"]:
        verdict = "recovers the domains better than the experts do: they can be found without the mixture"
    elif best["nmi"] < nmi["low"]:
        verdict = "recovers the domains less well than the experts do"
    else:
        verdict = "recovers the domains about as well as the experts do"
    method = f"{best['name']}, {best['num_clusters']} clusters, NMI {best['nmi']:.2f}"
    return f"Plain clustering of the same embeddings ({method}) {verdict}."


def _reconstruction_sentence(reconstruction: Mapping[str, Any]) -> str:
    words = {
        "pca_equal_dimension": "PCA of equal dimension",
        "topk_equal_flops": "one TopK dictionary of equal active FLOPs",
        "topk_equal_parameters": "one TopK dictionary of equal parameters",
    }
    verdicts = []
    for baseline in reconstruction["baselines"]:
        if baseline["role"] in words:
            gap = baseline["difference"]
            verdict = (
                "better than" if gap["low"] > 0 else "worse than" if gap["high"] < 0 else "not separable from"
            )
            fvu = format_percent(baseline["pca_space"]["fvu"])
            verdicts.append(f"{verdict} {words[baseline['role']]} ({fvu})")
    fvu = format_percent(reconstruction["overall"]["pca_space"]["fvu"])
    comparison = ": " + ", ".join(verdicts) if verdicts else ""
    return f"The mixture leaves {fvu} of the held-out variance in PCA space unexplained{comparison}."


def _gate_sentence(r: Mapping[str, Any]) -> str:
    gate, sparsity = r["gate"]["statistics"], r["sparsity"]
    values = [stratum["weighted_sparsity"] for stratum in sparsity["per_stratum"]]
    return (
        f"The gate holds {gate['mutual_information_nats']:.2f} nats about its input "
        f"({format_percent(gate['mutual_information_fraction'])} of the most possible) and uses "
        f"{gate['effective_experts']:.1f} of {gate['num_experts']} experts; over the strata, weighted "
        f"sparsity runs from {min(values):.1f} to {max(values):.1f} active atoms (even gate: "
        f"{sparsity['uniform_gate']:.1f})."
    )
