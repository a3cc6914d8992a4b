"""Settings of runs of many trials on the small table that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from python_tests.recipes.small_run import SMALL, save_small_table
from stratcore.cli import train

BASE = [
    f"base.{setting}" for setting in (*SMALL, "stage.steps=4", "model.query_dim=8", "model.energy_rank=2")
]


def small_trials(folder: Path, recipe: str, *settings: str) -> dict[str, Any]:
    """Runs a recipe of many trials in the current folder; its results.json."""
    save_small_table(folder)
    words = [recipe, *BASE, *settings, "--output", str(folder / "run")]
    assert train(words) == 0
    return json.loads((folder / "run/results.json").read_text())
