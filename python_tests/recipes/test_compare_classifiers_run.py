from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from python_tests.recipes.small_texts import SETTINGS, save_small_texts, small_comparison, small_texts
from stratcore.cli import train
from stratcore.recipes.compare_classifiers_data import prepare
from stratcore.recipes.compare_classifiers_run import Trial, build, calibration_error, carry_out
from stratcore.recipes.trials import TrialLog


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    save_small_texts(folder)
    return folder


@pytest.fixture
def here(texts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(texts)
    return texts


def test_whole_run_and_resume(here: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "variants=[stratified_moe]", "learning_rates=[1e-3,1e-2]"]
    output = ["--output", str(tmp_path / "run")]
    assert train(["compare_classifiers", *settings, *output]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    arms = ["plain", "stratified_moe", "stratified_moe/mlp", "stratified_moe/frozen"]
    arms += ["geometric_regularization", "geometric_regularization_source"]
    assert [row["arm"] for row in results["summary"]] == arms
    assert len(results["trials"]) == len(arms) * 2 * 2
    assert [(row["arm"], row["control"]) for row in results["comparisons"]][:3] == [
        ("stratified_moe", "plain"), ("stratified_moe", "stratified_moe/mlp"),
        ("stratified_moe", "stratified_moe/frozen"),
    ]  # fmt: skip
    routed = results["summary"][1]["routing"]
    assert set(routed) == {
        "nmi_domain",
        "nmi_domain_floor",
        "nmi_label",
        "nmi_label_floor",
        "load_variation",
        "load_variation_of_choices",
        "entropy",
    }
    assert results["summary"][0]["routing"] is None
    sizes = {row["arm"]: row["added_parameters"] for row in results["summary"]}
    assert sizes["plain"] == 0 and abs(sizes["stratified_moe/mlp"] / sizes["stratified_moe"] - 1) < 0.01
    assert sizes["stratified_moe/frozen"] == sizes["stratified_moe"]
    assert all(len(row["curve"]) == 2 for row in results["trials"])
    for name in ("report.html", "table.md", "plots/differences.png", "plots/curves.png"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    page = html.unescape((tmp_path / "run/report.html").read_text())
    found = re.findall(r"<figcaption><b>(.+?)[.]</b> (.+?)</figcaption>", page)
    assert [title for title, _ in found] == [
        "Differences of held-out accuracy",
        "Validation accuracy in training",
    ]
    assert all("in points" in text and "2 seeds" in text for _, text in found)
    assert "interval of 95 %" in found[0][1] and "left edge, -0.5," in found[0][1]
    # A run that stopped after five trials goes on and ends the same.
    lines = (tmp_path / "run/trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/trials.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    assert train(["compare_classifiers", *settings, *output, "--resume"]) == 0
    again = json.loads((tmp_path / "run/results.json").read_text())
    keys = ("arm", "seed", "accuracy", "nll", "learning_rate")
    assert [[row[k] for k in keys] for row in again["trials"]] == [
        [row[k] for k in keys] for row in results["trials"]
    ]


def test_order_of_arms_changes_nothing(here: Path, tmp_path: Path) -> None:
    run = small_comparison("stage.steps=2")
    material = prepare(run, tmp_path)
    arms = ("plain", "stratified_attention", "token_routing/mlp", "layer_processing")

    def scores(order: tuple[str, ...]) -> dict[str, tuple[float, float]]:
        found = {}
        for arm in order:
            trial = Trial(arm=arm, seed=3, learning_rate=1e-3)
            row = carry_out(run, material, trial)
            found[arm] = (row["nll"], row["validation_nll"])
        return found

    first = scores(arms)
    assert len({value for value in first.values()}) == len(arms)
    for order in itertools.permutations(arms):
        assert scores(order) == first, order


def test_every_arm_starts_as_the_plain_one(here: Path, tmp_path: Path) -> None:
    run = small_comparison()
    material = prepare(run, tmp_path)
    batch = material.tokens.batch(np.arange(5), torch.device("cpu"))
    with torch.no_grad():
        plain = build(run, material, "plain", 4)(**batch.inputs()).logits
        for arm in run.arms():
            assert torch.equal(build(run, material, arm, 4)(**batch.inputs()).logits, plain), arm
    assert not torch.equal(
        build(run, material, "plain", 5).classifier.weight, build(run, material, "plain", 4).classifier.weight
    )


def test_workers_change_nothing(here: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, "variants=[token_routing]", "matched_controls=false", "negative_controls=false"]
    found = []
    for workers in (1, 2):
        output = tmp_path / f"run{workers}"
        assert train(["compare_classifiers", *settings, f"workers={workers}", "--output", str(output)]) == 0
        found.append([(r["arm"], r["seed"], r["nll"]) for r in TrialLog.open(output, True).rows])
    assert found[0] == found[1] and len(found[0]) == 4


def test_bad_input_is_refused_before_training(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = small_texts()
    for row in rows:
        row["domain"] = "film" if row["label"] == "positive" else "food"
    rows[0]["domain"], rows[1]["domain"] = "film", "food"
    (tmp_path / "confounded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cases = {
        f"data.sets=[{tmp_path}/confounded.jsonl]": "different texts of label",
        "data.sets=[nowhere.csv]": "nowhere.csv",
        "encoder=./nowhere": "encoder './nowhere': no tokenizer is to be had",
        "data.split.test_rows=300": "are wanted (test 150, validation 5)",
        "batch_size=4000": "batch_size: expected at most the 340 training rows, got 4000",
    }
    for index, (setting, words) in enumerate(cases.items()):
        output = tmp_path / f"bad{index}"
        assert train(["compare_classifiers", *SETTINGS, setting, "--output", str(output)]) == 2, setting
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("stratcore: ") and words in error, error


def test_calibration_error() -> None:
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, np.array([0, 0, 0, 0])) == 0
    assert calibration_error(sure, np.array([0, 0, 1, 1])) == 0.5
    half = np.array([[0.75, 0.25]] * 4 + [[0.4, 0.6]] * 5)
    assert calibration_error(half, np.array([0, 0, 0, 1, 1, 1, 1, 0, 0])) == pytest.approx(0)
