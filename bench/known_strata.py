"""Sections of docs/stratification.md on methods judged where the answer is known, and on trained mixtures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import stratification_words as words
from bench.document import prose, science_rows
from bench.markdown import command, digits, interval, mean_interval, table

CPU = Path("bench/results/cpu")
Results = dict[str, Any]
STRATA_CASES = {
    "spheres": "spheres, centers apart",
    "planes": "planes through one center",
    "subspaces": "subspaces of 4 to 24 dimensions",
}
CRITERIA = {"heldout": "held-out likelihood", "stability": "stability"}


def strata_methods() -> list[str]:
    """Methods for strata on known ones, and the number of strata that each criterion chooses."""
    rows = science_rows(CPU / "strata.jsonl")
    fits = [row for row in rows if row["part"] == "fits"]
    choices = [row for row in rows if row["part"] == "choices"]

    def cell(method: str, case: str) -> str:
        own = [row for row in fits if (row["method"], row["case"]) == (method, case)]
        dimension = max(row["largest_dimension_error"] for row in own)
        return f"{np.mean([row['ari'] for row in own]):.3f}; {dimension}"

    def chosen(method: str, case: str) -> str:
        own = [row for row in choices if (row["method"], row["case"]) == (method, case)]
        right = sum(row["chosen"] == row["truth"] for row in own)
        return f"{right} of {len(own)}, {CRITERIA[own[0]['criterion']]}" if own else "not run"

    methods = list(dict.fromkeys(row["method"] for row in fits))
    cells = [[method.replace("_", " "), *(cell(method, case) for case in STRATA_CASES)] for method in methods]
    pickers = [m for m in methods if any(row["method"] == m for row in choices)]
    picked = [[m.replace("_", " "), *(chosen(m, case) for case in (*STRATA_CASES, "cloud"))] for m in pickers]
    names = [*STRATA_CASES.values()]
    return [
        prose(words.STRATA.format(seeds=len({row["seed"] for row in fits}))),
        command(fits[0]["command"]),
        table(["mean ARI; largest error of a dimension", *names], cells),
        prose(words.STRATA_NUMBER),
        table(["right number of strata", *names, "one cloud"], picked),
    ]


def dimension_errors() -> list[str]:
    """Calibrated dimensions of manifolds whose family was left out."""
    every = science_rows(CPU / "intrinsic_dim.jsonl")

    def error(row: Results) -> float:
        return row["left_out"] / row["dim"] - 1

    def beyond(kind: str) -> list[Results]:
        return [r for r in every if r["kind"] == kind and abs(error(r)) > (0.05 if r["dim"] <= 10 else 0.10)]

    rows = [row for row in every if row["kind"] == "closed"]
    outside, bounded, noisy = (beyond(kind) for kind in ("closed", "bounded", "noisy"))
    if not all(row["left_out_warning"] for row in (*outside, *bounded, *noisy)):
        raise ValueError("intrinsic_dim.jsonl: an error beyond the goal carries no warning; mend the words")
    told = words.DIMENSION.format(
        seeds=len({row["seed"] for row in rows}),
        inside=len(rows) - len(outside),
        runs=len(rows),
        outside=len(outside),
        covered=sum(row["left_out_covers"] for row in rows),
        bounded=f"{len(bounded)} of {sum(row['kind'] == 'bounded' for row in every)}",
        noisy=f"{len(noisy)} of {sum(row['kind'] == 'noisy' for row in every)}",
        missed=sum(not row["left_out_covers"] for row in every if row["kind"] == "noisy"),
    )
    worst = sorted(outside, key=lambda row: -abs(error(row)))
    cells = [
        [row["case"], row["seed"], row["dim"],
         interval({"value": row["left_out"], "low": row["left_out_low"], "high": row["left_out_high"]}),
         f"{100 * error(row):+.0f} %", digits(row["mle_20"])]
        for row in worst[:12]
    ]  # fmt: skip
    header = ["manifold", "seed", "dimension", "calibrated, family left out", "error", "MLE as it is"]
    return [prose(told), command(rows[0]["command"]), table(header, cells)]


def single_dictionaries() -> list[str]:
    """Methods at equal parameters and sparsity."""
    from stratcore.recipes.compare_dictionaries import METHODS

    rows = science_rows(CPU / "compare_dictionaries.jsonl")
    sizes = sorted({row["k"] for row in rows})
    cells = [
        [
            name,
            *(mean_interval([r["fvu"] for r in rows if (r["k"], r["method"]) == (k, method)]) for k in sizes),
        ]
        for method, name in METHODS.items()
    ]
    told = words.SINGLE.format(seeds=len({row["seed"] for row in rows}))
    return [prose(told), command(rows[0]["command"]), table(["", *(f"k = {k}" for k in sizes)], cells)]


def transfer() -> list[str]:
    """Domains left out of the training."""
    result = json.loads((CPU / "transfer_dictionary_moe.json").read_text(encoding="utf-8"))
    keys = ("mixture_with", "mixture_without", "gap_mixture", "gap_pca")
    cells = [[row["domain"], *(interval(row[key]) for key in keys)] for row in result["summary"]]
    header = ["domain", "trained with it", "never seen", "price, mixture", "price, PCA"]
    told = words.TRANSFER.format(seeds=len(result["seeds"]))
    return [prose(told), command(result["command"]), table(header, cells)]


def search() -> list[str]:
    """Numbers of experts."""
    result = json.loads((CPU / "search_dictionary_moe.json").read_text(encoding="utf-8"))
    rows = [row for row in result["summary"] if row["input_dim"] == 64]
    rows.sort(key=lambda row: (row["k"], row["experts"]))
    cells = [[row["experts"], row["k"], interval(row["fvu_validation"]), interval(row["fvu_test"]),
              f"{row['parameters']:,.0f}"] for row in rows]  # fmt: skip
    header = ["experts", "k", "FVU, validation", "FVU, held out", "parameters"]
    told = words.SEARCH.format(seeds=len(result["seeds"]))
    return [prose(told), command(result["command"]), table(header, cells)]
