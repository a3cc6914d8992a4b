from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from stratcore.recipes import toroidal_lm
from stratcore.recipes.toroidal_lm_results import answer, compare, summarize, tables

RUN = replace(toroidal_lm(), arms=("toroidal", "lambda_0"))
HOST = {"nll": 2.0, "perplexity": math.exp(2.0), "by_set": {"a": math.exp(2.0)}}


def trials(torus: float, spread: float = 0.01) -> list[dict[str, Any]]:
    """The control at 1.9 nats with the same noise a seed, the torus that far from it."""
    rows = []
    for seed in RUN.seeds:
        for arm, nll in (("toroidal", 1.9 + torus + 0.0001 * seed), ("lambda_0", 1.9)):
            value = nll + spread * seed
            rows.append(
                {"arm": arm, "seed": seed, "nll": value, "perplexity": math.exp(value), "start": math.exp(2.0),
                 "by_set": {"a": math.exp(value)}, "branch_parameters": 5, "trainable": 7, "seconds": 1.0,
                 "peak_bytes": None, "estimated_bytes": 2**20}
            )  # fmt: skip
    return rows


def test_differences_are_of_log_perplexity_and_paired() -> None:
    found = compare(RUN, HOST, trials(0.004))
    first = found[0]
    assert (first["arm"], first["control"]) == ("toroidal", "lambda_0")
    assert first["difference"]["value"] == pytest.approx(100 * math.expm1(0.004 + 0.00025))
    assert first["difference"]["high"] < 0.46 and first["within_margin"]  # the noise of seeds cancels
    assert not compare(RUN, HOST, trials(0.006))[0]["within_margin"]


def test_a_significant_rise_is_told_as_one() -> None:
    rows = trials(0.004)
    comparisons, summary = compare(RUN, HOST, rows), summarize(RUN, HOST, rows)
    assert comparisons[0]["p_holm"] == pytest.approx(3 * 2 / 2**6)  # three comparisons, six seeds
    assert any("not told apart from lambda_0" in sentence for sentence in answer(RUN, summary, comparisons))
    alone = replace(RUN, seeds=tuple(range(8)))
    wide = [
        {**row, "seed": row["seed"] + shift} for shift in (0, 6) for row in rows if row["seed"] + shift < 8
    ]
    wide = list({(row["arm"], row["seed"]): row for row in wide}.values())
    sure = compare(alone, HOST, wide)
    assert any("toroidal is above lambda_0" in s for s in answer(alone, summarize(alone, HOST, wide), sure))


def test_tables_have_the_host_first_and_a_row_an_arm() -> None:
    rows = trials(-0.004)
    first, second = tables(RUN, summarize(RUN, HOST, rows), compare(RUN, HOST, rows))
    assert [row[0] for row in first.rows] == [
        "the host, untouched",
        "gated torus beside the host's attention",
        "gated torus, lambda frozen at 0",
    ]
    assert first.rows[0][1] == f"{math.exp(2):.4f}" and all(len(row) == len(first.head) for row in first.rows)
    assert [row[:2] for row in second.rows] == [
        ["toroidal", "lambda_0"],
        ["toroidal", "host"],
        ["lambda_0", "host"],
    ]
