"""What the trials of `compare_classifiers` say: means, paired differences, tables, sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from stratcore.analysis.paired_differences import PairedDifference, paired_difference
from stratcore.recipes.compare_classifiers import CompareClassifiersRun
from stratcore.recipes.trials import SeedMean, Table, holm, seed_mean

POINTS = 100.0


def tuned(run: CompareClassifiersRun, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials of each arm with the learning rate of the best mean validation accuracy, then the least loss."""
    chosen = []
    for arm in run.arms():
        by_rate = {
            rate: [row for row in trials if (row["arm"], row["learning_rate"]) == (arm, rate)]
            for rate in run.learning_rates
        }
        chosen += by_rate[max(by_rate, key=lambda rate: _quality(by_rate[rate]))]
    return chosen


def _quality(trials: list[dict[str, Any]]) -> tuple[float, float]:
    accuracy, loss = (np.mean([row[f"validation_{key}"] for row in trials]) for key in ("accuracy", "nll"))
    return float(accuracy), -float(loss)


def summarize(run: CompareClassifiersRun, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm: accuracy in points with its interval, by domain, calibration, size, routing; of tuned trials."""
    return list(_summary(run, trials))


def _summary(run: CompareClassifiersRun, trials: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for arm, name in run.arms().items():
        own = [row for row in trials if row["arm"] == arm]
        domains = own[0]["accuracy_by_domain"]
        routing = [row["routing"] for row in own if row["routing"]]
        yield {
            "arm": arm,
            "name": name,
            "learning_rate": own[0]["learning_rate"],
            "accuracy": seed_mean([POINTS * row["accuracy"] for row in own]),
            "accuracy_by_domain": {
                domain: seed_mean([POINTS * row["accuracy_by_domain"][domain] for row in own])
                for domain in domains
            },
            "nll": seed_mean([row["nll"] for row in own]),
            "calibration_error": seed_mean([row["calibration_error"] for row in own]),
            "parameters": own[0]["parameters"],
            "added_parameters": own[0]["added_parameters"],
            "fit_seconds": float(np.mean([row["fit_seconds"] for row in own])),
            "routing": {key: seed_mean([row[key] for row in routing]) for key in routing[0]}
            if routing
            else None,
        }


def compare(run: CompareClassifiersRun, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of each arm to its controls in points, paired by seed, with Holm's correction over all.

    `non_inferior`: the interval lies above minus the margin.
    """
    accuracy = {(row["arm"], row["seed"]): POINTS * row["accuracy"] for row in trials}
    pairs = [(arm, control) for arm in run.arms() for control in run.controls(arm)]
    found = [
        paired_difference([accuracy[arm, seed] - accuracy[control, seed] for seed in run.seeds])
        for arm, control in pairs
    ]
    adjusted = holm([difference.p_value for difference in found])
    return [
        {
            "arm": arm,
            "control": control,
            "difference": asdict(difference),
            "p_holm": p,
            "non_inferior": difference.low is not None and difference.low > -run.margin,
        }
        for (arm, control), difference, p in zip(pairs, found, adjusted, strict=True)
    ]


def tables(
    run: CompareClassifiersRun, summary: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> list[Table]:
    """Accuracies, differences, and what the routers do."""
    routed = [row for row in summary if row["routing"]]
    return [_accuracies(summary), _differences(run, comparisons), *([_routing(routed)] if routed else [])]


def _accuracies(summary: list[dict[str, Any]]) -> Table:
    domains = list(summary[0]["accuracy_by_domain"])
    return Table(
        title="Held-out accuracy, points",
        head=[
            "arm",
            "all",
            *domains,
            "negative log-likelihood",
            "calibration error",
            "learning rate",
            "parameters added",
            "fit, s",
        ],
        rows=[
            [
                row["name"],
                points(row["accuracy"]),
                *(f"{row['accuracy_by_domain'][domain].value:.2f}" for domain in domains),
                f"{row['nll'].value:.3f}",
                f"{row['calibration_error'].value:.3f}",
                f"{row['learning_rate']:g}",
                f"{row['added_parameters']:,}",
                f"{row['fit_seconds']:.1f}",
            ]
            for row in summary
        ],
        note="Means over seeds with 95 % t intervals. Every arm starts from a fresh copy of the encoder and computes "
        "what the plain one does at its start.",
        own=1,
    )


def _differences(run: CompareClassifiersRun, comparisons: list[dict[str, Any]]) -> Table:
    names, controls = run.arms(), run.names()
    return Table(
        title="Differences, points",
        head=["arm", "against", "difference", "p, sign flips", "p (Holm)", f"no worse by {run.margin:g}"],
        rows=[
            [
                names[row["arm"]],
                controls[row["control"]],
                _difference(PairedDifference(**row["difference"])),
                f"{row['difference']['p_value']:.4f}",
                f"{row['p_holm']:.4f}",
                "yes" if row["non_inferior"] else "not shown",
            ]
            for row in comparisons
        ],
        note=f"Paired by seed, {len(run.seeds)} seeds; BCa bootstrap intervals of 95 %; the least p value that "
        f"{len(run.seeds)} seeds can give is {2 / 2 ** len(run.seeds):.4f} before the correction.",
    )


def _routing(routed: list[dict[str, Any]]) -> Table:
    return Table(
        title="What the routers do",
        head=["arm", "NMI with domain", "of shuffled routes, at most", "NMI with label", "load variation",
              "of choices", "entropy"],
        rows=[
            [
                row["name"],
                *(f"{row['routing'][key].value:.3f}" for key in
                  ("nmi_domain", "nmi_domain_floor", "nmi_label", "load_variation",
                   "load_variation_of_choices", "entropy")),
            ]
            for row in routed
        ],
        note="On test rows; a text's route is the stratum with the largest mean probability over its tokens. Load "
        "variation: standard deviation over mean of the probability that each stratum gets; of choices: of the "
        "tokens that prefer it. Entropy of the router's probabilities, as a share of the largest.",
    )  # fmt: skip


def captions(run: CompareClassifiersRun) -> dict[str, tuple[str, str]]:
    """Title and text of the figures."""
    seeds = len(run.seeds)
    return {
        "differences": (
            "Differences of held-out accuracy",
            f"One line a pair: accuracy of the arm less that of its control in points, mean over {seeds} seeds that "
            "both share (dot), with the BCa bootstrap interval of 95 % (bar). Right of 0 the arm is better; a bar "
            f"wholly right of the gray band's left edge, -{run.margin:g}, says that it is not worse by the margin. "
            "Bars are not corrected for the number of pairs; the p values of the table are.",
        ),
        "curves": (
            "Validation accuracy in training",
            f"Accuracy on validation rows in points against optimizer steps: each of {seeds} seeds faint, their mean "
            "bold, a color an arm, at the learning rate that was chosen for the arm. Curves that still rise at the "
            "right end say that training stopped early.",
        ),
    }


def answer(
    run: CompareClassifiersRun, summary: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> list[str]:
    """Which variant beats which control beyond chance."""
    names, controls = run.arms(), run.names()
    plain = summary[0]["accuracy"]
    sentences = [f"Plain encoder: {plain.value:.2f} points of held-out accuracy over {len(run.seeds)} seeds."]
    for variant in run.variants:
        own = [row for row in comparisons if row["arm"] == variant]
        better = [row for row in own if row["p_holm"] < 0.05 and row["difference"]["value"] > 0]
        worse = [row for row in own if row["p_holm"] < 0.05 and row["difference"]["value"] < 0]
        to_plain = PairedDifference(**own[0]["difference"])
        sentences.append(
            f"{names[variant].capitalize()}: {_difference(to_plain)} points against plain; beyond chance (Holm, 5 %) "
            f"it beats {_list(controls, better)} and loses to {_list(controls, worse)}."
        )
    return sentences


def _list(names: dict[str, str], rows: list[dict[str, Any]]) -> str:
    return ", ".join(names[row["control"]] for row in rows) or "none"


def points(mean: SeedMean) -> str:
    """Mean with its interval, two digits."""
    return f"{mean.value:.2f}" if mean.low is None else f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _difference(found: PairedDifference) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.2f}"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


CAVEATS = [
    ("Seeds", "A seed draws the split, the start of every new weight and the order of rows; intervals hold all "
     "three. They say nothing of other encoders or other texts."),
    ("Tuning", "Every arm chooses among the same learning rates by its mean validation accuracy over all seeds; "
     "nothing else was tuned."),
    ("Routing", "That routes go with domains says that the router can tell them apart, as the encoder's own states "
     "can; it is no evidence that routing helps."),
]  # fmt: skip
