"""Carries out a run of an image classifier: load, train, test once, write the run folder. Legend: N images."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from stratcore.data.errors import DataError
from stratcore.data.image_sets import load_images
from stratcore.data.images import ImageTable, require_classes, require_images, split_images
from stratcore.models.arbitration_vit import ArbitrationViT
from stratcore.models.dual_stream_vit import DualStreamViT
from stratcore.models.plain_vit import PlainViT, plain_options
from stratcore.recipes.comparison_figures import curves
from stratcore.recipes.dual_stream_vit import DualStreamViTRun
from stratcore.recipes.environment import environment
from stratcore.recipes.trained_run import load_weights
from stratcore.recipes.trials import Table, calibration_error, write_trials
from stratcore.training import Runtime, Trainer, open_checkpoint, resolve_checkpoint, seed_everything
from stratcore.training.health import embedding_health
from stratcore.training.precision import Precision
from stratcore.training.tasks import ImageClassificationTask
from stratcore.training.tasks.image_classification import ImageModel

logger = logging.getLogger("stratcore")

PARTS = ("train", "validation", "control", "test")
CAVEATS = (
    ("One run", "A single seed says nothing of a difference between settings."),
    ("Validation", "Evaluations during training read held-out training images; the test images were read once."),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """Images of a run by part, and the run with a model that fits them."""

    run: DualStreamViTRun
    parts: dict[str, ImageTable]


def execute(
    run: DualStreamViTRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains, tests and reports; returns the run folder.

    Args:
        run: what to do.
        folder: run folder; exists.
        resume: go on with what the folder holds.
        command: as typed, for the report.
        before_training: called once images and options are found good.

    Raises:
        FileExistsError: the folder holds an earlier run and `resume` is off.
        DataError: the images cannot be used.
        ValueError: options that do not fit, or more than one process.
    """
    with Runtime.create(run.device) as runtime:
        prepared = prepare(run)
        run = prepared.run
        seed_everything(run.seed)
        model = build(run, prepared.parts["train"])
        taken = None if run.warm_start is None else take_over(model, run.warm_start)
        task = task_of(run, model, prepared.parts, runtime)
        stage = replace(run.stage, seed=run.seed)
        trainer = Trainer(task, stage, runtime, folder, tensorboard=run.tensorboard)
        if run.compile:
            model.compile()
        before_training()
        mode: Literal["auto"] | None = "auto" if resume else None
        started = time.perf_counter()
        result = trainer.fit(mode)
        seconds = time.perf_counter() - started
        best = result.checkpoint if result.best_step is None else folder / "checkpoint-best"
        load_weights(model, resolve_checkpoint(best), runtime.device, averaged=run.stage.average is not None)
        with Precision(run.stage.numerics.precision, runtime.device).autocast():
            scores = score(task, model, "test")
        row = {
            "seed": run.seed,
            "architecture": run.architecture,
            "parameters": model.num_parameters(),
            "warm_start": taken,
            "steps": result.step,
            "best_step": result.best_step,
            "seconds": seconds,
            "images_per_second": run.batch_size * result.step / seconds,
            "skipped_steps": result.skipped_steps,
            "validation": result.metrics,
            "test": scores,
            "curve": _curve(folder / "metrics.jsonl"),
        }
        _write(run, folder, prepared, row, command, runtime.device)
    return folder


def prepare(run: DualStreamViTRun) -> PreparedImages:
    """Loads, parts and checks the images of a run, and fits the model to them if so wished.

    Raises:
        DataError: the images cannot be read or do not fit, in one line.
        ValueError: a size that the model's options do not allow.
    """
    shares, (whole, test) = run.data, _whole_and_test(run)
    if run.data.fit_model:
        channels, size, _ = whole.shape
        model = replace(run.model, channels=channels, image_size=size, num_classes=len(whole.label_names))
        run = replace(run, model=model)
    for table in (whole, test):
        require_images(
            table,
            channels=run.model.channels,
            size=run.model.image_size,
            num_classes=run.model.num_classes,
        )
    rows = split_images(
        whole,
        (1 - shares.validation - shares.control, shares.validation, shares.control),
        seed=run.seed,
    )
    parts = {name: whole.take(own) for name, own in zip(PARTS, rows, strict=False)}
    return PreparedImages(run, {**parts, "test": test})


def _whole_and_test(run: DualStreamViTRun) -> tuple[ImageTable, ImageTable]:
    """Images to learn from, and those for the end."""
    found, shares = load_images(run.data.source), run.data
    whole = found.train
    require_classes(whole)
    if shares.test_source is None and found.test is not None:
        return whole, found.test
    rest, own = split_images(whole, (1 - shares.test, shares.test), seed=run.seed)
    test = whole.take(own)
    if shares.test_source is not None:
        other = load_images(shares.test_source).train
        if whole.item is None or other.item is None or whole.label_names != other.label_names:
            raise DataError(
                f"data.test_source: {other.source}: expected the classes of {whole.source} and images with item "
                "numbers in both, as two styles of emoji have them"
            )
        test = other.take(np.flatnonzero(np.isin(other.item, whole.item[own])))
    return whole.take(rest), test


