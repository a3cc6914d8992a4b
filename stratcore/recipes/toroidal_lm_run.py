"""Carries out `toroidal_lm`: scores the host, trains every arm on every seed, and reports."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stratcore.data.hub import quiet_unless_terminal
from stratcore.data.perplexity import TextPerplexity
from stratcore.models.toroidal_lm import ToroidalLM, copy_attentions
from stratcore.recipes.comparison_figures import curves
from stratcore.recipes.environment import environment
from stratcore.recipes.toroidal_lm import ARMS, ToroidalLMRun
from stratcore.recipes.toroidal_lm_data import LanguageMaterial, load_language_material
from stratcore.recipes.toroidal_lm_results import (
    CAVEATS,
    answer,
    compare,
    perplexity_rises,
    summarize,
    tables,
)
from stratcore.recipes.trials import CaptionedFigure, TrialLog, write_trials
from stratcore.training import Runtime, Stage, Trainer, seed_everything
from stratcore.training.lora import add_lora, merge_lora
from stratcore.training.memory import MemoryEstimate, TuningPlan, estimate_memory, host_sizes, plans_that_fit
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.precision import Precision
from stratcore.training.tasks import AttentionTransferTask, LanguageModelingTask

logger = logging.getLogger("stratcore")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One arm trained once."""

    arm: str
    seed: int


