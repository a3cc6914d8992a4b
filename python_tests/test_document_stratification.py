"""The page of docs/stratification.md is what the committed rows say."""

from __future__ import annotations

from pathlib import Path

from bench import document_stratification as document
from bench import markdown
from bench import published_stratification as published

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_the_generated_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (ROOT / document.TARGET).read_text(encoding="utf-8") == document.page()


def test_published_tables_have_five_strata_and_a_place():
    for table in (published.DIMENSIONS, published.SPARSITIES):
        assert all(len(values) == 5 for values in table.values())
    assert all(run.place[0].isdigit() for run in published.RUNS.values())
    assert sum(range(8, 33, 4)) / 7 == published.UNIFORM_GATE


def test_tables_and_intervals():
    assert markdown.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"
    assert markdown.interval({"value": 20.923, "low": 18.04, "high": 24.2}) == "20.9 [18, 24.2]"
    assert markdown.interval({"value": 116.0, "low": None, "high": None}) == "116"
    assert markdown.interval(None) == "none"
