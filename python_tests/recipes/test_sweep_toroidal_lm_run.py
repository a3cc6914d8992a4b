from __future__ import annotations

import json
from pathlib import Path

import pytest

from python_tests.recipes.small_language import SETTINGS, save_small_language
from stratcore.cli import train
from stratcore.recipes import sweep_toroidal_lm_run

pytestmark = pytest.mark.usefixtures("single_thread")
BASE = [f"base.{setting}" for setting in SETTINGS]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_small_language(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_trains_what_differs_and_resumes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    carry_out = sweep_toroidal_lm_run.carry_out
    monkeypatch.setattr(
        sweep_toroidal_lm_run,
        "carry_out",
        lambda run, material, trial, runtime: (
            trained.append(trial.arm) or carry_out(run, material, trial, runtime)  # type: ignore[func-returns-value]
        ),
    )
    words = [*BASE, "axis=lambda", "values=[0.0,0.5]", "--output", "run"]
    assert train(["sweep_toroidal_lm", *words]) == 0
    results = json.loads((here / "run/results.json").read_text())
    assert len(results["trials"]) == 2 * 3 * 2 and len(results["summary"]) == 2 * 3
    # A lambda of 0 is the control, and controls do not hang on lambda: 2 toroidal and 1 re-initialised, 2 seeds.
    assert sorted(trained) == ["standard_random"] * 2 + ["toroidal"] * 4
    by_value = {(row["value"], row["arm"]): row["perplexity"]["value"] for row in results["summary"]}
    assert len({by_value[value, "toroidal"] for value in (0.0, 0.5)}) == 2
    assert len({by_value[value, "lambda_0"] for value in (0.0, 0.5)}) == 1
    assert by_value[0.0, "toroidal"] == by_value[0.0, "lambda_0"]
    assert all(0 <= row["p_holm"] <= 1 for row in results["comparisons"])
    for name in ("report.html", "table.md", "plots/differences.png"):
        assert (here / "run" / name).stat().st_size > 100
    lines = (here / "run/trials.jsonl").read_text().splitlines(keepends=True)
    (here / "run/trials.jsonl").write_text("".join(lines[:7]))
    trained.clear()
    assert train(["sweep_toroidal_lm", *words, "--resume"]) == 0
    again = json.loads((here / "run/results.json").read_text())
    assert [row["nll"] for row in again["trials"]] == [row["nll"] for row in results["trials"]]
    assert len(trained) < 6


def test_fewer_rows_are_scored_on_the_same_texts(here: Path) -> None:
    words = [
        *BASE,
        "base.arms=[toroidal]",
        "base.seeds=[0]",
        "axis=rows",
        "values=[60,90]",
        "--output",
        "rows",
    ]
    assert train(["sweep_toroidal_lm", *words]) == 0
    results = json.loads((here / "rows/results.json").read_text())
    assert len({row["scored_tokens"] for row in results["trials"]}) == 1
    assert len({row["start"] for row in results["trials"]}) == 1 and len(results["trials"]) == 2


def test_a_value_that_the_host_cannot_have_is_refused_before_training(
    here: Path, capsys: pytest.CaptureFixture[str], no_training: None
) -> None:
    for setting, words in (
        ("values=[2,3]", "depth: expected one of 1, 2, 4 for heads of 8 channels, got 3"),
        ("axis=width", "axis: expected one of depth, lambda"),
    ):
        assert train(["sweep_toroidal_lm", *BASE, setting, "--output", "bad"]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
