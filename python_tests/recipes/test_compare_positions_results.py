"""What is made of trials that are written down here, so that every number is known."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from stratcore.recipes import ComparePositionsRun, compare_positions
from stratcore.recipes.compare_positions import Setting
from stratcore.recipes.compare_positions_results import (
    answer,
    claims,
    compare,
    figures,
    summarize,
    tables,
    tuned,
)

# Mean test loss by task and arm; the torus is 40 % below the best rival, 10 % below it, above it, beside it.
LOSSES = {
    "ring_copy": {"rope": 1.0, "t5": 2.0, "torus": 0.6},
    "next_mark": {"rope": 2.0, "t5": 1.0, "torus": 0.9},
    "ring_copy_seam": {"rope": 1.0, "t5": 3.0, "torus": 1.5},
    "day_week": {"rope": 1.0, "t5": 2.0, "torus": 0.995},
}
SPREAD = np.exp(0.02 * np.array([-1.0, 0.5, 1.0, -0.5, 0.3, -0.3, 0.2, -0.2]))
GOOD, BAD = 3e-3, 1e-3


def small() -> ComparePositionsRun:
    return replace(
        compare_positions(),
        tasks=tuple(LOSSES),
        arms=("rope", "t5", "torus"),
        rope_bases=(10_000.0, 10.0),
        slope_starts=(None, 0.1),
    )


def written(run: ComparePositionsRun) -> list[dict[str, Any]]:
    """Trials of all settings; the best have the higher rate, RoPE its base 10, the torus its slope .1."""
    rows = []
    for task in run.tasks:
        for arm, mean in LOSSES[task].items():
            for setting in run.settings_of(task, arm):
                worse = 1 + (setting.learning_rate == BAD) + (arm == "rope" and setting.rope_base != 10)
                worse += arm == "torus" and setting.slope != 0.1
                for seed in run.seeds:
                    # The seeds' spread is the torus's alone, so ratios differ from seed to seed.
                    loss = worse * mean * (SPREAD[seed] if arm == "torus" else 1.0)
                    curve = [{"step": step, "loss": loss * 1000 / step} for step in (200, 800, 1000)]
                    rows.append(
                        {"task": task, "arm": arm, "seed": seed, **asdict(setting), "losses": {"test": loss},
                         "validation_loss": loss, "curve": curve, "parameters": 100, "position_parameters": 2,
                         "fit_seconds": 1.5}
                    )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    run = small()
    trials = written(run)
    choices = tuned(run, trials)
    summary = summarize(run, trials, choices, dict.fromkeys(run.tasks, 0.0) | {"day_week": 0.9})
    comparisons = compare(run, trials, choices)
    return {"run": run, "trials": trials, "choices": choices, "summary": summary, "comparisons": comparisons,
            "claims": claims(run, summary, comparisons)}  # fmt: skip


def test_settings_are_those_of_the_least_validation_loss(found: dict[str, Any]) -> None:
    for (_, arm), setting in found["choices"].items():
        base, slope = (10.0 if arm == "rope" else 10_000.0), (0.1 if arm == "torus" else None)
        assert setting == Setting(learning_rate=GOOD, rope_base=base, slope=slope)
    # Seeds beyond the tuning ones decide nothing.
    run, trials = found["run"], [dict(row) for row in found["trials"]]
    for row in trials:
        if row["seed"] >= run.tuning_seeds and row["learning_rate"] == BAD:
            row["validation_loss"] = 0.0
    assert tuned(run, trials) == found["choices"]


def test_means_and_falls(found: dict[str, Any]) -> None:
    rows = {(row["task"], row["arm"]): row for row in found["summary"]}
    for (task, arm), row in rows.items():
        assert row["losses"]["test"].value == pytest.approx(LOSSES[task][arm], rel=1e-3)
        assert row["last_fall"] == pytest.approx(0.2)  # 1000 / 800 to 1000 / 1000


def test_ratios_are_geometric_means_of_pairs(found: dict[str, Any]) -> None:
    rows = {(row["task"], row["arm"]): row for row in found["comparisons"]}
    assert len(rows) == 8
    spread = math.exp(np.log(SPREAD).mean())
    for (task, arm), row in rows.items():
        ratio = LOSSES[task]["torus"] / LOSSES[task][arm]
        assert row["ratio"]["value"] == pytest.approx(ratio * spread)
        assert row["ratio"]["low"] < row["ratio"]["value"] < row["ratio"]["high"]
        if (task, arm) != (
            "day_week",
            "rope",
        ):  # all eight differences have one sign: 2 of 2^8 are as far from 0
            assert row["log_ratio"]["p_value"] == 2 / 2**8
            assert row["p_holm"] == pytest.approx(8 * 2 / 2**8)
        difference = LOSSES[task]["torus"] * SPREAD.mean() - LOSSES[task][arm]
        assert row["difference"]["value"] == pytest.approx(difference)


def test_claims_are_against_the_best_rival_and_hold_against_all(found: dict[str, Any]) -> None:
    rows = {row["task"]: row for row in found["claims"]}
    assert {task: row["best_rival"] for task, row in rows.items()} == {
        "ring_copy": "rope", "next_mark": "t5", "ring_copy_seam": "rope", "day_week": "rope"
    }  # fmt: skip
    assert {task: row["verdict"] for task, row in rows.items()} == {
        "ring_copy": "yes", "next_mark": "lower, by less", "ring_copy_seam": "higher", "day_week": "not shown"
    }  # fmt: skip
    assert rows["ring_copy"]["p_value_holm"] == pytest.approx(4 * 2 / 2**8)
    assert rows["day_week"]["p_value"] > 0.1  # although T5 is beaten on every seed
    assert rows["ring_copy_seam"]["p_value"] == 1.0
    assert rows["ring_copy_seam"]["p_rival_lower_holm"] == pytest.approx(4 * 2 / 2**8)


def test_too_few_seeds_show_nothing() -> None:
    run = replace(small(), seeds=(0, 1, 2, 3), tasks=("ring_copy",))
    trials = written(run)
    choices = tuned(run, trials)
    summary = summarize(run, trials, choices, dict.fromkeys(run.tasks))
    rows = claims(run, summary, compare(run, trials, choices))
    assert {row["verdict"] for row in rows} == {"not shown"}


def test_losses_of_zero_have_a_ratio(found: dict[str, Any]) -> None:
    trials = [
        dict(row, losses={"test": 0.0} if row["arm"] == "torus" else row["losses"]) for row in found["trials"]
    ]
    rows = compare(found["run"], trials, found["choices"])
    assert rows[0]["ratio"]["value"] == pytest.approx(1e-12)


def test_words_tables_and_figures(found: dict[str, Any]) -> None:
    run = found["run"]
    sentences = answer(run, found["claims"])
    assert "Yes, by 20% or more: 0.6" in sentences[0] and "No, it is higher" in sentences[2]
    pages = tables(run, found["summary"], found["comparisons"], found["claims"])
    assert len(pages) == 1 + len(run.tasks)
    assert [row[0] for row in pages[1].rows] == ["RoPE", "T5 bias", "torus"]
    assert all(len(row) == len(page.head) for page in pages for row in page.rows)
    assert "above floor" not in pages[1].head and "above floor" in pages[4].head and "0.1" in pages[4].rows[0]
    assert [row[-4] for row in pages[1].rows] == ["0.003, base 10", "0.003", "0.003, slopes 0.1"]
    drawn = figures(run, found["trials"], found["choices"], found["comparisons"])
    assert set(drawn) == {"ratios", *(f"curves_{task}" for task in run.tasks)}
