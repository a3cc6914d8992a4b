from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stratcore.recipes import compare_classifiers
from stratcore.recipes.compare_classifiers_results import answer, compare, summarize, tables, tuned

RUN = replace(
    compare_classifiers(), variants=("token_routing",), negative_controls=False, seeds=tuple(range(12)),
    learning_rates=(1e-4, 1e-3),
)  # fmt: skip
GAIN = {"plain": 0.0, "token_routing": 0.01, "token_routing/mlp": 0.01, "token_routing/frozen": 0.004}


def trials(gain: dict[str, float] = GAIN) -> list[dict[str, Any]]:
    """Accuracy: .8 + seed's luck + gain of the arm; the second learning rate is better on validation rows."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in RUN.seeds:
        luck = 0.02 * rng.standard_normal()
        for arm in RUN.arms():
            for rate in RUN.learning_rates:
                accuracy = 0.8 + luck + gain[arm] + 0.0005 * rng.standard_normal() - (rate < 1e-3) * 0.1
                rows.append(
                    {
                        "arm": arm, "seed": seed, "learning_rate": rate, "accuracy": accuracy,
                        "accuracy_by_domain": {"film": accuracy, "food": accuracy - 0.1}, "nll": 0.4,
                        "validation_accuracy": 0.5 if rate < 1e-3 else 0.6, "validation_nll": 0.3,
                        "calibration_error": 0.02, "added_parameters": 100, "parameters": 1000,
                        "fit_seconds": 2.0, "curve": [{"step": 1, "accuracy": 0.5, "nll": 0.3}],
                        "routing": {"nmi_domain": 0.5, "nmi_domain_floor": 0.01, "nmi_label": 0.0,
                                    "nmi_label_floor": 0.01, "load_variation": 0.2,
                                    "load_variation_of_choices": 0.3, "entropy": 0.7}
                        if arm == "token_routing" else None,
                    }
                )  # fmt: skip
    return rows


def test_the_rate_is_chosen_by_validation_alone() -> None:
    rows = trials()
    chosen = tuned(RUN, rows)
    assert len(chosen) == 4 * 12 and {row["learning_rate"] for row in chosen} == {1e-3}
    for row in rows:
        row["validation_accuracy"] = 0.5
        row["validation_nll"] = 0.2 if row["learning_rate"] < 1e-3 else 0.3
    assert {row["learning_rate"] for row in tuned(RUN, rows)} == {1e-4}


def test_differences_are_paired_and_in_points() -> None:
    found = {(row["arm"], row["control"]): row for row in compare(RUN, tuned(RUN, trials()))}
    gained = found["token_routing", "plain"]
    assert gained["difference"]["value"] == pytest.approx(1.0, abs=0.1)
    assert gained["difference"]["high"] - gained["difference"]["low"] < 0.2  # the seeds' luck has gone
    assert gained["difference"]["p_value"] == 2 / 2**12 and gained["p_holm"] < 0.05 and gained["non_inferior"]
    same = found["token_routing", "token_routing/mlp"]
    assert abs(same["difference"]["value"]) < 0.1 and same["p_holm"] > 0.05 and same["non_inferior"]
    worse = compare(RUN, tuned(RUN, trials({**GAIN, "token_routing": -0.01})))[0]
    assert worse["arm"] == "token_routing" and not worse["non_inferior"]


def test_summary_tables_and_words() -> None:
    chosen = tuned(RUN, trials())
    summary, comparisons = summarize(RUN, chosen), compare(RUN, chosen)
    assert [row["arm"] for row in summary] == list(RUN.arms())
    assert summary[0]["accuracy_by_domain"]["film"].value - summary[0]["accuracy_by_domain"][
        "food"
    ].value == (pytest.approx(10.0))
    accuracy, differences, routing = tables(RUN, summary, comparisons)
    assert len(accuracy.rows) == 4 and accuracy.rows[0][0] == "plain"
    assert [row[1] for row in differences.rows][:3] == ["plain", "matched perceptron", "frozen random router"]
    assert [row[0] for row in routing.rows] == ["token routing"] and routing.rows[0][1] == "0.500"
    plain, variant = answer(RUN, summary, comparisons)
    assert plain.startswith("Plain encoder: 79.")
    assert variant.endswith("it beats plain, frozen random router and loses to none.")
    assert variant.startswith("Token routing: +0.97 [+0.9")
