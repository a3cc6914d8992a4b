"""The page of docs/classifiers.md is what the committed results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import document_classifiers as document

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / document.TARGET).read_text(encoding="utf-8") == document.page()


def test_its_words_are_true_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = document.load("compare_classifiers.json")
    run = document.run_of(results)
    found = document.compare(run, document.tuned(run, results["trials"]))
    blocks = [row for row in found if not row["arm"].startswith("geometric")]
    assert all(abs(row["difference"]["value"]) < 0.2 and row["non_inferior"] for row in blocks)
    costs = [-row["difference"]["value"] for row in found if row["arm"].startswith("geometric")]
    assert [round(cost, 1) for cost in costs] == [1.8, 1.4]


def test_words_on_the_artefact_are_true_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name, rise, spread in (("distilbert", 10, 0.6), ("minilm", 11, 0.6)):
        trials = document.load(f"artefact_{name}.json")["trials"]

        def mean(trials: list[dict[str, Any]] = trials, **key: object) -> float:
            own = [row["accuracy"] for row in trials if key.items() <= row.items()]
            return 100 * sum(own) / len(own)

        source = trials[0]["queue"]
        by_place = [mean(queue=source, shared=True, place=place) for place in range(4)]
        assert by_place[0] < by_place[1] < by_place[2] < by_place[3]
        assert by_place[3] - by_place[0] == pytest.approx(rise, abs=0.6)
        arms = source.split(", ")
        shared = [mean(arm=arm, shared=True) for arm in arms]
        assert max(shared) - min(shared) < spread + 0.05
        fresh = [mean(arm=arm, shared=False) for arm in arms]
        assert max(fresh) - fresh[0] < 0.25


def test_words_on_made_up_words_are_true_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = document.load("token_strata.json")
    run = document.run_of(results)
    trials = document.tuned(run, results["trials"])
    arms = {row["arm"]: row for row in document.summarize_trials(run, trials)}
    assert all(3 <= 90 - row["accuracy"].value <= 5 for row in arms.values())
    found = {(row["arm"], row["control"]): row for row in document.compare(run, trials)}
    for control in ("plain", "layer_processing/mlp"):
        row = found["layer_processing", control]
        assert row["difference"]["p_value"] == 2 / 2**8 and row["p_holm"] > 0.05
        assert (
            arms["layer_processing"]["calibration_error"].value
            < 0.5 * arms[control]["calibration_error"].value
        )
    others = [row for row in found.values() if row["arm"] != "layer_processing"]
    assert min(row["p_holm"] for row in others) > 0.5
    for values in document.curves(run, trials).values():
        assert 0.3 <= values[-1] - values[-2] <= 1.5


def test_words_on_the_longer_run_are_true_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = document.load("../cpu/token_strata_longer.json")
    run = document.run_of(results)
    broad = document.run_of(document.load("token_strata.json"))
    assert not set(run.seeds) & set(broad.seeds) and results["configuration"]["stage"]["steps"] == 9000
    rows = document.compare(run, results["trials"])
    found = {row["control"]: row for row in rows if row["arm"] == "layer_processing"}
    assert all(row["p_holm"] > 0.05 for row in found.values())
    for control in ("plain", "layer_processing/frozen"):
        assert found[control]["difference"]["p_value"] > 0.1
    (perceptron,) = [row for row in rows if row["arm"] == "layer_processing/mlp"]
    assert perceptron["difference"]["value"] < 0
    gains = [values[-1] - values[-2] for values in document.curves(run, results["trials"]).values()]
    assert 0.15 < min(gains) and max(gains) < 0.55
