"""What the trials of `toroidal_lm` say: perplexities, paired differences, tables, sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from stratcore.analysis.paired_differences import paired_difference
from stratcore.recipes.comparison_figures import differences
from stratcore.recipes.toroidal_lm import ARMS, HOST, ToroidalLMRun
from stratcore.recipes.trials import CaptionedFigure, Table, holm, seed_mean

PERCENT = 100.0


def summarize(run: ToroidalLMRun, host: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm, the host first: perplexity before and after the tuning, by set, size, time and memory."""
    rows = [
        {
            "arm": HOST,
            "name": "the host, untouched",
            "start": seed_mean([host["perplexity"]]),
            "perplexity": seed_mean([host["perplexity"]]),
            "by_set": host["by_set"],
            "branch_parameters": 0,
            "trainable": 0,
            "seconds": 0.0,
            "peak_bytes": None,
            "estimated_bytes": None,
        }
    ]
    for arm in run.arms:
        own = [row for row in trials if row["arm"] == arm]
        rows.append(
            {
                "arm": arm,
                "name": ARMS[arm],
                "start": seed_mean([row["start"] for row in own]),
                "perplexity": seed_mean([row["perplexity"] for row in own]),
                "by_set": {
                    name: float(np.mean([row["by_set"][name] for row in own])) for name in host["by_set"]
                },
                "branch_parameters": own[0]["branch_parameters"],
                "trainable": own[0]["trainable"],
                "seconds": float(np.mean([row["seconds"] for row in own])),
                "peak_bytes": max((row["peak_bytes"] or 0 for row in own), default=0) or None,
                "estimated_bytes": own[0]["estimated_bytes"],
            }
        )
    return rows


def compare(run: ToroidalLMRun, host: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rises of perplexity over each control in percent, paired by seed, with Holm's correction over all.

    A rise is that of the mean log-perplexity: 100 (exp(difference) - 1) of value and interval.
    `within_margin`: the interval lies below the margin.
    """
    nll = {(row["arm"], row["seed"]): row["nll"] for row in trials}
    nll |= {(HOST, seed): host["nll"] for seed in run.seeds}
    found = [
        paired_difference([nll[arm, seed] - nll[control, seed] for seed in run.seeds])
        for arm, control in run.pairs()
    ]
    adjusted = holm([each.p_value for each in found])
    rows = []
    for (arm, control), each, p in zip(run.pairs(), found, adjusted, strict=True):
        difference = asdict(each)
        for key in ("value", "low", "high"):
            if difference[key] is not None:
                difference[key] = PERCENT * math.expm1(difference[key])
        within = difference["high"] is not None and difference["high"] < run.margin
        rows.append(
            {"arm": arm, "control": control, "difference": difference, "p_holm": p, "within_margin": within}
        )
    return rows


def tables(
    run: ToroidalLMRun, summary: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> list[Table]:
    """Perplexities and their differences."""
    sets = list(summary[0]["by_set"])
    perplexities = Table(
        title="Perplexity",
        head=[
            "arm",
            "before tuning",
            "after",
            *sets,
            "parameters of the torus",
            "trained",
            "fit, s",
            "peak, MiB",
            "estimate, MiB",
        ],
        rows=[
            [
                row["name"],
                f"{row['start'].value:.4f}",
                str(row["perplexity"]),
                *(f"{row['by_set'][name]:.3f}" for name in sets),
                f"{row['branch_parameters']:,}",
                f"{row['trainable']:,}",
                f"{row['seconds']:.1f}",
                *(
                    "" if row[key] is None else f"{row[key] / 2**20:.0f}"
                    for key in ("peak_bytes", "estimated_bytes")
                ),
            ]
            for row in summary
        ],
        note="Every scored token weighs the same; labels are shifted once and nothing is padded. Means over seeds "
        "with 95 % t intervals. Memory is measured on a GPU only, and estimated by arithmetic.",
        own=1,
    )
    names = {HOST: "host", **{arm: arm for arm in ARMS}}
    rises = Table(
        title="Rise of perplexity over the controls, percent",
        head=["arm", "control", "rise", "95 % interval", "p (Holm)", f"within {run.margin:g} %"],
        rows=[
            [
                names[row["arm"]],
                names[row["control"]],
                f"{row['difference']['value']:+.3f}",
                ""
                if row["difference"]["low"] is None
                else f"[{row['difference']['low']:+.3f}, {row['difference']['high']:+.3f}]",
                f"{row['p_holm']:.2g}",
                "yes" if row["within_margin"] else "no",
            ]
            for row in comparisons
        ],
        note="Paired by seed; BCa bootstrap interval, exact sign-flip test.",
    )
    return [perplexities, rises]


def answer(run: ToroidalLMRun, summary: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> list[str]:
    """What became of the host's perplexity, and whether a torus does better than the same tuning without."""
    host = summary[0]
    sentences = [f"The host's perplexity is {host['perplexity'].value:.4f}."]
    for row in summary[1:]:
        sentences.append(
            f"{row['arm']}: {row['start'].value:.4f} before the tuning, {row['perplexity'].value:.4f} after it."
        )
    for row in comparisons:
        if row["control"] == HOST:
            continue
        value, sure = row["difference"]["value"], row["p_holm"] < 0.05
        verdict = ("above" if value > 0 else "below") if sure else "not told apart from"
        sentences.append(f"{row['arm']} is {verdict} {row['control']}: {value:+.3f} %.")
    return sentences


def perplexity_rises(
    rows: Sequence[tuple[str, Mapping[str, Any]]], margin: float, seeds: int
) -> CaptionedFigure:
    """Rises of perplexity between arms, in percent."""
    return differences(
        rows,
        title="Rises of perplexity",
        what="perplexity of the arm over that of its control",
        unit="percent",
        seeds=seeds,
        reading="Left of 0 the arm foresees better; a bar wholly left of the gray band's right edge, "
        f"{margin:g}, says that it is not worse by the margin.",
        margin=margin,
    )


CAVEATS = (
    ("Seeds", "Fewer than six paired seeds cannot reach p < .05 in the sign-flip test, whatever the difference."),
    ("Texts", "One set of scored texts for all seeds: intervals are over seeds, not over texts."),
    ("Dropout", "That of attention weights is off in every arm, as a torus cannot drop weights."),
    ("Transfer", "Arms that start away from the host see the rows of their attention transfer besides."),
    ("Gate", "A gated torus computes the host's attention too; its cost is that of both."),
    ("FFT mixing", "It sees the tokens that it is asked for: its perplexity is no perplexity, however low."),
)  # fmt: skip
