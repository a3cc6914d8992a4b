"""Carries out `compare_classifiers`: trains every arm on every seed with every learning rate, and reports.

Legend: N test rows, C labels, S strata.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratcore.data.classification import split_texts
from stratcore.data.hub import quiet_unless_terminal
from stratcore.models.pretrained_encoder import encoder_config
from stratcore.models.stratified_classifier import StratifiedClassifier
from stratcore.models.stratified_classifier_blocks import block_parameters
from stratcore.models.stratified_classifier_config import StratifiedClassifierConfig
from stratcore.recipes.compare_classifiers import PLAIN, CompareClassifiersRun
from stratcore.recipes.compare_classifiers_data import Material, describe, load_material, prepare
from stratcore.recipes.compare_classifiers_results import (
    CAVEATS,
    answer,
    captions,
    compare,
    summarize,
    tables,
    tuned,
)
from stratcore.recipes.compare_classifiers_routing import RouteLog
from stratcore.recipes.environment import environment
from stratcore.recipes.trials import TrialLog, calibration_error, write_trials
from stratcore.training import Runtime, Trainer, seed_everything
from stratcore.training.tasks import TextClassificationTask, predict_logits


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm trained once."""

    arm: str
    seed: int
    learning_rate: float


def execute(
    run: CompareClassifiersRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains and scores every arm on every seed; returns the run folder.

    Raises:
        DataError: the texts cannot be used.
        ValueError: options that do not fit, or more than one process.
    """
    if run.reproduce_artefact:
        from stratcore.recipes.compare_classifiers_artefact import execute_artefact

        return execute_artefact(run, folder, resume=resume, command=command, before_training=before_training)
    with Runtime.create(run.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        material = prepare(run, folder)
        for arm in run.arms():  # every arm can be built
            build(run, material, arm, run.seeds[0])
        about = describe(run, material.table)
        before_training()
        log = TrialLog.open(folder, resume)
        trials = [
            Trial(arm=arm, seed=seed, learning_rate=rate)
            for seed in run.seeds
            for arm in run.arms()
            for rate in run.learning_rates
        ]
        _carry_out(run, material, trials, log, folder)
        chosen = tuned(run, log.rows)
        summary, comparisons = summarize(run, chosen), compare(run, chosen)
        results = {
            "recipe": run.recipe,
            "about": f"{about['source']}: {about['rows']['train']:,} training and {about['rows']['test']:,} test "
            f"rows; {run.stage.steps} steps of {run.batch_size}; {len(run.seeds)} paired seeds.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "data": about,
            "seeds": list(run.seeds),
            "trials": log.rows,
            "summary": summary,
            "comparisons": comparisons,
        }
    figures = _figures(run, chosen, comparisons)
    sentences = answer(run, summary, comparisons)
    found = tables(run, summary, comparisons)
    write_trials(folder, results, found, sentences, CAVEATS, figures, captions(run))
    return folder


def build(run: CompareClassifiersRun, material: Material, arm: str, seed: int) -> StratifiedClassifier:
    """An arm at its start, on a fresh copy of the encoder."""
    options = arm_options(run, arm)
    if arm.endswith("/mlp"):
        options["matched_parameters"] = _block_size(run, material.encoder, arm.removesuffix("/mlp"))
    with quiet_unless_terminal():
        return StratifiedClassifier.from_encoder(
            material.encoder,
            seed=seed,
            num_strata=run.num_strata,
            freeze_encoder=run.freeze_encoder,
            num_labels=len(material.table.label_names),
            **options,
        )


def arm_options(run: CompareClassifiersRun, arm: str) -> dict[str, Any]:
    """Options of `StratifiedClassifierConfig` that make an arm; those of a matched perceptron lack its size."""
    variant, _, control = arm.partition("/")
    block = {"block_options": run.block_options[variant]} if variant in run.block_options else {}
    if control == "mlp":
        return {"variant": "mlp"}
    if control == "frozen":
        return {"variant": "frozen_random_router", "frozen_variant": variant, **block}
    if variant == "geometric_regularization_source":
        return {"variant": "geometric_regularization", "geometric_signs": "source"}
    return {"variant": variant, **block}


def _block_size(run: CompareClassifiersRun, encoder: str, variant: str) -> int:
    options = arm_options(run, variant)
    config = StratifiedClassifierConfig(encoder_config(encoder), num_strata=run.num_strata, **options)
    return block_parameters(config)


def _carry_out(
    run: CompareClassifiersRun,
    material: Material,
    trials: list[Trial],
    log: TrialLog,
    folder: Path,
) -> None:
    """Runs the trials that the log lacks; their order and their processes change nothing."""
    todo = [trial for trial in trials if log.find(**asdict(trial)) is None]
    if run.workers == 1:
        for trial in todo:
            log.add(asdict(trial) | carry_out(run, material, trial))
        return
    with ProcessPoolExecutor(min(run.workers, max(1, len(todo))), get_context("spawn")) as pool:
        jobs = [pool.submit(_in_process, run, folder, trial) for trial in todo]
        for trial, job in zip(todo, jobs, strict=True):
            log.add(asdict(trial) | job.result())


def _in_process(run: CompareClassifiersRun, folder: Path, trial: Trial) -> dict[str, Any]:
    return carry_out(run, _material_of_process(run, folder), trial)


_MATERIAL: dict[Path, Material] = {}  # of this worker: texts are read and tokenized once


def _material_of_process(run: CompareClassifiersRun, folder: Path) -> Material:
    if folder not in _MATERIAL:
        _MATERIAL[folder] = load_material(run, folder)
    return _MATERIAL[folder]


def carry_out(run: CompareClassifiersRun, material: Material, trial: Trial) -> dict[str, Any]:
    """Trains one arm and scores it on test rows: a function of its arguments alone."""
    parts = material.parts(split_texts(material.table, run.data.split, seed=trial.seed))
    seed_everything(trial.seed)
    model = build(run, material, trial.arm, trial.seed)
    counts = model.parameter_counts()
    with Runtime.create(run.device) as runtime, tempfile.TemporaryDirectory() as place:
        task = TextClassificationTask(
            model,
            parts["train"],
            parts["validation"],
            runtime,
            batch_size=run.batch_size,
            seed=trial.seed,
            head_lr_scale=run.head_lr_scale,
        )
        optimizer = replace(run.stage.optimizer, lr=trial.learning_rate)
        name = f"{trial.arm}, seed {trial.seed}"
        stage = replace(run.stage, name=name, seed=trial.seed, optimizer=optimizer)
        started = time.perf_counter()
        result = Trainer(task, stage, runtime, Path(place)).fit()
        seconds = time.perf_counter() - started
        curve = _curve(Path(place) / "metrics.jsonl")
        scores = score(model, parts["test"], material.table.domain_names, runtime.device, run)
    return scores | {
        "validation_accuracy": result.metrics["accuracy"],
        "validation_nll": result.metrics["nll"],
        "curve": curve,
        "parameters": counts["all"].total,
        "added_parameters": counts["block"].total,
        "fit_seconds": seconds,
    }


def score(
    model: StratifiedClassifier,
    rows: Any,
    domain_names: tuple[str, ...],
    device: torch.device,
    run: CompareClassifiersRun,
) -> dict[str, Any]:
    """Accuracy, also by domain, likelihood, calibration and routes on rows."""
    from stratcore.training.precision import Precision

    routes = RouteLog(rows.num_rows)
    model.eval()
    with torch.no_grad(), Precision(run.stage.numerics.precision, device).autocast():
        logits_NC = predict_logits(model, rows, device, routes.add).double().cpu()
    label_N = torch.from_numpy(rows.label)
    right_N = (logits_NC.argmax(-1) == label_N).numpy()
    return {
        "accuracy": float(right_N.mean()),
        "accuracy_by_domain": {
            name: float(right_N[rows.domain == index].mean()) for index, name in enumerate(domain_names)
        },
        "nll": float(nn.functional.cross_entropy(logits_NC, label_N)),
        "calibration_error": calibration_error(logits_NC.softmax(-1).numpy(), rows.label),
        "routing": routes.statistics(rows.domain, rows.label),
    }


def _curve(path: Path) -> list[dict[str, float]]:
    """Validation by step."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"step": r["step"], **r["values"]} for r in records if r["split"] == "validation"]


def _figures(
    run: CompareClassifiersRun, trials: list[dict[str, Any]], comparisons: list[dict[str, Any]]
) -> dict[str, Any]:
    from stratcore.analysis.plots import difference_intervals, mean_curves

    names, controls = run.arms(), run.names()
    rows = [(f"{names[row['arm']]} − {controls[row['control']]}", row["difference"]) for row in comparisons]
    curves = {
        names[arm]: [
            [(point["step"], 100 * point["accuracy"]) for point in row["curve"]]
            for row in trials
            if row["arm"] == arm
        ]
        for arm in (PLAIN, *run.variants)
    }
    return {
        "differences": difference_intervals(rows, unit="points", margin=run.margin),
        "curves": mean_curves(curves, y_label="validation accuracy, points"),
    }
