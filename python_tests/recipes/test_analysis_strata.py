"""The strata of an analysis: given or chosen, fitted to a draw, compared with domains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from python_tests.recipes.small_analysis import ROWS, run
from stratcore.analysis import Resampling
from stratcore.recipes.analysis import StrataOptions
from stratcore.recipes.analysis_rows import load_analyzed_rows
from stratcore.recipes.analysis_strata import find_strata

FEW = Resampling(num_resamples=30)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return load_analyzed_rows(run(folder), folder, "cpu")


def test_a_given_number(rows):
    found = find_strata(rows, StrataOptions(method="kmeans", number=2), 0, FEW)
    first = found.labels[: ROWS // 2]
    assert set(first) == {first[0]} and set(found.labels[ROWS // 2 :]) == {"S0", "S1"} - {first[0]}
    result = found.result
    assert result["criterion"] is None and result["choice"] == [] and result["method"] == "kmeans"
    assert result["silhouette"] > 0.5 and result["stability"] == pytest.approx(1.0)
    assert result["domains"] == ["both", "cloud", "flat"] and result["strata"] == ["S0", "S1"]
    assert found.notes == ()


def test_a_chosen_number_and_components(rows):
    options = StrataOptions(method="gaussian_mixture", candidates=(1, 2, 3, 500), components=2)
    found = find_strata(rows, options, 0, FEW)
    assert [each["num_strata"] for each in found.result["choice"]] == [1, 2, 3]
    assert found.result["num_strata"] >= 2
    assert found.result["criterion"] == "held-out likelihood, nats a row"
    assert found.notes[0].startswith("Strata are looked for in 2 principal components (")


def test_rows_beyond_the_draw_are_assigned(rows):
    options = StrataOptions(method="kmeans", number=2, most=40)
    found = find_strata(rows, options, 0, FEW)
    whole = find_strata(rows, replace(options, most=3000), 0, FEW)
    assert len(found.labels) == ROWS
    agree = (found.labels == whole.labels).mean()
    assert agree in (0.0, 1.0)
    assert "Strata are fitted to 40 rows drawn at random" in found.notes[-1]


def test_one_stratum_is_an_answer(rows):
    found = find_strata(rows, StrataOptions(method="kmeans", number=1), 0, FEW)
    assert set(found.labels) == {"S0"}
    assert found.result["stability"] is None and found.result["agreement"] is None
    assert np.isnan(found.result["silhouette"])
