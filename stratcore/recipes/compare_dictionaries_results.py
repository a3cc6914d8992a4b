"""What a comparison of dictionaries reports: means over seeds, paired differences, tables, sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratcore.recipes.compare_dictionaries import METHODS, CompareDictionariesRun
from stratcore.recipes.trials import Table, holm, paired_p, seed_mean


def summarize(run: CompareDictionariesRun, trials: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over seeds by k and method, with paired differences from the mixture (p adjusted after Holm within k)."""
    for k in run.sparsities:
        by_method = {
            m: sorted((t for t in trials if t["k"] == k and t["method"] == m), key=lambda t: t["seed"])
            for m in run.methods
        }
        mixture = [t["fvu"] for t in by_method["mixture"]]
        above = {
            m: [t["fvu"] - own for t, own in zip(by_method[m], mixture, strict=True)]
            for m in run.methods
            if m != "mixture"
        }
        adjusted = dict(zip(above, holm([paired_p(d) for d in above.values()]), strict=True))
        for method, own in by_method.items():
            yield {
                "k": k,
                "method": method,
                "name": METHODS[method],
                "fvu": seed_mean([t["fvu"] for t in own]),
                "r2": seed_mean([t["r2"] for t in own]),
                "above_mixture": seed_mean(above[method]) if method in above else None,
                "p_holm": adjusted.get(method),
                **{
                    name: float(np.mean([t[name] for t in own]))
                    for name in ("active_atoms", "parameters", "fit_seconds", "code_microseconds")
                },
            }


def tables(run: CompareDictionariesRun, summary: list[dict[str, Any]]) -> list[Table]:
    """A table for each k."""
    head = ["method", "held-out FVU", "R²", "FVU above the mixture's", "p (Holm)", "active atoms",
            "parameters", "fit, s", "code, µs a row"]  # fmt: skip
    return [
        Table(
            title=f"k = {k}",
            head=head,
            rows=[
                [
                    row["name"], str(row["fvu"]), f"{row['r2'].value:.4f}",
                    "" if row["above_mixture"] is None else str(row["above_mixture"]),
                    "" if row["p_holm"] is None else f"{row['p_holm']:.2g}",
                    f"{row['active_atoms']:.1f}", f"{row['parameters']:.0f}",
                    f"{row['fit_seconds']:.2f}", f"{row['code_microseconds']:.1f}",
                ]
                for row in summary if row["k"] == k
            ],
            note="Means over seeds with 95 % t intervals; differences are paired by seed. FVU in the reduced space.",
            own=1,
        )
        for k in run.sparsities
    ]  # fmt: skip


def answer(summary: list[dict[str, Any]]) -> list[str]:
    """Who reconstructs best at each k, and against whom the mixture wins or loses."""
    sentences = []
    for k in dict.fromkeys(row["k"] for row in summary):
        own = [row for row in summary if row["k"] == k]
        best = min(own, key=lambda row: row["fvu"].value)
        sure = [row for row in own if row["p_holm"] is not None and row["p_holm"] < 0.05]
        worse = [row["name"] for row in sure if row["above_mixture"].value > 0]
        better = [row["name"] for row in sure if row["above_mixture"].value < 0]
        sentences.append(
            f"k = {k}: least FVU {best['fvu'].value:.4f}, {best['name']}. Beyond chance (Holm, 5 %) the mixture "
            f"beats {', '.join(worse) or 'none'} and loses to {', '.join(better) or 'none'}."
        )
    return sentences


CAVEATS = [
    ("Parameters", "Equal to the mixture's, rounded down to whole atoms or clusters; PCA and the subspace clusters "
     "have fewer by their nature."),
    ("Sparsity", "k is the number of active atoms, without the choice of an expert or cluster, which costs a number "
     "as well."),
    ("Time", "Wall clock on the machine below; fitting includes evaluation and checkpoints where a model is trained. "
     "The mixture is coded by all of its experts, more than it needs."),
]  # fmt: skip
