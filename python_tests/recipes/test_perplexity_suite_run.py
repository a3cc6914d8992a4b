"""Legend: N texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from python_tests.huggingface.hosts import host
from python_tests.recipes.small_language import SETTINGS, save_small_language
from stratcore.cli import train
from stratcore.data.perplexity import TextPerplexity
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.recipes.perplexity_suite_run import load_language_model, paired_rise

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_small_language(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_that_training_kept_is_scored_beside_its_host(here: Path) -> None:
    words = [
        "arms=[toroidal]",
        "seeds=[3]",
        "save_models=true",
        "data.evaluation=[other.txt]",
        "stage.steps=6",
    ]
    assert train(["toroidal_lm", *SETTINGS, *words, "data.evaluation_rows=null", "--output", "run"]) == 0
    kept = "run/models/toroidal-3"
    settings = [f"models=[tiny,{kept}]", "sets=[other.txt,lines.txt]", "window=16", "device=cpu"]
    assert train(["perplexity_suite", *settings, "--output", "suite"]) == 0
    suite = json.loads((here / "suite/results.json").read_text())
    run = json.loads((here / "run/results.json").read_text())
    found = {(row["set"], row["model"]): row for row in suite["trials"]}
    assert len(found) == 4 and (here / "suite/report.html").stat().st_size > 100
    assert found["other.txt", "tiny"]["perplexity"] == pytest.approx(run["host"]["perplexity"], rel=1e-6)
    own = found["other.txt", kept]
    assert own["perplexity"] == pytest.approx(run["trials"][0]["perplexity"], rel=1e-6)
    ratio = own["perplexity"] / found["other.txt", "tiny"]["perplexity"]
    assert own["rise"]["value"] == pytest.approx(100 * (ratio - 1), rel=1e-6)
    assert own["rise"]["low"] < own["rise"]["value"] < own["rise"]["high"]
    characters = sum(map(len, (here / "other.txt").read_text().splitlines()))
    bits = own["scored_tokens"] * math.log2(own["perplexity"]) / characters
    assert own["bits_per_character"] == pytest.approx(bits, rel=1e-9)


def test_a_toroidal_folder_is_loaded_as_one(here: Path) -> None:
    own = ToroidalLM(host("llama"), ToroidalLMOptions())
    own.save_pretrained(here / "tiny")
    model, tokenizer = load_language_model("tiny", "float32")
    assert isinstance(model, ToroidalLM) and tokenizer("w1")["input_ids"]


def test_a_rise_is_paired_by_text_and_weighted_by_token() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(1, 50, 200)
    base = rng.normal(3, 1, 200) * count

    def scored(sums: np.ndarray) -> TextPerplexity:
        return TextPerplexity(negative_log_likelihood=sums, scored=count, token_count=count + 1)

    shift = 0.02 + rng.normal(0, 0.01, 200)
    found = paired_rise(scored(base), scored(base + shift * count), 0)
    assert found["value"] == pytest.approx(100 * math.expm1((shift * count).sum() / count.sum()))
    assert 1.6 < found["low"] < 2.02 < found["high"] < 2.5  # the spread among texts cancels
    assert paired_rise(scored(base), scored(base), 0) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_nothing_to_score_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, words in (
        ("sets=[other.txt]", "models: expected at least one name, got none"),
        ("models=[tiny]", "sets: expected at least one name, got none"),
    ):
        assert train(["perplexity_suite", setting, "--output", "bad"]) == 2
        assert words in capsys.readouterr().err
