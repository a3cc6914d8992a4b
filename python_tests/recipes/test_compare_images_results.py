from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stratcore.recipes.compare_images import CompareImagesRun, compare_images
from stratcore.recipes.compare_images_results import answer, compare, figures, summarize, tables

SEEDS = tuple(range(8))


def run(**settings: Any) -> CompareImagesRun:
    arguments = {"arms": ("whole", "plain", "cv"), "seeds": SEEDS, "strangers": ("digits",)} | settings
    return replace(compare_images(), **arguments)


def trial(arm: str, seed: int, accuracy: float) -> dict[str, Any]:
    scores = {kind: 0.5 + 0.01 * seed for kind in ("softmax", "energy", "neighbor")}
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy,
        "nll": 0.2,
        "calibration_error": 0.01,
        "neighbor_accuracy": 0.9,
        "auroc": {"digits": scores},
        "curve": [{"step": 1, "accuracy": 0.5}, {"step": 2, "accuracy": accuracy}],
        "parameters": 100,
        "fit_seconds": 2.0,
        "images_per_second": 1000.0,
    } | ({} if arm == "plain" else {"geometric_accuracy": accuracy - 0.01})


def trials() -> list[dict[str, Any]]:
    """Plain is behind by 2 points less a tenth a seed; the CV term does nothing."""
    found = []
    for seed in reversed(SEEDS):
        whole = 0.9 + 0.002 * (seed % 3)
        found += [
            trial("whole", seed, whole),
            trial("plain", seed, whole - 0.02 + 0.001 * seed),
            trial("cv", seed, whole + 0.0001 * (-1) ** seed),
        ]
    return found


def test_differences_by_hand() -> None:
    plain, cv = compare(run(), trials())
    assert plain["difference"]["value"] == pytest.approx(-2 + 0.1 * 3.5)
    assert plain["difference"]["p_value"] == pytest.approx(2 / 2**8) and plain["p_holm"] == pytest.approx(
        4 / 2**8
    )
    assert not plain["non_inferior"]
    assert cv["difference"]["value"] == pytest.approx(0, abs=1e-9) and cv["non_inferior"]


def test_means_and_tables() -> None:
    own = run()
    summary = summarize(own, trials())
    whole, plain, _ = summary
    assert whole["accuracy"].value == pytest.approx(90.175)
    assert whole["geometric_accuracy"].value == pytest.approx(89.175) and "geometric_accuracy" not in plain
    assert whole["auroc"]["digits"]["energy"].value == pytest.approx(0.535)
    accuracies, differences, strangers = tables(own, summary, compare(own, trials()))
    assert accuracies.rows[1][0] == "plain vision transformer" and accuracies.rows[1][2] == "none"
    assert differences.rows[0][:2] == ["plain vision transformer", "whole model"]
    assert differences.rows[0][4:] == ["0.0156", "not shown"]
    assert strangers.head == ["arm", "digits, softmax", "digits, energy", "digits, neighbor"]
    assert "but 19" in strangers.note
    alone = replace(own, arms=("whole",), strangers=())
    assert len(tables(alone, summarize(alone, trials()), [])) == 1


def test_words_and_figures() -> None:
    own = run()
    comparisons = compare(own, trials())
    words = answer(own, summarize(own, trials()), comparisons)
    assert words[0].startswith("Whole model: 90.1")
    assert words[1].startswith("Plain vision transformer: -1.65 [")
    assert words[1].endswith("points against the whole model: beyond chance (Holm, 5 %).")
    assert words[2].endswith("points against the whole model: not beyond chance.")
    assert set(figures(own, trials(), comparisons)) == {"curves", "differences"}
    assert set(figures(replace(own, arms=("whole",)), trials(), [])) == {"curves"}
