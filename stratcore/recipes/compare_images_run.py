"""Carries out `compare_images`: trains every arm on every seed, probes what it learned, reports."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratcore.data.image_sets import load_images
from stratcore.data.images import ImageTable, adapted
from stratcore.recipes.compare_images import CompareImagesRun
from stratcore.recipes.compare_images_results import CAVEATS, answer, compare, figures, summarize, tables
from stratcore.recipes.dual_stream_vit_run import build, prepare, score, task_of
from stratcore.recipes.environment import environment
from stratcore.recipes.trained_run import load_weights
from stratcore.recipes.trials import TrialLog, carry_out_trials, write_trials
from stratcore.training import Runtime, Trainer, resolve_checkpoint, seed_everything
from stratcore.training.embedding_probes import detection_auroc, familiarity, neighbor_accuracy
from stratcore.training.precision import Precision
from stratcore.training.tasks.image_classification import ImageModel, predict_images

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm trained once."""

    arm: str
    seed: int


def execute(
    run: CompareImagesRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains and probes every arm; returns the run folder.

    Raises:
        DataError: images that cannot be used.
        ValueError: options that do not fit, or more than one process.
    """
    with Runtime.create(run.base.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        for arm in run.arms:
            prepared = prepare(run.of(arm, run.seeds[0]))
            build(prepared.run, prepared.parts["train"])
        channels, size, _ = prepared.parts["train"].shape
        for name in run.strangers:
            strangers(name, channels, size)
        before_training()
        log = TrialLog.open(folder, resume)
        trials = [Trial(arm=arm, seed=seed) for seed in run.seeds for arm in run.arms]
        carry_out_trials(log, trials, partial(carry_out, run), run.workers)
        summary, comparisons = summarize(run, log.rows), compare(run, log.rows)
        counts = {name: table.num_images for name, table in prepared.parts.items()}
        results = {
            "recipe": run.recipe,
            "about": f"{run.base.data.source}: {counts['train']:,} training and {counts['test']:,} test images; "
            f"{run.base.stage.steps} steps of {run.base.batch_size}; {len(run.seeds)} paired seeds.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "data": counts,
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
            "comparisons": comparisons,
        }
    pages, drawn = tables(run, summary, comparisons), figures(run, log.rows, comparisons)
    write_trials(folder, results, pages, answer(run, summary, comparisons), CAVEATS, drawn)
    return folder


@cache  # in every process: images are read once
def strangers(source: str, channels: int, size: int) -> ImageTable:
    """Images that no arm learns from, in the form of those that it does: the test images of a source, or all."""
    found = load_images(source)
    return adapted(found.train if found.test is None else found.test, channels, size)


def carry_out(run: CompareImagesRun, trial: Trial) -> dict[str, Any]:
    """Trains one arm and probes it: a function of its arguments and the kind of device alone."""
    prepared = prepare(run.of(trial.arm, trial.seed))
    own, parts = prepared.run, prepared.parts
    seed_everything(trial.seed)
    model = build(own, parts["train"])
    with Runtime.create(own.device) as runtime, tempfile.TemporaryDirectory() as place:
        task = task_of(own, model, parts, runtime)
        stage = replace(own.stage, name=f"{trial.arm}, seed {trial.seed}", seed=trial.seed)
        trainer = Trainer(task, stage, runtime, Path(place))
        if own.compile:
            model.compile()
        started = time.perf_counter()
        result = trainer.fit()
        seconds = time.perf_counter() - started
        load_weights(
            model,
            resolve_checkpoint(result.checkpoint),
            runtime.device,
            averaged=own.stage.average is not None,
        )
        model.eval()
        with torch.no_grad(), Precision(own.stage.numerics.precision, runtime.device).autocast():
            scores = score(task, model, "test")
            probes = _probes(run, model, parts, runtime.device)
        curve = _curve(Path(place) / "metrics.jsonl")
    return {
        **{name: value for name, value in scores.items() if not name.startswith("health/")},
        **probes,
        "validation_accuracy": result.metrics["accuracy"],
        "health": {name[7:]: value for name, value in scores.items() if name.startswith("health/")},
        "curve": curve,
        "parameters": model.num_parameters()["total"],
        "fit_seconds": seconds,
        "images_per_second": own.batch_size * own.objective.views * result.step / seconds,
    }


def _probes(
    run: CompareImagesRun, model: ImageModel, parts: dict[str, ImageTable], device: torch.device
) -> dict[str, Any]:
    """Nearest neighbors among training images, and how well strangers are told from test images."""

    def seen(table: ImageTable) -> tuple[Tensor, Tensor]:
        output = predict_images(model, torch.from_numpy(table.images).to(device))
        return output.logits, output.embedding

    count = min(run.references, parts["train"].num_images)
    train = parts["train"].take(np.arange(count))
    _, reference = seen(train)
    logits, embedding = seen(parts["test"])
    labels = [torch.from_numpy(table.label).to(device) for table in (parts["test"], train)]
    known = familiarity(logits, embedding, reference, run.neighbors)
    channels, size, _ = parts["train"].shape
    detected = {}
    for name in run.strangers:
        other = familiarity(*seen(strangers(name, channels, size)), reference, run.neighbors)
        detected[name] = {kind: detection_auroc(known[kind], other[kind]) for kind in known}
    return {
        "neighbor_accuracy": neighbor_accuracy(embedding, labels[0], reference, labels[1], run.neighbors),
        "auroc": detected,
    }


def _curve(path: Path) -> list[dict[str, float]]:
    """Validation accuracy by step."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {"step": each["step"], "accuracy": each["values"]["accuracy"]}
        for each in records
        if each["split"] == "validation"
    ]
