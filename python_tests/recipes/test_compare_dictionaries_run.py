from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.recipes.small_run import refusal, save_small_table
from python_tests.recipes.small_trials import BASE, small_trials
from stratcore.cli import train
from stratcore.recipes.compare_dictionaries import METHODS
from stratcore.recipes.compare_dictionaries_run import _penalty_share

pytestmark = pytest.mark.usefixtures("single_thread")
SMALL = ("seeds=[0,1]", "sparsities=[3]", "rounds=2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_method_at_equal_parameters_and_sparsity(here: Path) -> None:
    results = small_trials(here, "compare_dictionaries", *SMALL)
    trials = results["trials"]
    assert [(t["seed"], t["method"]) for t in trials] == [(s, m) for s in (0, 1) for m in METHODS]
    by = {t["method"]: t for t in trials if t["seed"] == 0}
    budget, row = by["mixture"]["parameters"], 8
    for method in ("topk", "topk_omp", "ksvd_omp", "ksvd_iht", "ksvd_fista", "online_omp"):
        # One more atom of 8 features, its threshold included, would cost more than the mixture.
        assert budget - row - 1 <= by[method]["parameters"] <= budget
    assert budget - 4 * row < by["kmeans_pca"]["parameters"] <= budget
    assert (by["subspace_pca"]["parameters"], by["pca"]["parameters"]) == (2 * 4 * row, 4 * row)
    for t in trials:
        assert 2.9 <= t["active_atoms"] <= 3 and t["r2"] == 1 - t["fvu"]
        assert t["fit_seconds"] >= 0 and t["code_microseconds"] > 0
    # Codes of one dictionary: pursuit before hard thresholding, its own rows before the encoder's.
    assert by["ksvd_omp"]["fvu"] < by["ksvd_iht"]["fvu"] and by["topk_omp"]["fvu"] < by["topk"]["fvu"]
    # Planes of four dimensions: local methods before one plane for all.
    assert by["kmeans_pca"]["fvu"] < by["pca"]["fvu"] < 1

    summary = {s["method"]: s for s in results["summary"]}
    assert summary["mixture"]["above_mixture"] is None
    gaps = [t["fvu"] for t in trials if t["method"] == "pca"]
    gaps = np.subtract(gaps, [t["fvu"] for t in trials if t["method"] == "mixture"])
    assert summary["pca"]["above_mixture"]["value"] == pytest.approx(gaps.mean())
    assert summary["pca"]["above_mixture"]["num_seeds"] == 2
    assert (here / "run/table.md").read_text().count("\n| ") == 2 + len(METHODS)
    assert "k = 3: least FVU" in (here / "run/report.html").read_text()


def test_a_resumed_comparison_runs_only_what_is_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ("seeds=[0]", "sparsities=[2]", "rounds=2", "methods=[mixture,pca,kmeans_pca]")
    whole = small_trials(here, "compare_dictionaries", *settings)
    log = here / "run/trials.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]))
    monkeypatch.setattr("stratcore.recipes.compare_dictionaries_run.train", pytest.fail)
    words = ["compare_dictionaries", *BASE, *settings, "--output", "run"]
    assert train([*words, "--resume"]) == 0
    again = log.read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2] and len(again) == 3
    assert "earlier run" in refusal(capfd, words)
    assert whole["trials"][2]["method"] == "kmeans_pca"


def test_a_budget_of_more_atoms_than_rows_is_refused_before_anything_is_written(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_small_table(here)
    words = ["compare_dictionaries", *BASE, "sparsities=[2]", "base.model.query_dim=256", "--output", "run"]
    line = refusal(capfd, words)
    assert line.startswith("base.model: its ") and "to 210 (training rows); change atoms or experts" in line
    assert not (here / "run").exists()


def test_the_penalty_gives_nearly_every_row_enough_atoms() -> None:
    x = torch.rand(200, 50, generator=torch.Generator().manual_seed(0))

    def lasso(rows: torch.Tensor, share: float) -> torch.Tensor:
        return (rows - share).clamp_min(0)

    share = _penalty_share(lasso, x, 10)
    assert ((lasso(x, share) != 0).sum(1) >= 10).double().mean() >= 0.95
    assert ((lasso(x, 1.05 * share) != 0).sum(1) >= 10).double().mean() < 0.95
