"""Carries out `compare_positions`: tunes every arm on every task, trains it on all seeds, and reports."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from stratcore.data.byte_text import ByteText, read_bytes
from stratcore.data.periodic_fields import AdvectionDiffusion
from stratcore.data.periodic_series import DayWeekSeries
from stratcore.data.ring_sequences import RingOptions, RingSequences
from stratcore.data.sequences import SequenceSource, seeded_generator
from stratcore.models.sequence_transformer import SequenceTransformer, SequenceTransformerOptions
from stratcore.recipes.compare_positions import ComparePositionsRun, PeriodicTaskOptions
from stratcore.recipes.compare_positions_results import (
    CAVEATS,
    Choices,
    answer,
    claims,
    compare,
    figures,
    summarize,
    tables,
    tuned,
)
from stratcore.recipes.environment import environment
from stratcore.recipes.trials import TrialLog, carry_out_trials, write_trials
from stratcore.training import Runtime, Trainer, seed_everything
from stratcore.training.precision import Precision
from stratcore.training.tasks import SequencePredictionTask

_ROLLOUT_KEY = 2  # beside the keys of the task's own draws


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm trained once on one task."""

    task: str
    arm: str
    seed: int
    learning_rate: float
    rope_base: float
    slope: float | None


def execute(
    run: ComparePositionsRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Tunes, trains and scores every arm on every task; returns the run folder.

    Raises:
        DataError: no text for task 'bytes'.
        ValueError: options that do not fit, or more than one process.
    """
    with Runtime.create(run.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        floor = floors(run)  # every source can be made, and every arm built
        for trial in tuning_trials(run):
            with torch.device("meta"):
                build(run, trial)
        before_training()
        log, job = TrialLog.open(folder, resume), partial(carry_out, run)
        carry_out_trials(log, tuning_trials(run), job, run.workers)
        choices = tuned(run, log.rows)
        carry_out_trials(log, chosen_trials(run, choices), job, run.workers)
        summary, comparisons = summarize(run, log.rows, choices, floor), compare(run, log.rows, choices)
        found = claims(run, summary, comparisons)
        results = {
            "recipe": run.recipe,
            "about": f"{len(run.tasks)} tasks, {len(run.seeds)} paired seeds, settings chosen on validation draws "
            f"of the first {run.tuning_seeds}; the same steps, draws and start weights for every arm.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
            "comparisons": comparisons,
            "claims": found,
        }
    pages = tables(run, summary, comparisons, found)
    drawn = figures(run, log.rows, choices, comparisons)
    write_trials(folder, results, pages, answer(run, found), CAVEATS, drawn)
    return folder


def tuning_trials(run: ComparePositionsRun) -> list[Trial]:
    """Every setting on the tuning seeds."""
    return [
        Trial(task=task, arm=arm, seed=seed, **asdict(setting))
        for task in run.tasks
        for arm in run.arms_of(task)
        for setting in run.settings_of(task, arm)
        for seed in run.seeds[: run.tuning_seeds]
    ]


def chosen_trials(run: ComparePositionsRun, choices: Choices) -> list[Trial]:
    """The chosen setting of each task and arm on all seeds."""
    return [
        Trial(task=task, arm=arm, seed=seed, **asdict(setting))
        for (task, arm), setting in choices.items()
        for seed in run.seeds
    ]


@cache  # in every process: a text is read once
def source_of(task: str, data: PeriodicTaskOptions) -> SequenceSource:
    """What draws the sequences of a task."""
    if task == "bytes":
        return ByteText(read_bytes(data.text, data.text_bytes), data.window)
    if task == "advection_diffusion":
        return AdvectionDiffusion(data.advection)
    if task == "day_week":
        return DayWeekSeries(data.series)
    ring = RingOptions(
        rule="copy" if task.startswith("ring_copy") else "next_mark",
        sites=data.sites,
        symbols=data.symbols,
        reach=data.reach,
        density=data.density,
        seam="avoided" if task.endswith("_seam") else "crossed",
    )
    return RingSequences(ring)


def floors(run: ComparePositionsRun) -> dict[str, float | None]:
    """The least expected loss that any model can have, where it is known."""
    return {task: source_of(task, run.data).floor for task in run.tasks}


def build(run: ComparePositionsRun, trial: Trial) -> SequenceTransformer:
    """An arm at its start, with weights from torch's generator."""
    shape, size = source_of(trial.task, run.data).shape, run.size_of(trial.task)
    options = SequenceTransformerOptions(
        vocabulary=shape.vocabulary,
        in_channels=shape.in_channels,
        outputs=shape.outputs,
        length=shape.length,
        lattice=shape.lattice,
        causal=shape.causal,
        positions=trial.arm,
        dim=size.dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        rope_base=trial.rope_base,
        slope=trial.slope,
    )
    return SequenceTransformer(options)


def carry_out(run: ComparePositionsRun, trial: Trial) -> dict[str, Any]:
    """Trains one arm and scores it: a function of its arguments and the kind of device alone."""
    source, size = source_of(trial.task, run.data), run.size_of(trial.task)
    seed_everything(trial.seed)
    model = build(run, trial)
    counts = model.num_parameters()
    with Runtime.create(run.device) as runtime, tempfile.TemporaryDirectory() as place:
        task = SequencePredictionTask(
            model,
            source,
            runtime,
            batch_size=size.batch_size,
            seed=trial.seed,
            evaluation_sequences=size.evaluation_sequences,
        )
        optimizer = replace(size.stage.optimizer, lr=trial.learning_rate)
        name = f"{trial.task}, {trial.arm}, seed {trial.seed}"
        stage = replace(size.stage, name=name, seed=trial.seed, optimizer=optimizer)
        started = time.perf_counter()
        result = Trainer(task, stage, runtime, Path(place)).fit()
        seconds = time.perf_counter() - started
        model.eval()
        with torch.no_grad(), Precision(size.stage.numerics.precision, runtime.device).autocast():
            losses = {part: task.evaluate(model, part)["loss"] for part in source.parts}
            if isinstance(source, AdvectionDiffusion):
                losses["rollout"] = rollout(model, source, run.rollout, runtime.device, trial.seed)
        return {
            "losses": losses,
            "validation_loss": result.metrics["loss"],
            "curve": _curve(Path(place) / "metrics.jsonl"),
            "parameters": counts["total"],
            "position_parameters": counts["positions"],
            "fit_seconds": seconds,
        }


def rollout(
    model: SequenceTransformer, source: AdvectionDiffusion, steps: int, device: torch.device, seed: int
) -> float:
    """Mean squared error after so many steps, each of the model's answer to its last, over the true mean square."""
    first = source.draw(64, seeded_generator(device, seed, _ROLLOUT_KEY), "test").inputs
    side, velocity_B2 = source.options.size, first[:, 0, 1:]
    field_Bnn = first[..., 0].unflatten(1, (side, side))
    truth_Bnn = source.advance(field_Bnn, source.options.speed * velocity_B2, steps)
    for _ in range(steps):
        field_Bnn = model(source.inputs(field_Bnn, velocity_B2)).float()[..., 0].unflatten(1, (side, side))
    return float((field_Bnn - truth_Bnn).square().mean() / truth_Bnn.square().mean())


def _curve(path: Path) -> list[dict[str, float]]:
    """Validation loss by step."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {"step": each["step"], "loss": each["values"]["loss"]}
        for each in records
        if each["split"] == "validation"
    ]