def build(run: DualStreamViTRun, train: ImageTable) -> ImageModel:
    """The model at its start, on the CPU."""
    model: ImageModel
    if run.architecture == "plain":
        model = PlainViT(plain_options(run.model))
    else:
        model = ArbitrationViT(run.model) if run.architecture == "arbitration" else DualStreamViT(run.model)
    model.pixels.fit(torch.from_numpy(train.images))
    if run.objective.classification == "bce" and run.model.standardize:
        model.start_at_base_rate()
    return model


def task_of(
    run: DualStreamViTRun,
    model: ImageModel,
    parts: dict[str, ImageTable],
    runtime: Runtime,
) -> ImageClassificationTask:
    """The training task of a run."""
    return ImageClassificationTask(
        model,
        parts["train"],
        parts["validation"],
        runtime,
        objective=run.objective,
        augmentation=run.augmentation,
        batch_size=run.batch_size,
        seed=run.seed,
        mastery=run.mastery,
        gal=run.gal,
        control=parts["control"],
        test=parts["test"],
        scan_every=run.scan_every,
    )


def take_over(model: torch.nn.Module, source: Path) -> dict[str, int]:
    """Weights of a checkpoint or run folder into a model, where name and shape agree.

    Returns:
        How many tensors were taken, and how many of the model's stay at their start.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: not one weight fits.
    """
    if not source.exists():
        raise FileNotFoundError(f"warm_start: {source}: no such checkpoint or run folder")
    pointers = (source / "checkpoint-best", source / "checkpoint-last")
    place = next((path for path in pointers if path.exists()), source)
    saved = open_checkpoint(resolve_checkpoint(place)).read("model", torch.device("cpu"))
    own = model.state_dict()
    fitting = {name: saved[name] for name in own if name in saved and saved[name].shape == own[name].shape}
    if not fitting:
        raise ValueError(f"warm_start: {source}: no weight has a name and shape of this model")
    model.load_state_dict(fitting, strict=False)
    if len(fitting) < len(own):
        logger.warning("%s: %d of %d tensors stay at their start", source, len(own) - len(fitting), len(own))
    return {"taken": len(fitting), "at_start": len(own) - len(fitting)}


@torch.no_grad()
def score(task: ImageClassificationTask, model: ImageModel, split: str) -> dict[str, float | None]:
    """Accuracy, likelihood, calibration, the geometric stream alone, and the geometry of the embeddings."""
    output, labels_N = task.predict(model, split)
    logits_NC = output.logits.double().cpu()
    labels = labels_N.cpu()
    scores: dict[str, float | None] = {
        "accuracy": float((logits_NC.argmax(-1) == labels).double().mean()),
        "nll": float(cross_entropy(logits_NC, labels)),
        "calibration_error": calibration_error(logits_NC.softmax(-1).numpy(), labels.numpy()),
    }
    if output.geometric_logits is not None:
        guess_N = output.geometric_logits.argmax(-1).cpu()
        scores["geometric_accuracy"] = float((guess_N == labels).double().mean())
    health = embedding_health(output.embedding, labels_N, model.anchors)
    return scores | {f"health/{name}": value for name, value in health.items()}


def _curve(path: Path) -> list[dict[str, Any]]:
    """Validation by step."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"step": r["step"], **r["values"]} for r in records if r["split"] == "validation"]


def _write(
    run: DualStreamViTRun,
    folder: Path,
    prepared: PreparedImages,
    row: dict[str, Any],
    command: str,
    device: torch.device,
) -> None:
    parts = prepared.parts
    counts = {name: parts[name].num_images for name in PARTS}
    test, total = row["test"], row["parameters"]["total"]
    error = np.sqrt(test["accuracy"] * (1 - test["accuracy"]) / counts["test"])
    answer = [
        f"{100 * test['accuracy']:.2f} % of {counts['test']:,} test images (standard error {100 * error:.2f}), "
        f"{total:,} parameters, {row['steps']:,} steps of {run.batch_size} in {row['seconds']:.0f} s."
    ]
    if "geometric_accuracy" in test:
        answer.append(f"The geometric stream alone: {100 * test['geometric_accuracy']:.2f} %.")
    about = (
        f"{run.data.source}: {counts['train']:,} training, {counts['validation']:,} validation, "
        f"{counts['control']:,} control and {counts['test']:,} test images; architecture {run.architecture}."
    )
    results = {
        "recipe": run.recipe,
        "about": about,
        "command": command,
        "environment": environment(device),
        "configuration": asdict(run),
        "data": {"source": parts["train"].source, "labels": parts["train"].label_names, "rows": counts},
        "seeds": [run.seed],
        "trials": [row],
    }
    figures = {
        "curves": curves(
            {run.architecture: [[(p["step"], 100 * p["accuracy"]) for p in row["curve"]]]},
            title="Validation accuracy in training",
            y_label="validation accuracy in points",
            seeds=1,
            better="rise",
        )
    }
    rows = [[name.replace("_", " "), f"{value:.4g}"] for name, value in test.items() if value is not None]
    table = Table(
        title="Test images",
        head=["figure", "value"],
        rows=rows,
        note="Health figures are those of `analysis.scan_geometry`, which has their baselines.",
    )
    write_trials(folder, results, [table], answer, CAVEATS, figures)
