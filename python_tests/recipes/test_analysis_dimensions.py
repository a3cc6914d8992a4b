"""Dimensions of an analysis: which rows, which estimators, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.recipes.analysis_dimensions import stratum_estimates


def cloud(rows=300, seed=0):
    return np.pad(np.random.default_rng(seed).normal(size=(rows, 3)), ((0, 0), (0, 4)))


def test_all_rows_then_strata_linear_then_local():
    strata = np.repeat(["S0", "S1"], 150)
    found = stratum_estimates(cloud(), strata, variance=0.75, calibrated=False, seed=0)
    names = ["PCA, 75 % of variance", "effective rank", "participation ratio", "Levina-Bickel", "TwoNN"]
    assert [(row["stratum"], row["estimator"]) for row in found] == [
        (stratum, name) for stratum in ("all rows", "S0", "S1") for name in names
    ]
    assert [row["num_rows"] for row in found[::5]] == [300, 150, 150]
    for row in found:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["value"] == pytest.approx(3, abs=0.8)


def test_a_stratum_too_small_says_why():
    strata = np.array(["S0"] * 295 + ["S1"] * 5)
    found = stratum_estimates(cloud(), strata, variance=0.5, calibrated=False, seed=0)
    small = {row["estimator"]: row for row in found if row["stratum"] == "S1"}
    assert small["Levina-Bickel"]["value"] is None and small["Levina-Bickel"]["warning"]


@pytest.mark.slow
def test_calibration_stands_before_the_raw_estimate():
    found = stratum_estimates(cloud(), np.full(300, "S0"), variance=0.75, calibrated=True, seed=0)
    names = [row["estimator"] for row in found]
    assert names[3:5] == ["Levina-Bickel, calibrated", "Levina-Bickel"]
    assert len(found) == 6
