from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_run import refusal, save_small_table, small_table
from python_tests.recipes.small_trials import BASE, small_trials
from stratcore.recipes import transfer_dictionary_moe
from stratcore.recipes.transfer_dictionary_moe import splits

pytestmark = pytest.mark.usefixtures("single_thread")
FRACTIONS = (0.7, 0.15, 0.15)


def test_a_domain_that_was_never_seen_costs_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = small_trials(tmp_path, "transfer_dictionary_moe", "seeds=[0]", "domains=[letters,signs]")
    assert [t["domain"] for t in results["trials"]] == ["letters", "signs"]
    for t, row in zip(results["trials"], results["summary"], strict=True):
        assert t["rows_with"] == t["rows_without"] == 140
        for model in ("mixture", "pca"):
            gap = t[f"fvu_{model}_without"] - t[f"fvu_{model}_with"]
            assert gap > 0.1  # the planes of the domains are independent
            assert row[f"gap_{model}"]["value"] == pytest.approx(gap)
    assert "Transfer costs most on" in results["answer"][0]


def test_splits_differ_in_the_domain_alone() -> None:
    table = small_table()
    without, control = splits(table, FRACTIONS, 0, "numbers")
    assert np.array_equal(without.test, control.test) and (table.domain[without.test] == 1).all()
    for part in ("train", "validation"):
        rows, other = getattr(without, part), getattr(control, part)
        assert len(rows) == len(other) and (table.domain[rows] != 1).all()
        assert (np.diff(other) > 0).all() and np.unique(table.domain[other]).size == 3
        assert not np.isin(other, without.test).any() and not np.isin(rows, without.test).any()
    assert not np.isin(control.train, control.validation).any()
    again = splits(table, FRACTIONS, 0, "numbers")[1]
    assert np.array_equal(again.train, control.train)


def test_unknown_and_single_domains_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small_table(tmp_path)
    words = ["transfer_dictionary_moe", *BASE, "--output", "run"]
    line = refusal(capfd, [*words, "domains=[poems]"])
    assert line == "domains: expected some of letters, numbers, signs, got 'poems'"
    np.save(tmp_path / "rows.npy", small_table().embeddings)
    line = refusal(capfd, [*words, "base.data.source=rows.npy"])
    assert "at least 2 domains are needed, got 1" in line
    assert not (tmp_path / "run").exists()


def test_the_recipe_names_itself() -> None:
    run = transfer_dictionary_moe()
    assert run.recipe == "transfer_dictionary_moe" and run.domains == () and len(run.seeds) == 3
