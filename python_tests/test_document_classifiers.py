"""The page of docs/classifiers.md is what the committed results say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import document_classifiers as document

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / document.TARGET).read_text(encoding="utf-8") == document.page()


def test_its_words_are_true_of_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = document.load("compare_classifiers.json")
    run = document.run_of(results)
    found = document.compare(run, document.tuned(run, results["trials"]))
    blocks = [row for row in found if not row["arm"].startswith("geometric")]
    assert all(abs(row["difference"]["value"]) < 0.2 and row["non_inferior"] for row in blocks)
    costs = [-row["difference"]["value"] for row in found if row["arm"].startswith("geometric")]
    assert [round(cost, 1) for cost in costs] == [1.8, 1.4]
