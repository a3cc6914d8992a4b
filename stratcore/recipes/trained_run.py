"""A trained run, loaded for inference: its options, rows and model. Legend: N rows, E experts, M atoms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from stratcore.models.dictionary_moe import DictionaryMoE
from stratcore.recipes.dictionary_moe import DictionaryMoERun
from stratcore.recipes.dictionary_moe_data import PreparedData, prepare
from stratcore.recipes.settings import load_run
from stratcore.training import open_checkpoint, resolve_checkpoint


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """Options, rows and model of a run folder, the model in evaluation mode with its best weights."""

    run: DictionaryMoERun
    data: PreparedData
    model: DictionaryMoE
    checkpoint: Path


def load_trained_run(folder: str | Path, device: torch.device | str = "cpu") -> TrainedRun:
    """Load what `python -m stratcore.train` left in a run folder.

    The rows are read again from where the run read them, and split and scaled as then. The weights are those of
    `checkpoint-best`, or of `checkpoint-last` where nothing was best; averaged ones where the run averaged.

    Args:
        folder: run folder with config.yaml and checkpoints.
        device: of the model.

    Raises:
        FileNotFoundError: no config.yaml, no checkpoint, or the rows are gone.
        ValueError: a file that is not what it should be, named.
    """
    from stratcore.recipes import RECIPES

    folder = Path(folder)
    config = folder / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{folder}: expected the folder of a trained run, it holds no config.yaml")
    run = load_run(RECIPES, None, config, [])
    if not isinstance(run, DictionaryMoERun):
        raise ValueError(f"{config}: expected a run that trains one dictionary mixture, got {run.recipe}")
    pointers = [folder / name for name in ("checkpoint-best", "checkpoint-last")]
    pointer = next((path for path in pointers if path.exists()), None)
    if pointer is None:
        raise FileNotFoundError(f"{folder}: no checkpoint-best and no checkpoint-last; was it trained?")
    data = prepare(run, folder)
    model = DictionaryMoE(run.model)
    checkpoint = resolve_checkpoint(pointer)
    load_weights(model, checkpoint, torch.device(device), averaged=run.stage.average is not None)
    return TrainedRun(run, data, model.to(device), checkpoint)


def load_weights(model: nn.Module, checkpoint: Path, device: torch.device, *, averaged: bool) -> None:
    """Put a checkpoint's weights, averaged ones on top where asked for, into a model and leave training mode."""
    opened = open_checkpoint(checkpoint)
    state = opened.read("model", device)
    if averaged:
        state |= opened.read("average", device)["weights"]
    model.load_state_dict(state)
    model.eval()
