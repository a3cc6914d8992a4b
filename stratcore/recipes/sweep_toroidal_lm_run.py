"""Carries out `sweep_toroidal_lm`: trains every arm at every value on every seed, and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stratcore.layers.toroidal_branch_options import ToroidalBranchOptions
from stratcore.models.toroidal_lm import ToroidalLM
from stratcore.recipes.environment import environment
from stratcore.recipes.sweep_toroidal_lm import SweepToroidalLMRun, Value
from stratcore.recipes.toroidal_lm import HOST, ToroidalLMRun
from stratcore.recipes.toroidal_lm_data import LanguageMaterial, load_language_material
from stratcore.recipes.toroidal_lm_results import CAVEATS, compare, perplexity_rises, summarize
from stratcore.recipes.toroidal_lm_run import Trial, build, carry_out, score_host
from stratcore.recipes.trials import CaptionedFigure, Table, TrialLog, holm, write_trials
from stratcore.training import Runtime


@dataclass(frozen=True, eq=False)
class Point:
    """One value of the setting, its run and what its arms start from."""

    value: Value
    run: ToroidalLMRun
    material: LanguageMaterial


def execute(
    run: SweepToroidalLMRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains and scores every arm at every value on every seed; returns the run folder.

    Raises:
        DataError: texts or a host that cannot be used.
        ValueError: options that do not fit, or more than one process.
    """
    with Runtime.create(run.base.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        points = list(prepare_points(run))
        for point in points:  # every arm can be built
            for arm in run.base.arms:
                build(point.run, point.material, Trial(arm=arm, seed=run.base.seeds[0]))
        before_training()
        host = score_host(run.base, points[0].material, runtime)
        log = TrialLog.open(folder, resume)
        for point in points:
            for seed in run.base.seeds:
                for arm in run.base.arms:
                    _carry_out(point, Trial(arm=arm, seed=seed), log, runtime)
        rows = [row for point in points for row in _point_rows(point, host, log.rows)]
        comparisons = [row for point in points for row in _comparisons(point, host, log.rows)]
        adjusted = holm([row["difference"]["p_value"] for row in comparisons])
        comparisons = [row | {"p_holm": p} for row, p in zip(comparisons, adjusted, strict=True)]
        results = {
            "recipe": run.recipe,
            "about": f"{run.base.host}: {run.axis} over {', '.join(map(str, run.grid()))}; "
            f"{len(run.base.seeds)} paired seeds.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "data": points[0].material.describe(),
            "seeds": list(run.base.seeds),
            "host": host,
            "trials": log.rows,
            "summary": rows,
            "comparisons": comparisons,
        }
    pages = tables(run, host, rows, comparisons)
    write_trials(
        folder, results, pages, answer(run, host, rows, comparisons), CAVEATS, _figures(run, comparisons)
    )
    return folder


def prepare_points(run: SweepToroidalLMRun) -> Iterator[Point]:
    """The points of a sweep; texts and host are read once, unless the setting is about them.

    Raises:
        DataError, ValueError: see `load_language_material` and `SweepToroidalLMRun.point`.
    """
    material = load_language_material(run.base)
    probe = build(run.base, material, Trial(arm=run.base.arms[0], seed=0))
    sizes = {
        "layers": len(host_layers(probe)),
        "period": int(probe.options.torus.period or 1),
        "rows": len(material.train),
    }
    for value in run.grid():
        point = run.point(value, **sizes)
        own = material if point.data == run.base.data else load_language_material(point)
        yield Point(value, point, own)


def host_layers(model: ToroidalLM) -> list[int]:
    """Numbers of all layers with attention of a model's host."""
    config: Any = model.config
    return list(range(config.num_hidden_layers))


def _carry_out(point: Point, trial: Trial, log: TrialLog, runtime: Runtime) -> None:
    key = {"value": str(point.value), **asdict(trial)}
    if log.find(**key) is not None:
        return
    same = signature(point.run, trial)
    known = log.find(signature=same)
    found = carry_out(point.run, point.material, trial, runtime) if known is None else known
    log.add({**found, **key, "signature": same})


def signature(run: ToroidalLMRun, trial: Trial) -> str:
    """All that the result of a trial depends on; where there is no torus, not on its form."""
    options = run.options(trial.arm, trial.seed)
    if options.attention == "host":
        options = replace(options, torus=ToroidalBranchOptions())
    rest = (run.data, run.stage, run.trained, run.transfer, run.batch_size)
    return repr((trial.seed, options, *rest))


def _rows_of(point: Point, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in trials if row["value"] == str(point.value)]


def _point_rows(point: Point, host: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = summarize(point.run, host, _rows_of(point, trials))
    return [{"value": point.value, **row} for row in found if row["arm"] != HOST]


def _comparisons(point: Point, host: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = compare(point.run, host, _rows_of(point, trials))
    return [{"value": point.value, **row} for row in found]


def tables(
    run: SweepToroidalLMRun,
    host: dict[str, Any],
    rows: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
) -> list[Table]:
    """Perplexity by value and arm, and the rises over the controls."""
    by_value = Table(
        title=f"Perplexity by {run.axis}",
        head=[run.axis, "arm", "before tuning", "after", "parameters of the torus", "trained", "fit, s"],
        rows=[
            [
                str(row["value"]),
                row["arm"],
                f"{row['start'].value:.4f}",
                str(row["perplexity"]),
                f"{row['branch_parameters']:,}",
                f"{row['trainable']:,}",
                f"{row['seconds']:.1f}",
            ]
            for row in rows
        ],
        note=f"The host, untouched: {host['perplexity']:.4f}. Means over seeds with 95 % t intervals; a control that "
        "the setting does not touch was trained once.",
    )
    differences = Table(
        title="Rise of perplexity over the controls, percent",
        head=[run.axis, "arm", "control", "rise", "95 % interval", "p (Holm)"],
        rows=[
            [
                str(row["value"]),
                row["arm"],
                row["control"],
                f"{row['difference']['value']:+.3f}",
                ""
                if row["difference"]["low"] is None
                else f"[{row['difference']['low']:+.3f}, {row['difference']['high']:+.3f}]",
                f"{row['p_holm']:.2g}",
            ]
            for row in comparisons
        ],
        note="Paired by seed; Holm's correction over the whole sweep.",
    )
    return [by_value, differences]


def answer(
    run: SweepToroidalLMRun,
    host: dict[str, Any],
    rows: list[dict[str, Any]],
    comparisons: list[dict[str, Any]],
) -> list[str]:
    """The best value of each arm, and how many differences to its controls are beyond chance."""
    sentences = [f"The host's perplexity is {host['perplexity']:.4f}."]
    for arm in run.base.arms:
        own = [row for row in rows if row["arm"] == arm]
        best, worst = (pick(own, key=lambda row: row["perplexity"].value) for pick in (min, max))
        sentences.append(
            f"{arm}: {best['perplexity'].value:.4f} at {run.axis} {best['value']}, "
            f"{worst['perplexity'].value:.4f} at {worst['value']}."
        )
    compared = [row for row in comparisons if row["control"] != HOST]
    sure = sum(row["p_holm"] < 0.05 for row in compared)
    sentences.append(
        f"{sure} of {len(compared)} differences to matched controls are beyond chance (Holm, 5 %)."
    )
    return sentences


def _figures(run: SweepToroidalLMRun, comparisons: list[dict[str, Any]]) -> dict[str, CaptionedFigure]:
    rows = [
        (f"{run.axis} {row['value']}: {row['arm']} − {row['control']}", row["difference"])
        for row in comparisons
        if row["arm"] == run.base.arms[0]
    ]
    return {"differences": perplexity_rises(rows, run.base.margin, len(run.base.seeds))}
