"""Carries out a dictionary-mixture run: train, compare, write the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from stratcore.analysis.subspaces import subspace_clusters
from stratcore.models.dictionary_moe import DictionaryMoE, DictionaryMoEOptions
from stratcore.recipes.dictionary_moe import DictionaryMoERun
from stratcore.recipes.dictionary_moe_data import prepare
from stratcore.recipes.trained_run import load_weights
from stratcore.training import Runtime, Trainer, resolve_checkpoint, seed_everything
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with the weights of its best checkpoint, and how its training went."""

    model: DictionaryMoE
    steps: int
    seconds: float
    losses: dict[str, float]


def execute(
    run: DictionaryMoERun,
    folder: Path,
    *,
    resume: bool,
    command: str,
    before_training: Callable[[], object] = lambda: None,
) -> Path:
    """Trains, evaluates and reports; returns the run folder.

    Args:
        run: what to do.
        folder: run folder; exists.
        resume: go on with what the folder holds.
        command: as typed, for the report.
        before_training: called once rows and options are found good.

    Raises:
        FileExistsError: the folder holds an earlier run and `resume` is off.
        DataError: the rows cannot be used.
        ValueError: options that do not fit the rows.
    """
    from stratcore.recipes.dictionary_moe_results import write_run

    with Runtime.create(run.device) as runtime:
        data = prepare(run, folder)
        rows = {part: data.rows(part) for part in ("train", "validation", "test")}
        mode: Literal["auto"] | None = "auto" if resume else None
        mixture = train(run, run.model, run.objective, rows, runtime, folder, mode, before_training)
        peers = {}
        if run.baselines:
            for name, options in single_dictionaries(
                mixture.model, rows["validation"].x.to(runtime.device)
            ).items():
                objective = replace(run.objective, kind="mixture", contrastive=0.0, balance=0.0)
                peer_folder = folder / "baselines" / name
                peer_folder.mkdir(parents=True, exist_ok=True)
                peers[name] = train(run, options, objective, rows, runtime, peer_folder, mode)
        if runtime.is_main:
            write_run(run, folder, data, rows, mixture, peers, command, runtime.device)
        runtime.barrier()
    return folder


def train(
    run: DictionaryMoERun,
    options: DictionaryMoEOptions,
    objective: ObjectiveOptions,
    rows: dict[str, Rows],
    runtime: Runtime,
    folder: Path,
    resume: Literal["auto"] | None,
    before_training: Callable[[], object] = lambda: None,
) -> Trained:
    """Builds, starts and trains one model; returns it with its best weights, or its last where none is best."""
    seed_everything(run.seed)
    model = build(run, options, rows["train"].x)
    task = DictionaryMoETask(
        model, rows["train"], rows["validation"], objective, runtime, batch_size=run.batch_size, seed=run.seed
    )
    stage = replace(run.stage, seed=run.seed)
    started = time.perf_counter()
    trainer = Trainer(task, stage, runtime, folder)
    if runtime.is_main:
        before_training()
    result = trainer.fit(resume)
    seconds = time.perf_counter() - started
    best = result.checkpoint if result.best_step is None else resolve_checkpoint(folder / "checkpoint-best")
    load_weights(model, best, runtime.device, averaged=stage.average is not None)
    losses = {f"validation/{name}": value for name, value in result.metrics.items()}
    losses["best_step"] = float(result.best_step or result.step)
    return Trained(model, result.step, seconds, losses)


def build(run: DictionaryMoERun, options: DictionaryMoEOptions, x_BD: torch.Tensor) -> DictionaryMoE:
    """A model at its start, on the CPU: random, or every expert on one cluster of the training rows."""
    model = DictionaryMoE(options)
    if run.start == "random":
        model.experts.search_step(x_BD)
        return model
    experts = len(options.sparsities)
    if experts == 1:
        model.initialize(x_BD, torch.zeros(x_BD.shape[0], dtype=torch.long))
    else:
        used, cluster = subspace_clusters(x_BD.numpy(), experts, seed=run.seed)
        model.initialize(x_BD[used], torch.from_numpy(cluster).long())
    return model


def single_dictionaries(model: DictionaryMoE, x_BD: torch.Tensor) -> dict[str, DictionaryMoEOptions]:
    """One TopK dictionary of equal active FLOPs and one of equal parameters.

    Their k is the mixture's mean number of active atoms on the given rows, rounded up. These must be rows that it
    was not trained on: it needs fewer atoms on those that it was.
    """
    with torch.no_grad():
        output = model(x_BD)
    chosen_B = model.choose(output)
    active = output.codes[chosen_B, torch.arange(x_BD.shape[0], device=x_BD.device)].count_nonzero(-1)
    k = max(1, math.ceil(float(active.double().mean())))
    return single_dictionaries_of(model, k)


def single_dictionaries_of(model: DictionaryMoE, k: int) -> dict[str, DictionaryMoEOptions]:
    """`single_dictionaries` with a given number of active atoms."""

    def single(atoms: int) -> DictionaryMoEOptions:
        return replace(
            model.options,
            atoms=atoms,
            sparsities=(k,),
            energy_rank=0,
            selection="soft",
            candidates=1,
            head=None,
        )

    def parameters(atoms: int) -> int:
        return count_parameters(DictionaryMoE(single(atoms)).experts)

    flops = model.options.active_flops_per_row
    return {
        "topk_equal_flops": single(_largest(k, lambda atoms: single(atoms).active_flops_per_row <= flops)),
        "topk_equal_parameters": single(
            _largest(k, lambda atoms: parameters(atoms) <= count_parameters(model))
        ),
    }


@torch.no_grad()
def reconstruct(model: DictionaryMoE, x_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row by its chosen expert [B, D], and how many atoms that took [B]."""
    output = model(x_BD)
    chosen_B, index_B = model.choose(output), torch.arange(x_BD.shape[0], device=x_BD.device)
    active_B = output.codes[chosen_B, index_B].count_nonzero(-1)
    return model.experts.decode(output.codes)[chosen_B, index_B], active_B


def count_parameters(module: torch.nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _largest(least: int, fits: Callable[[int], bool]) -> int:
    """Largest number >= least with fits(number), where `fits` is monotone."""
    high = least
    while fits(2 * high):
        high *= 2
    low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
