"""The schema of an analysis: what is written reads back, what is missing is named, what the summary takes."""

from __future__ import annotations

import copy
import json

import pytest

from python_tests.analysis.small_results import RESULTS
from stratcore.analysis.stratification_results import summary_of, write_analysis


def test_written_results_read_back(tmp_path):
    path = write_analysis(tmp_path / "results.json", RESULTS)
    assert json.loads(path.read_text()) == RESULTS


@pytest.mark.parametrize("path", ["tests", "strata.stability", "data.notes", "dimensions", "seconds"])
def test_a_missing_key_is_named(path, tmp_path):
    results = copy.deepcopy(RESULTS)
    *parents, key = path.split(".")
    part = results
    for parent in parents:
        part = part[parent]
    del part[key]
    with pytest.raises(ValueError, match=f"missing key '{path}'"):
        write_analysis(tmp_path / "results.json", results)
    assert not list(tmp_path.iterdir())


def test_summary_sets_rates_beside_each_other():
    summary = summary_of(RESULTS)
    assert summary["rejection_rates"] == {
        "fiber bundle, spacings": 0.02,
        "manifold, spacings": 0.04,
        "rule of the source documents": 0.9,
    }
    assert summary["stratum_dimensions"] == [20.0, 31.0]
    assert summary["intrinsic_dimension"]["MLE, calibrated"] == 12.0
    assert summary["experts"] is None and summary["strata"] == 2
