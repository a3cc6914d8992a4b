"""Dimensions of an analysis: which rows, which estimators, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.recipes.analysis_dimensions import stratum_dimensions_table


def cloud(rows=300, seed=0):
    return np.pad(np.random.default_rng(seed).normal(size=(rows, 3)), ((0, 0), (0, 4)))


def test_all_rows_then_strata():
    strata = np.repeat(["S0", "S1"], 150)
    found = stratum_dimensions_table(cloud(), strata, variance=0.75, calibrated=False, danco=False, seed=0)
    names = [row.estimator for row in found[: len(found) // 3]]
    assert names[:3] == ["PCA, 75 % of variance", "participation ratio", "effective rank"]
    assert [(row.stratum, row.estimator) for row in found] == [
        (stratum, name) for stratum in ("all rows", "S0", "S1") for name in names
    ]
    assert [row.num_rows for row in found[:: len(names)]] == [300, 150, 150]
    values = {(row.stratum, row.estimator): row.value for row in found}
    for name in ("participation ratio", "TwoNN", "MLE, k = 20"):
        assert values["all rows", name] == pytest.approx(3, abs=0.5)


def test_a_stratum_too_small_says_why():
    strata = np.array(["S0"] * 295 + ["S1"] * 5)
    found = stratum_dimensions_table(cloud(), strata, variance=0.5, calibrated=False, danco=False, seed=0)
    small = {row.estimator: row for row in found if row.stratum == "S1"}
    assert small["MLE, k = 20"].value is None and small["MLE, k = 20"].warning


@pytest.mark.slow
def test_calibration_stands_after_the_linear_ones():
    found = stratum_dimensions_table(
        cloud(), np.full(300, "S0"), variance=0.75, calibrated=True, danco=False, seed=0
    )
    assert found[3].estimator == "MLE, calibrated"
