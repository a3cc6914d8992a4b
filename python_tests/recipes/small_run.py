"""Rows on three planes of four dimensions, and the settings of a run on them that takes a second or two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratcore.cli import train
from stratcore.data import EmbeddingTable, save_table
from stratcore.recipes import RECIPES, DictionaryMoERun
from stratcore.recipes.settings import load_run
from stratcore.training import open_checkpoint, resolve_checkpoint

SETTINGS = (
    "model.input_dim=8",
    "model.atoms=16",
    "model.sparsities=[2,4]",
    "stage.steps=6",
    "batch_size=32",
    "device=cpu",
)
SMALL = ("data.source=rows.safetensors", *SETTINGS)


def small_table(rows: int = 300, domains: int = 3, features: int = 16) -> EmbeddingTable:
    rng = np.random.default_rng(0)
    domain = np.arange(rows) % domains
    planes = rng.standard_normal((domains, 4, features))
    x = np.einsum("nk,nkd->nd", rng.standard_normal((rows, 4)), planes[domain]) + domain[:, None]
    x += 0.05 * rng.standard_normal(x.shape)
    names = ("letters", "numbers", "signs")[:domains]
    return EmbeddingTable.from_arrays(x, domain, names, token_count=rng.integers(5, 50, rows))


def save_small_table(folder: Path) -> None:
    """As the file that `SMALL` names."""
    save_table(small_table(), folder / "rows.safetensors")


def small_run(*settings: str, source: str = "rows.safetensors") -> DictionaryMoERun:
    return load_run(RECIPES, None, None, [f"data.source={source}", *SETTINGS, *settings])


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Content of every file below a folder by its name, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def last_checkpoint(run: Path) -> dict[str, bytes]:
    """Files with tensors of the last checkpoint: weights, moments, generators."""
    folder = resolve_checkpoint(run / "checkpoint-last")
    open_checkpoint(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def timeless_results(run: Path) -> dict[str, Any]:
    """Results but for the seconds and the command as typed."""
    results = json.loads((run / "results.json").read_text())
    assert results["training"].pop("seconds") >= 0 and results.pop("command")
    return results


def refusal(capfd: pytest.CaptureFixture[str], words: Sequence[str]) -> str:
    """The one line on stderr of arguments that are refused with exit code 2."""
    capfd.readouterr()
    assert train(words) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == "" and "Traceback" not in stderr
    assert stderr.count("\n") == 1 and stderr.startswith("stratcore: ")
    return stderr.removeprefix("stratcore: ").strip()
