"""Search over the number of experts, atoms, sparsity and input size of a dictionary mixture."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stratcore.recipes.compare_dictionaries import check_seeds, compact_mixture
from stratcore.recipes.dictionary_moe import DictionaryMoERun

GRID = ("experts", "atoms", "k", "input_dim")


@dataclass(frozen=True, kw_only=True)
class SearchDictionaryMoERun:
    """Train a mixture for every point of a grid; choose on validation rows, report on held-out ones.

    Args:
        recipe: name of the recipe that this run is derived from.
        seeds: each splits the rows and starts every mixture.
        experts: numbers of experts.
        atoms: atoms an expert.
        sparsities: active atoms, the same for all experts.
        input_dims: principal components that the mixture sees.
        base: rows and training, and the mixture but for the four above.
    """

    recipe: str = "search_dictionary_moe"
    seeds: tuple[int, ...] = (0, 1, 2)
    experts: tuple[int, ...] = (1, 2, 4, 8)
    atoms: tuple[int, ...] = (64,)
    sparsities: tuple[int, ...] = (8, 16)
    input_dims: tuple[int, ...] = (32, 64)
    base: DictionaryMoERun

    def __post_init__(self) -> None:
        check_seeds(self.seeds, self.base)
        for name in ("experts", "atoms", "sparsities", "input_dims"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) != len(values):
                raise ValueError(f"{name}: expected different numbers >= 1, got {values}")
        if max(self.sparsities) > min(self.atoms):
            raise ValueError(f"sparsities: expected at most {min(self.atoms)} (atoms), got {self.sparsities}")

    def grid(self) -> Iterator[tuple[int, int, int, int]]:
        """Points (experts, atoms, k, input_dim)."""
        return itertools.product(self.experts, self.atoms, self.sparsities, self.input_dims)

    def at(self, seed: int, experts: int, atoms: int, k: int, input_dim: int) -> DictionaryMoERun:
        """The run of one point."""
        model = replace(self.base.model, sparsities=(k,) * experts, atoms=atoms, input_dim=input_dim)
        return replace(self.base, seed=seed, model=model)


def search_dictionary_moe() -> SearchDictionaryMoERun:
    """Numbers of experts, atoms, active atoms and components of the mixture, chosen on validation rows."""
    return SearchDictionaryMoERun(base=compact_mixture())


def execute(
    run: SearchDictionaryMoERun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains and scores a mixture for every seed and point; returns the run folder.

    Raises:
        DataError: the rows cannot be used.
        ValueError: a point does not fit the rows, or more than one process.
    """
    from stratcore.recipes.dictionary_moe_data import prepare
    from stratcore.recipes.environment import environment
    from stratcore.recipes.trials import TrialLog, write_trials
    from stratcore.training import Runtime

    with Runtime.create(run.base.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        for point in run.grid():
            data = prepare(run.at(run.seeds[0], *point), folder)
        before_training()
        log = TrialLog.open(folder, resume)
        for seed in run.seeds:
            for point in run.grid():
                key = {"seed": seed} | dict(zip(GRID, point, strict=True))
                if log.find(**key) is None:
                    log.add(key | _trial(run.at(seed, *point), runtime, folder))
        summary = summarize(run, log.rows)
        results = {
            "recipe": run.recipe,
            "about": f"{data.table.source}: {len(data.split.train)} training rows; {len(run.seeds)} seeds, "
            "one split each. FVU in the space of the embeddings, so that input sizes compare.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
        }
    write_trials(folder, results, [_table(summary)], _answer(summary), CAVEATS)
    return folder


def _trial(run: DictionaryMoERun, runtime: Any, folder: Path) -> dict[str, Any]:
    from stratcore import analysis
    from stratcore.recipes.dictionary_moe_data import prepare
    from stratcore.recipes.dictionary_moe_run import count_parameters, reconstruct, train

    data = prepare(run, folder)
    rows = {part: data.rows(part) for part in ("train", "validation", "test")}
    with tempfile.TemporaryDirectory() as place:
        trained = train(run, run.model, run.objective, rows, runtime, Path(place), None)
    values = data.table.embeddings.astype("float64")
    scores = {}
    for part in ("validation", "test"):
        xhat, active = reconstruct(trained.model, rows[part].x.to(runtime.device))
        restored = data.restore(data.unscale(xhat))
        own = values[getattr(data.split, part)]
        scores[f"fvu_{part}"] = analysis.fvu(own, restored, values[data.split.train].mean(0))
    return scores | {
        "active_atoms": float(active.double().mean()),
        "parameters": count_parameters(trained.model),
        "fit_seconds": trained.seconds,
    }


def summarize(run: SearchDictionaryMoERun, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds by point, by rising validation FVU; `front`: no point is better and as small and sparse."""
    from stratcore.recipes.trials import seed_mean

    summary = []
    for point in run.grid():
        key = dict(zip(GRID, point, strict=True))
        own = [t for t in trials if all(t[name] == value for name, value in key.items())]
        summary.append(
            key
            | {name: seed_mean([t[name] for t in own]) for name in ("fvu_validation", "fvu_test")}
            | {
                name: sum(t[name] for t in own) / len(own)
                for name in ("active_atoms", "parameters", "fit_seconds")
            }
        )
    for row in summary:
        row["front"] = not any(_dominates(other, row) for other in summary if other is not row)
    return sorted(summary, key=lambda row: row["fvu_validation"].value)


def _dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    cost_a, cost_b = ((r["fvu_validation"].value, r["k"], r["parameters"]) for r in (a, b))
    return all(x <= y for x, y in zip(cost_a, cost_b, strict=True)) and cost_a != cost_b


def _table(summary: list[dict[str, Any]]) -> Any:
    from stratcore.recipes.trials import Table

    return Table(
        title="Points of the grid, by validation FVU",
        head=["experts", "atoms", "k", "components", "validation FVU", "held-out FVU", "parameters", "front"],
        rows=[
            [
                *(str(row[name]) for name in GRID),
                str(row["fvu_validation"]),
                str(row["fvu_test"]),
                f"{row['parameters']:.0f}",
                "yes" if row["front"] else "",
            ]
            for row in summary
        ],
        note="Means over seeds with 95 % t intervals. Front: no point has a lower validation FVU with as few "
        "active atoms and parameters.",
    )


def _answer(summary: list[dict[str, Any]]) -> list[str]:
    best = {k: next(row for row in summary if row["k"] == k) for k in sorted({row["k"] for row in summary})}
    return [
        f"k = {k}: {row['experts']} experts of {row['atoms']} atoms on {row['input_dim']} components have the least "
        f"validation FVU; held out {row['fvu_test']}."
        for k, row in best.items()
    ]


CAVEATS = [
    ("Choice", "The best of many points is chosen on validation rows; its held-out FVU is not chosen on."),
    ("Size", "More atoms, components and active atoms lower the FVU by themselves: compare along the front."),
]
