"""Domain transfer: a dictionary mixture trained on all domains but one, tested on the one that it never saw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data import EmbeddingTable, Split
from stratcore.recipes.compare_dictionaries import check_seeds, compact_mixture
from stratcore.recipes.dictionary_moe import DictionaryMoERun

MODELS = ("mixture", "pca")


@dataclass(frozen=True, kw_only=True)
class TransferDictionaryMoERun:
    """For each domain: train without it and, on as many rows, with it; score both on its held-out rows.

    Args:
        recipe: name of the recipe that this run is derived from.
        seeds: each splits the rows, draws the control's rows and starts every mixture.
        domains: names of those to leave out in turn; none: all.
        base: rows, mixture and training.
    """

    recipe: str = "transfer_dictionary_moe"
    seeds: tuple[int, ...] = (0, 1, 2)
    domains: tuple[str, ...] = ()
    base: DictionaryMoERun

    def __post_init__(self) -> None:
        check_seeds(self.seeds, self.base)


def transfer_dictionary_moe() -> TransferDictionaryMoERun:
    """The mixture on a domain that it never saw, against one trained on as many rows of all domains."""
    return TransferDictionaryMoERun(base=compact_mixture())


def execute(
    run: TransferDictionaryMoERun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains and scores both mixtures for every seed and domain; returns the run folder.

    Raises:
        DataError: the rows cannot be used, or are of one domain.
        ValueError: an unknown domain, or more than one process.
    """
    from stratcore.data import require_domains
    from stratcore.recipes.environment import environment
    from stratcore.recipes.rows import load_rows
    from stratcore.recipes.trials import TrialLog, write_trials
    from stratcore.training import Runtime

    with Runtime.create(run.base.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        table = load_rows(run.base.data, folder)
        require_domains(table)
        domains = _domains(run, table)
        for domain in domains:  # every domain leaves enough rows to train on
            _prepared(run, table, run.seeds[0], domain, with_domain=False)
        before_training()
        log = TrialLog.open(folder, resume)
        for seed in run.seeds:
            for domain in domains:
                if log.find(seed=seed, domain=domain) is None:
                    log.add({"seed": seed, "domain": domain} | _trial(run, table, seed, domain, runtime))
        summary = summarize(domains, log.rows)
        results = {
            "recipe": run.recipe,
            "about": f"{table.source}: {table.num_rows} rows of {len(table.domain_names)} domains; "
            f"{len(run.seeds)} seeds, one split each. FVU in the space of the embeddings.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
        }
    write_trials(folder, results, [_table(summary)], _answer(summary), CAVEATS)
    return folder


def _domains(run: TransferDictionaryMoERun, table: EmbeddingTable) -> list[str]:
    unknown = [name for name in run.domains if name not in table.domain_names]
    if unknown:
        raise ValueError(f"domains: expected some of {', '.join(table.domain_names)}, got {unknown[0]!r}")
    return list(run.domains or table.domain_names)


def splits(
    table: EmbeddingTable, fractions: tuple[float, float, float], seed: int, domain: str
) -> tuple[Split, Split]:
    """Splits without a domain and with it: as many training and validation rows, the same test rows, all of it.

    The control's rows are drawn at random from all domains.
    """
    from stratcore.data import split_rows

    whole = split_rows(table, fractions, seed=seed)
    index = table.domain_names.index(domain)
    test = whole.test[table.domain[whole.test] == index]
    rng = np.random.default_rng([seed, index])
    without, control = [], []
    for part in (whole.train, whole.validation):
        others = part[table.domain[part] != index]
        without.append(others)
        control.append(np.sort(rng.permutation(part)[: len(others)]))
    return Split(without[0], without[1], test), Split(control[0], control[1], test)


def _prepared(
    run: TransferDictionaryMoERun, table: EmbeddingTable, seed: int, domain: str, with_domain: bool
) -> Any:
    from stratcore.recipes.dictionary_moe_data import prepare_split

    split = splits(table, run.base.data.fractions, seed, domain)[with_domain]
    return prepare_split(replaced(run.base, seed=seed), table, split)


def _trial(
    run: TransferDictionaryMoERun, table: EmbeddingTable, seed: int, domain: str, runtime: Any
) -> dict[str, Any]:
    """FVU of both mixtures, and of a PCA of as many components as atoms are active, on the domain's test rows."""
    from stratcore import analysis
    from stratcore.recipes.dictionary_moe_run import reconstruct, train

    base, scores = replaced(run.base, seed=seed), {}
    for kind, with_domain in (("without", False), ("with", True)):
        data = _prepared(run, table, seed, domain, with_domain)
        rows = {part: data.rows(part) for part in ("train", "validation", "test")}
        with tempfile.TemporaryDirectory() as place:
            trained = train(base, base.model, base.objective, rows, runtime, Path(place), None)
        xhat, active = reconstruct(trained.model, rows["test"].x.to(runtime.device))
        own = table.embeddings[data.split.test].astype(np.float64)
        components = max(1, round(float(active.double().mean())))
        linear = analysis.pca_reconstruction(data.reduced("train"), data.reduced("test"), components)
        # One center for both, or the FVU of the two would not be of the same variance.
        for name, guess in (("mixture", data.unscale(xhat)), ("pca", linear)):
            scores[f"fvu_{name}_{kind}"] = analysis.fvu(own, data.restore(guess), own.mean(0))
        scores[f"active_atoms_{kind}"] = float(active.double().mean())
        scores[f"rows_{kind}"] = len(data.split.train)
    return scores


def summarize(domains: list[str], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds by domain; `gap_*` is FVU without the domain minus with it, paired by seed."""
    from stratcore.recipes.trials import seed_mean

    summary = []
    for domain in domains:
        own = [t for t in trials if t["domain"] == domain]
        row: dict[str, Any] = {"domain": domain, "rows": own[0]["rows_without"]}
        for name in MODELS:
            for kind in ("with", "without"):
                row[f"{name}_{kind}"] = seed_mean([t[f"fvu_{name}_{kind}"] for t in own])
            row[f"gap_{name}"] = seed_mean([t[f"fvu_{name}_without"] - t[f"fvu_{name}_with"] for t in own])
        summary.append(row)
    return summary


def _table(summary: list[dict[str, Any]]) -> Any:
    from stratcore.recipes.trials import Table

    names = ("mixture_with", "mixture_without", "gap_mixture", "gap_pca")
    return Table(
        title="Held-out FVU of a domain, by whether it was trained on",
        head=[
            "domain",
            "trained with it",
            "never seen",
            "mixture: price of transfer",
            "PCA: price of transfer",
        ],
        rows=[[row["domain"], *(str(row[name]) for name in names)] for row in summary],
        note="Means over seeds with 95 % t intervals; prices are paired by seed. Both mixtures learn from "
        "equally many rows. PCA has as many components as the mixture has active atoms.",
    )


def _answer(summary: list[dict[str, Any]]) -> list[str]:
    worst = max(summary, key=lambda row: row["gap_mixture"].value)
    least = min(summary, key=lambda row: row["gap_mixture"].value)
    return [
        f"Transfer costs most on {worst['domain']}: FVU {worst['gap_mixture']} above a mixture that saw it; least on "
        f"{least['domain']}: {least['gap_mixture']}."
    ]


CAVEATS = [
    (
        "Center",
        "FVU is relative to the variance of the domain's own held-out rows about their mean, so it may exceed 1.",
    ),
    (
        "Reduction",
        "The PCA that the mixture sees is fitted on its own training rows: a part of the price is its.",
    ),
]
