"""The page of an analysis: self-contained, escaped, whole with and without what may be missing."""

from __future__ import annotations

import copy
import re

import pytest
from matplotlib.figure import Figure

from python_tests.analysis.small_results import RESULTS
from stratcore.analysis.stratification_report import write_analysis_report


def test_a_page_that_loads_nothing(tmp_path):
    figure = Figure(figsize=(1, 1))
    text = write_analysis_report(tmp_path, RESULTS, {"views_2d": figure, "mine": figure}).read_text()
    assert re.findall(r'<figure id="(\w+)">', text) == ["views_2d", "mine"]
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert "Is it stratified? rows.npy" in text and "<td>row &lt;7&gt;</td>" in text
    assert "105 text embeddings of 40 features, reduced to 16 (80.0" in text
    assert "mean cosine: 0.1, where random rows have 0." in text
    assert text.count("<h3>") >= 8


def test_a_page_of_little(tmp_path):
    results = copy.deepcopy(RESULTS)
    results |= {"tests": [], "singular_points": [], "perplexity": None}
    results["strata"] |= {
        "domains": [],
        "counts": [],
        "agreement": None,
        "stability": None,
        "silhouette": None,
    }
    results["data"] |= {"domains": [], "variance_kept": None, "num_duplicates": 0}
    text = write_analysis_report(tmp_path, results, {}).read_text()
    assert "Tests of every point" not in text and "n/a" in text


def test_what_does_not_fit_the_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="missing key 'strata'"):
        write_analysis_report(tmp_path, {key: value for key, value in RESULTS.items() if key != "strata"}, {})
    assert not list(tmp_path.iterdir())