def execute(
    run: ToroidalLMRun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Scores the host, trains and scores every arm on every seed; returns the run folder.

    Raises:
        DataError: texts or a host that cannot be used.
        ValueError: options that do not fit, or more than one process.
    """
    with Runtime.create(run.device) as runtime:
        if runtime.world_size > 1:
            raise ValueError(f"{run.recipe}: expected one process, got {runtime.world_size}")
        material = load_language_material(run)
        for arm in run.arms:  # every arm can be built
            build(run, material, Trial(arm=arm, seed=run.seeds[0]))
        if runtime.device.type == "cuda":
            line = advice(run, material, torch.cuda.get_device_properties(runtime.device).total_memory)
            if line is not None:
                logger.warning("%s", line)
        before_training()
        host = score_host(run, material, runtime)
        log = TrialLog.open(folder, resume)
        for seed in run.seeds:
            for arm in run.arms:
                trial = Trial(arm=arm, seed=seed)
                if log.find(**asdict(trial)) is None:
                    keep = folder / "models" / f"{arm}-{seed}" if run.save_models else None
                    log.add(asdict(trial) | carry_out(run, material, trial, runtime, keep=keep))
        summary, comparisons = summarize(run, host, log.rows), compare(run, host, log.rows)
        about = material.describe()
        results = {
            "recipe": run.recipe,
            "about": f"{run.host}: {about['train_tokens']:,} training tokens, {run.stage.steps} steps of "
            f"{run.stage.accumulate} x {run.batch_size} rows; {len(run.seeds)} paired seeds.",
            "command": command,
            "environment": environment(runtime.device),
            "configuration": asdict(run),
            "data": about,
            "seeds": list(run.seeds),
            "host": host,
            "trials": log.rows,
            "summary": summary,
            "comparisons": comparisons,
        }
    sentences = answer(run, summary, comparisons)
    figures = _figures(log.rows, comparisons, run)
    write_trials(folder, results, tables(run, summary, comparisons), sentences, CAVEATS, figures)
    return folder


def build(run: ToroidalLMRun, material: LanguageMaterial, trial: Trial) -> ToroidalLM:
    """An arm at its start, on a fresh copy of the host."""
    host: Any = copy.deepcopy(material.host)
    with quiet_unless_terminal():
        model = ToroidalLM(host, run.options(trial.arm, trial.seed))
    if run.trained == "lora":
        add_lora(model, rank=run.lora_rank)
    else:
        model.train_only(run.trained)
    return model


def score_host(run: ToroidalLMRun, material: LanguageMaterial, runtime: Runtime) -> dict[str, Any]:
    """Perplexity of the host as it is."""
    host = copy.deepcopy(material.host).to(runtime.device)
    return score(run, material, host, runtime)


def score(
    run: ToroidalLMRun, material: LanguageMaterial, model: nn.Module, runtime: Runtime
) -> dict[str, Any]:
    """Perplexity of all scored tokens, and by set, in the arithmetic of the training."""
    with Precision(run.stage.numerics.precision, runtime.device).autocast():
        found = material.perplexities(model)
    total = float(sum(each.negative_log_likelihood.sum() for each in found.values()))
    count = int(sum(each.scored.sum() for each in found.values()))
    return {
        "nll": total / count,
        "perplexity": _perplexity(total / count),
        "by_set": {name: _overall(each) for name, each in found.items()},
        "scored_tokens": count,
    }


def _overall(found: TextPerplexity) -> float:
    return _perplexity(float(found.negative_log_likelihood.sum() / found.scored.sum()))


def _perplexity(nll: float) -> float:
    return float(np.exp(min(nll, 700.0)))


def carry_out(
    run: ToroidalLMRun,
    material: LanguageMaterial,
    trial: Trial,
    runtime: Runtime,
    *,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Trains one arm and scores it before and after: a function of its arguments alone.

    Args:
        run: what to do.
        material: host and texts.
        trial: arm and seed.
        runtime: device.
        keep: folder for the trained model and its tokenizer; None: it is thrown away.
    """
    seed_everything(trial.seed)
    model = build(run, material, trial)
    on_gpu = runtime.device.type == "cuda"
    start = score(run, material, model.to(runtime.device), runtime)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        transferred = _transfer(run, material, trial, model, runtime, Path(place) / "transfer")
        task = LanguageModelingTask(
            model,
            material.train,
            material.validation,
            runtime,
            batch_size=run.batch_size,
            seed=trial.seed,
            branch_lr_scale=run.branch_lr_scale,
        )
        stage = replace(run.stage, name=f"{trial.arm}, seed {trial.seed}", seed=trial.seed)
        result = Trainer(task, stage, runtime, Path(place) / "tuning").fit()
        curve = _curve(Path(place) / "tuning" / "metrics.jsonl")
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(runtime.device) if on_gpu else None
    account = model.parameter_account()
    found = score(run, material, model, runtime)
    if keep is not None:
        if model.has_adapters():
            merge_lora(model)
        model.save_pretrained(keep)
        material.tokenizer.save_pretrained(keep)
    return found | {
        "start": start["perplexity"],
        "transfer": transferred,
        "validation": result.metrics,
        "curve": curve,
        "gates": _numbers(model, "gate"),
        "lambdas": _numbers(model, "lambda_distance"),
        "branch_parameters": account.branches,
        "trainable": account.trainable,
        "seconds": seconds,
        "peak_bytes": peak,
        "estimated_bytes": None if trial.arm == "fft_mixing" else estimate(run, material, model).peak,
    }


def estimate(run: ToroidalLMRun, material: LanguageMaterial, model: ToroidalLM) -> MemoryEstimate:
    """Peak bytes of the tuning of an arm by arithmetic."""
    return estimate_memory(host_sizes(material.host), _plan(run, model))


def _plan(run: ToroidalLMRun, model: ToroidalLM) -> TuningPlan:
    torus = model.options.torus
    return TuningPlan(
        layers=tuple(model.layers),
        rows=run.batch_size,
        length=run.data.length,
        trained=run.trained,
        lora_rank=run.lora_rank,
        host_dtype=run.host_dtype,
        precision=run.stage.numerics.precision,
        optimizer=run.stage.optimizer.name,
        checkpointing=run.stage.numerics.gradient_checkpointing,
        accumulate=run.stage.accumulate,
        torus=model.options.attention == "toroidal",
        gated=torus.gate == "zero",
        depths=torus.adaptive_depths or (torus.depth,),
    )


def advice(run: ToroidalLMRun, material: LanguageMaterial, budget: int) -> str | None:
    """One line where an arm is estimated to need more than a GPU's memory: what would fit; None where all fit.

    Args:
        run: what to do.
        material: host and texts.
        budget: bytes.
    """
    sizes = host_sizes(material.host)
    arms = [arm for arm in run.arms if arm != "fft_mixing"]  # no estimate is made of it
    plans = [_plan(run, build(run, material, Trial(arm=arm, seed=run.seeds[0]))) for arm in arms]
    if not plans:
        return None
    plan = max(plans, key=lambda each: estimate_memory(sizes, each).peak)
    peak = estimate_memory(sizes, plan).peak
    if peak <= budget:
        return None
    fitting = plans_that_fit(sizes, plan, budget)
    best = "no setting of trained, checkpointing and batch_size fits"
    if fitting:
        found = fitting[0][0]
        best = (
            f"trained={found.trained} batch_size={found.rows} "
            f"stage.numerics.gradient_checkpointing={str(found.checkpointing).lower()} would fit"
        )
    return f"the tuning is estimated at {peak / 1e9:.1f} GB, the GPU has {budget / 1e9:.1f} GB; {best}"


def _transfer(
    run: ToroidalLMRun,
    material: LanguageMaterial,
    trial: Trial,
    model: ToroidalLM,
    runtime: Runtime,
    place: Path,
) -> dict[str, float] | None:
    if not run.transfer or not run.starts_away(trial.arm):
        return None
    host: Any = material.host
    task = AttentionTransferTask(
        model,
        model.attentions(),
        copy_attentions(host, run.model.layers),
        material.train,
        material.validation,
        runtime,
        batch_size=run.batch_size,
        seed=trial.seed,
        branch_lr_scale=run.branch_lr_scale,
    )
    stage = Stage(
        name=f"{trial.arm}, seed {trial.seed}, transfer",
        steps=run.transfer,
        seed=trial.seed,
        optimizer=OptimizerOptions(lr=run.transfer_lr, schedule="cosine", clip_norm=1.0),
        numerics=replace(run.stage.numerics, gradient_checkpointing=False),
        retention=run.stage.retention,
    )
    return Trainer(task, stage, runtime, place).fit().metrics


def _numbers(model: ToroidalLM, name: str) -> dict[str, list[float]]:
    """What the branches learned, by layer."""
    found = {number: getattr(branch, name) for number, branch in model.branches.items()}
    return {
        number: each.detach().float().flatten().tolist() for number, each in found.items() if each is not None
    }


def _curve(path: Path) -> list[dict[str, float]]:
    """Validation by step."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"step": r["step"], **r["values"]} for r in records if r["split"] == "validation"]


def _figures(
    trials: list[dict[str, Any]], comparisons: list[dict[str, Any]], run: ToroidalLMRun
) -> dict[str, CaptionedFigure]:
    rows = [(f"{row['arm']} − {row['control']}", row["difference"]) for row in comparisons]
    by_arm = {
        ARMS[arm]: [
            [(point["step"], point["nll"]) for point in row["curve"]] for row in trials if row["arm"] == arm
        ]
        for arm in run.arms
    }
    return {
        "differences": perplexity_rises(rows, run.margin, len(run.seeds)),
        "curves": curves(
            by_arm,
            title="Validation loss in training",
            y_label="validation loss in nats a token",
            seeds=len(run.seeds),
            better="fall",
        ),
    }
