"""Carries out `perplexity_suite`. Legend: N texts of a set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratcore.data import PerplexityOptions, load_texts
from stratcore.data._batches import resolve_model
from stratcore.data.hub import load_causal_model, load_tokenizer
from stratcore.data.perplexity import TextPerplexity, text_perplexity
from stratcore.models.toroidal_lm import OPTIONS, ToroidalLM
from stratcore.recipes.environment import environment
from stratcore.recipes.perplexity_suite import PerplexitySuiteRun
from stratcore.recipes.trials import Table, write_trials
from stratcore.training import Runtime

DRAWS = 2000
CAVEATS = (
    ("Tokens", "Models with other tokenizers have other tokens: compare their bits a character, not perplexities."),
    ("Intervals", "95 %, by a bootstrap over texts; they say nothing of other training seeds."),
)  # fmt: skip


def execute(
    run: PerplexitySuiteRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Scores every model on every set; returns the run folder.

    Raises:
        DataError: texts or a model that cannot be used.
        ValueError: no model or no set, or more than one process.
    """
    if not run.models or not run.sets:
        missing = "models" if not run.models else "sets"
        raise ValueError(f"{missing}: expected at least one name, got none")
    with Runtime.create(run.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        texts = {name: load_texts(name, run.rows, run.seed).texts for name in run.sets}
        before_training()
        scored: dict[str, dict[str, TextPerplexity]] = {}
        for name in run.models:
            model, tokenizer = load_language_model(name, run.dtype)
            options = PerplexityOptions(window=run.window, stride=run.stride)
            model = model.to(runtime.device)
            scored[name] = {
                key: text_perplexity(model, own, tokenizer, options) for key, own in texts.items()
            }
        rows = suite_rows(run, texts, scored)
        results = {
            "recipe": run.recipe,
            "about": f"{len(run.models)} models on {', '.join(run.sets)}.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "seeds": [run.seed],
            "trials": rows,
        }
    write_trials(folder, results, [_table(rows)], _answer(run, rows), CAVEATS)
    return folder


def load_language_model(name: str, dtype: str) -> tuple[torch.nn.Module, Any]:
    """A model and its tokenizer; a toroidal one where the folder holds its options.

    Raises:
        DataError: it is not to be had.
        ValueError: files of a toroidal one that do not fit.
    """
    if (Path(name) / OPTIONS).is_file():
        return ToroidalLM.from_pretrained(name, dtype=getattr(torch, dtype)), load_tokenizer(name)
    return resolve_model(name, None, load_causal_model, dtype, "cpu")


def suite_rows(
    run: PerplexitySuiteRun,
    texts: dict[str, tuple[str, ...]],
    scored: dict[str, dict[str, TextPerplexity]],
) -> list[dict[str, Any]]:
    """A row a set and model: perplexity, bits a character, and the rise over the first model with its interval."""
    rows = []
    for key, own in texts.items():
        characters = sum(map(len, own))
        first = scored[run.models[0]][key]
        for name in run.models:
            found = scored[name][key]
            total, count = found.negative_log_likelihood.sum(), int(found.scored.sum())
            row: dict[str, Any] = {
                "set": key,
                "model": name,
                "perplexity": found.overall(),
                "scored_tokens": count,
                "texts": len(own),
                "bits_per_character": float(total) / math.log(2) / characters,
                "rise": None,
            }
            if name != run.models[0] and np.array_equal(found.scored, first.scored):
                row["rise"] = paired_rise(first, found, run.seed)
            rows.append(row)
    return rows


def paired_rise(first: TextPerplexity, other: TextPerplexity, seed: int) -> dict[str, float]:
    """Rise of token-weighted perplexity in percent, with a percentile interval over texts drawn anew.

    Args:
        first: N texts under one model.
        other: the same texts with as many tokens each under another.
        seed: of the draws.
    """
    difference_N = other.negative_log_likelihood - first.negative_log_likelihood
    count_N = first.scored
    drawn = np.random.default_rng(seed).integers(0, len(count_N), (DRAWS, len(count_N)))
    tokens = np.maximum(count_N[drawn].sum(1), 1)
    means = difference_N[drawn].sum(1) / tokens
    low, high = np.quantile(means, [0.025, 0.975])
    value = difference_N.sum() / max(1, count_N.sum())
    return {key: 100 * math.expm1(mean) for key, mean in (("value", value), ("low", low), ("high", high))}


def _table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        title="Perplexity",
        head=["set", "model", "perplexity", "scored tokens", "texts", "bits a character", "rise, percent"],
        rows=[
            [
                row["set"],
                row["model"],
                f"{row['perplexity']:.4f}",
                f"{row['scored_tokens']:,}",
                f"{row['texts']:,}",
                f"{row['bits_per_character']:.4f}",
                "" if row["rise"] is None else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["rise"]),
            ]
            for row in rows
        ],
        note="Every scored token weighs the same; labels are shifted once, pads are never scored. The rise is over "
        "the first model, where every text has as many tokens for both.",
    )


def _answer(run: PerplexitySuiteRun, rows: list[dict[str, Any]]) -> list[str]:
    sentences = []
    for key in run.sets:
        best = min((row for row in rows if row["set"] == key), key=lambda row: row["bits_per_character"])
        sentences.append(f"{key}: fewest bits a character {best['bits_per_character']:.4f}, {best['model']}.")
    return sentences
