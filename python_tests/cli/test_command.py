"""Run folders: numbered, never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_tests.recipes.small_run import SMALL
from stratcore.cli import train
from stratcore.recipes import RECIPES
from stratcore.recipes.settings import load_run

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.mark.usefixtures("only_recorded")
def test_runs_are_numbered_beside_each_other(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("dictionary_moe", "dictionary_moe-2", "dictionary_moe-3"):
        assert train(SMALL) == 0
        assert capfd.readouterr().out == f"report: runs/{name}/report.html\n"
        assert load_run(RECIPES, None, here / "runs" / name / "config.yaml", []) == load_run(
            RECIPES, None, None, SMALL
        )
    assert train(["dictionary_moe_seed", *SMALL[:1]]) == 0
    assert capfd.readouterr().out == "report: runs/dictionary_moe_seed/report.html\n"
