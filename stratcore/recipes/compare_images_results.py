"""What the trials of `compare_images` say: means, paired differences, tables, sentences."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stratcore.analysis.paired_differences import paired_difference
from stratcore.recipes.compare_images import ARMS, WHOLE, CompareImagesRun
from stratcore.recipes.comparison_figures import curves, differences
from stratcore.recipes.trials import CaptionedFigure, SeedMean, Table, holm, seed_mean

Rows = list[dict[str, Any]]
POINTS = 100.0
SHARES = ("accuracy", "geometric_accuracy", "neighbor_accuracy")
NUMBERS = ("nll", "calibration_error")
CAVEATS = (
    ("One schedule", "Every arm has the settings of the base run, which were chosen for the whole model."),
    ("Two views", "Arms with two views see half as many images a step, each twice, without mixing them; the mastery "
     "queue is compared with two views and InfoNCE alone."),
    ("Strangers", "Images of quite another kind are easily told from test images, those of a kindred one are not."),
)  # fmt: skip


def summarize(run: CompareImagesRun, trials: Rows) -> Rows:
    """A row an arm: means over seeds with intervals."""
    found = []
    for arm in run.arms:
        own = _of(trials, arm)
        shares = {
            name: seed_mean([POINTS * row[name] for row in own])
            for name in SHARES
            if own[0].get(name) is not None
        }
        found.append(
            {
                "arm": arm,
                "name": ARMS[arm].name,
                **shares,
                **{name: seed_mean([row[name] for row in own]) for name in NUMBERS},
                "auroc": {
                    source: {
                        kind: seed_mean([row["auroc"][source][kind] for row in own])
                        for kind in own[0]["auroc"][source]
                    }
                    for source in run.strangers
                },
                "parameters": own[0]["parameters"],
                "fit_seconds": sum(row["fit_seconds"] for row in own) / len(own),
                "images_per_second": sum(row["images_per_second"] for row in own) / len(own),
            }
        )
    return found


def compare(run: CompareImagesRun, trials: Rows) -> Rows:
    """Paired differences of test accuracy between every arm and its control, in points."""
    pairs = run.pairs()
    found = [
        paired_difference(
            [
                POINTS * (a["accuracy"] - b["accuracy"])
                for a, b in zip(_of(trials, arm), _of(trials, control), strict=True)
            ]
        )
        for arm, control in pairs
    ]
    adjusted = holm([each.p_value for each in found])
    return [
        {
            "arm": arm,
            "control": control,
            "difference": asdict(each),
            "p_holm": p,
            "non_inferior": each.low is not None and each.low > -run.margin,
        }
        for (arm, control), each, p in zip(pairs, found, adjusted, strict=True)
    ]


def _of(trials: Rows, arm: str) -> Rows:
    return sorted((row for row in trials if row["arm"] == arm), key=lambda row: row["seed"])


def tables(run: CompareImagesRun, summary: Rows, comparisons: Rows) -> list[Table]:
    """Accuracies, differences, strangers."""
    found = [_accuracies(run, summary)]
    if comparisons:
        found.append(_differences(run, comparisons))
    if run.strangers:
        found.append(_strangers(run, summary))
    return found


def _accuracies(run: CompareImagesRun, summary: Rows) -> Table:
    return Table(
        title="Test images",
        head=["arm", "accuracy", "geometric stream alone", f"{run.neighbors} nearest neighbors",
              "negative log-likelihood", "calibration error", "parameters", "fit, s", "images a second"],
        rows=[
            [
                row["name"],
                *(_mean(row.get(name)) for name in SHARES),
                *(f"{row[name].value:.4f}" for name in NUMBERS),
                f"{row['parameters']:,}",
                f"{row['fit_seconds']:.1f}",
                f"{row['images_per_second']:,.0f}",
            ]
            for row in summary
        ],
        note=f"Means over {len(run.seeds)} seeds with 95 % t intervals, accuracies in points. Nearest neighbors: by "
        f"the cosine of embeddings, among {run.references:,} training images at most.",
        own=1,
    )  # fmt: skip


def _differences(run: CompareImagesRun, comparisons: Rows) -> Table:
    return Table(
        title="Differences of accuracy, points",
        head=["arm", "against", "difference", "p, sign flips", "p (Holm)", f"no worse by {run.margin:g}"],
        rows=[
            [
                ARMS[row["arm"]].name,
                ARMS[row["control"]].name,
                _difference(row["difference"]),
                f"{row['difference']['p_value']:.4f}",
                f"{row['p_holm']:.4f}",
                "yes" if row["non_inferior"] else "not shown",
            ]
            for row in comparisons
        ],
        note=f"Paired by seed; BCa bootstrap intervals of 95 %; the least p value that {len(run.seeds)} seeds can "
        f"give is {2 / 2 ** len(run.seeds):.4f} before the correction.",
    )


def _strangers(run: CompareImagesRun, summary: Rows) -> Table:
    columns = [(source, kind) for source in run.strangers for kind in ("softmax", "energy", "neighbor")]
    return Table(
        title="Strangers told from test images, area under the curve",
        head=["arm", *(f"{source}, {kind}" for source, kind in columns)],
        rows=[
            [row["name"], *(f"{row['auroc'][source][kind].value:.4f}" for source, kind in columns)]
            for row in summary
        ],
        note="By the largest probability, by logsumexp of the logits, and by the cosine to the nearest training "
        f"embedding but {run.neighbors - 1}. One half is chance.",
    )


def figures(run: CompareImagesRun, trials: Rows, comparisons: Rows) -> dict[str, CaptionedFigure]:
    """Differences with intervals, and validation curves."""
    found = {
        "curves": curves(
            {
                ARMS[arm].name: [
                    [(point["step"], POINTS * point["accuracy"]) for point in row["curve"]]
                    for row in _of(trials, arm)
                ]
                for arm in run.arms
            },
            title="Validation accuracy in training",
            y_label="validation accuracy in points",
            seeds=len(run.seeds),
            better="rise",
        )
    }
    if comparisons:
        found["differences"] = differences(
            [
                (f"{ARMS[row['arm']].name} − {ARMS[row['control']].name}", row["difference"])
                for row in comparisons
            ],
            title="Differences of test accuracy",
            what="accuracy of the arm less that of its control",
            unit="points",
            seeds=len(run.seeds),
            reading="Right of 0 the arm is better than its control; a part of the geometry earns its place where the "
            "arm without it lies left.",
            margin=run.margin,
        )
    return found


def answer(run: CompareImagesRun, summary: Rows, comparisons: Rows) -> list[str]:
    """What each arm costs or brings."""
    sentences = []
    if WHOLE in run.arms:
        whole = next(row for row in summary if row["arm"] == WHOLE)
        sentences.append(
            f"Whole model: {_mean(whole['accuracy'])} points on test images, {len(run.seeds)} seeds."
        )
    for row in comparisons:
        verdict = "beyond chance (Holm, 5 %)" if row["p_holm"] < 0.05 else "not beyond chance"
        sentences.append(
            f"{ARMS[row['arm']].name[0].upper()}{ARMS[row['arm']].name[1:]}: {_difference(row['difference'])} points "
            f"against the {ARMS[row['control']].name}: {verdict}."
        )
    return sentences


def _mean(mean: SeedMean | None) -> str:
    if mean is None:
        return "none"
    return f"{mean.value:.2f}" if mean.low is None else f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _difference(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['value']:+.2f}"
    return f"{found['value']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
