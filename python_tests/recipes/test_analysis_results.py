"""Parts of an analysis's results: agreement, experts, perplexity; what is unknown is None."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from python_tests.recipes.small_analysis import ROWS, run
from stratcore.analysis import Resampling
from stratcore.recipes.analysis_results import (
    agreement_results,
    data_result,
    experts_result,
    perplexity_result,
)
from stratcore.recipes.analysis_rows import ExpertRows, load_analyzed_rows

FEW = Resampling(num_resamples=30)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return load_analyzed_rows(run(folder), folder, "cpu")


STRATA = np.repeat(["S0", "S1"], ROWS // 2)


def test_data(rows):
    result = data_result(rows)
    assert result["num_duplicates"] == 2 and result["num_analyzed_features"] == 8
    assert result["domains"][0]["mean_tokens"] == pytest.approx(rows.tokens[rows.domain == "both"].mean())
    bare = data_result(replace(rows, domain=None, tokens=None))
    assert bare["domains"] == []


def test_agreement_needs_domains_and_two_labels(rows):
    assert agreement_results(STRATA, None, None, FEW) == (None, None)
    assert agreement_results(np.full(ROWS, "S0"), rows.domain, rows.tokens, FEW) == (None, None)
    overall, within = agreement_results(STRATA, rows.domain, rows.tokens, FEW)
    assert overall.ari.value > 0.5 and within.ari.value > 0.5
    assert agreement_results(STRATA, rows.domain, None, FEW)[1] is None


def test_experts_are_judged_on_held_out_rows(rows):
    gate = np.tile([0.9, 0.1], (ROWS, 1))
    gate[ROWS // 2 :] = [0.1, 0.9]
    experts = ExpertRows(
        gate=gate,
        chosen=gate.argmax(axis=1),
        levels=(2, 6),
        held_out=np.arange(ROWS) % 3 == 0,
        atoms=np.random.default_rng(0).normal(size=(2, 8, 12)),
        energy=np.ones((2, 12)),
        checkpoint="checkpoint-6",
    )
    assert experts_result(rows, STRATA, FEW) is None
    result = experts_result(replace(rows, experts=experts), STRATA, FEW)
    assert result["num_held_out"] == 80 and result["uniform_gate"] == 4.0
    assert result["mean_sparsity"] == pytest.approx(4.0, abs=0.05)
    assert [each.weighted_sparsity for each in result["sparsity_by_stratum"]] == pytest.approx([2.4, 5.6])
    assert result["agreement_with_strata"].ari.value == pytest.approx(1.0)
    assert result["agreement_with_domains"].ari.value > 0.5


def test_perplexity_against_groups_and_dimension(rows):
    dimension = np.where(STRATA == "S0", 2.0, 5.0) + np.random.default_rng(0).normal(size=ROWS) / 10
    dimension[7] = np.nan
    assert perplexity_result(replace(rows, perplexity=None), "x", STRATA, dimension, FEW) is None
    result = perplexity_result(rows, "x.npy", STRATA, dimension, FEW)
    assert result["num_rows"] == ROWS - 2  # one text without a score, one row without a dimension
    assert result["by_stratum"].explained.value > 0.05 and result["by_expert"] is None
    assert result["local_dimension"].value > 0.2
    bare = perplexity_result(replace(rows, tokens=None, domain=None), "x.npy", STRATA, dimension, FEW)
    assert bare["by_domain"] is None and bare["local_dimension_given_length"] is None
