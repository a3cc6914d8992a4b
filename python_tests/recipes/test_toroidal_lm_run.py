"""Legend: B sequences, N tokens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.recipes.small_language import SETTINGS, save_small_language
from stratcore.cli import train
from stratcore.recipes import RECIPES
from stratcore.recipes.settings import load_run
from stratcore.recipes.toroidal_lm_data import load_language_material
from stratcore.recipes.toroidal_lm_run import Trial, advice, build, carry_out
from stratcore.training import Runtime

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    save_small_language(folder)
    return folder


@pytest.fixture
def here(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(files)
    return files


def test_whole_run_and_resume(here: Path, tmp_path: Path) -> None:
    words = [
        *SETTINGS,
        "arms=[toroidal,lambda_0,random]",
        "transfer=2",
        "data.evaluation=[lines.txt,other.txt]",
    ]
    output = ["--output", str(tmp_path / "run")]
    assert train(["toroidal_lm", *words, *output]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [row["arm"] for row in results["summary"]] == ["host", "toroidal", "lambda_0", "random"]
    assert list(results["summary"][0]["by_set"]) == ["lines.txt", "other.txt"]
    assert len(results["trials"]) == 3 * 2
    host = results["host"]["perplexity"]
    for row in results["trials"]:
        assert (row["start"] == host) == (row["arm"] != "random")
        assert (row["transfer"] is not None) == (row["arm"] == "random")
        assert row["perplexity"] != host and math.isfinite(row["perplexity"])
        assert len(row["curve"]) == 2 and row["peak_bytes"] is None and row["estimated_bytes"] > 4 * 27360
    for name in ("report.html", "table.md", "plots/differences.png", "plots/curves.png"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    lines = (tmp_path / "run/trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/trials.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    assert train(["toroidal_lm", *words, *output, "--resume"]) == 0
    again = json.loads((tmp_path / "run/results.json").read_text())
    keys = ("arm", "seed", "nll", "gates", "lambdas")
    assert [[row[k] for k in keys] for row in again["trials"]] == [
        [row[k] for k in keys] for row in results["trials"]
    ]


def test_arms_start_as_the_host_and_end_alike_in_any_order(here: Path) -> None:
    run = load_run(RECIPES, "toroidal_lm", None, [*SETTINGS, "model.torus.depth=2", "model.layers=all"])
    material = load_language_material(run)
    ids = torch.from_numpy(material.validation)
    with torch.no_grad():
        plain = material.host(ids).logits
        for arm in ("toroidal", "lambda_0", "tuned"):
            assert torch.equal(build(run, material, Trial(arm=arm, seed=1))(ids).logits, plain), arm
    with Runtime.create("cpu") as runtime:
        first, second = (
            {arm: carry_out(run, material, Trial(arm=arm, seed=1), runtime)["nll"] for arm in order}
            for order in (("toroidal", "tuned"), ("tuned", "toroidal"))
        )
    assert first == second and len(set(first.values())) == 2
    with torch.no_grad():
        assert torch.equal(material.host(ids).logits, plain), "an arm changed the host"


def test_what_does_not_fit_is_said_with_what_would(here: Path) -> None:
    words = ["model.layers=all", "batch_size=64", "data.length=4", "data.validation_rows=1"]
    run = load_run(RECIPES, "toroidal_lm", None, [*SETTINGS, *words])
    material = load_language_material(run)
    assert advice(run, material, 10**9) is None
    tight = advice(run, material, 1_000_000)
    assert tight is not None and tight.startswith(
        "the tuning is estimated at 0.0 GB, the GPU has 0.0 GB; trained="
    )
    assert "batch_size=" in tight and "would fit" in tight and "\n" not in tight
    none = advice(run, material, 100_000)  # less than the host's weights
    assert none is not None and none.endswith("no setting of trained, checkpointing and batch_size fits")


def test_perplexity_does_not_depend_on_batches_or_pads(here: Path) -> None:
    """64, 256 or 1,024 padded tokens a batch: the numbers agree, unlike those of the source documents."""
    run = load_run(RECIPES, "toroidal_lm", None, SETTINGS)
    material = load_language_material(run)
    found = []
    for tokens in (16, 64, 1024):
        batched = replace(material, scoring=replace(material.scoring, tokens_per_batch=tokens))
        found.append([each.overall() for each in batched.perplexities(material.host).values()])
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-6)


def test_bad_input_is_refused_before_training(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_training: None
) -> None:
    cases = {
        "host=null": "host: expected a folder, a .gguf file or a hub name of a language model, got none",
        "host=./nowhere": "nowhere: no such model folder",
        "data.train=[nowhere.txt]": "nowhere.txt",
        "model.layers=[7]": "layers: expected numbers in 0 to 2, or from -3 for the last ones, got 7",
        "model.torus.depth=3": "depth: expected one of 1, 2, 4 for heads of 8 channels, got 3",
        "model.torus.dept=2": "unknown key 'model.torus.dept', did you mean 'model.torus.depth'?",
        "batch_size=4000": "data.train: expected at least 4004 rows of 16 tokens",
    }
    for index, (setting, words) in enumerate(cases.items()):
        output = tmp_path / f"bad{index}"
        assert train(["toroidal_lm", *SETTINGS, setting, "--output", str(output)]) == 2, setting
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("stratcore: ") and words in error, error
