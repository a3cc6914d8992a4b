"""One small analysis and one small trained run, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from python_tests.recipes.small_analysis import run
from python_tests.recipes.small_run import SETTINGS, save_small_table
from stratcore.cli import train
from stratcore.recipes.analysis_run import execute


@pytest.fixture(scope="session")
def analysis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analysis")
    execute(run(folder), folder / "run", command="python -m stratcore.analyze rows.safetensors")
    return folder / "run"


@pytest.fixture(scope="session")
def analysis_results(analysis_folder: Path) -> dict[str, Any]:
    return json.loads((analysis_folder / "results.json").read_text())


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    save_small_table(folder)
    source = f"data.source={folder / 'rows.safetensors'}"
    assert train([source, *SETTINGS, "baselines=false", "--output", str(folder / "run")]) == 0
    return folder / "run"
