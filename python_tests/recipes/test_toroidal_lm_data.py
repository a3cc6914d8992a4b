"""Legend: R rows, L tokens of a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_language import SETTINGS, lines, save_small_language
from stratcore.data import DataError
from stratcore.recipes import RECIPES
from stratcore.recipes.settings import load_run
from stratcore.recipes.toroidal_lm import LanguageDataOptions
from stratcore.recipes.toroidal_lm_data import load_language_material, load_language_texts

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_small_language(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_share_is_held_out_and_nothing_is_learned_that_is_scored(here: Path) -> None:
    twice = lines(120, 0)
    (here / "lines.txt").write_text("\n".join([*twice, *twice[:30]]))
    train, scored = load_language_texts(LanguageDataOptions(train=("lines.txt",)))
    assert len(scored["lines.txt"]) == 15
    assert not set(train) & set(scored["lines.txt"])
    assert set(train) | set(scored["lines.txt"]) == set(twice)


def test_a_set_may_be_learned_from_and_scored_in_parts(here: Path) -> None:
    names = ("other.txt", "lines.txt")
    data = LanguageDataOptions(train=names[1:], evaluation=names, rows=9, evaluation_rows=20)
    train, scored = load_language_texts(data)
    assert len(train) == 9 and not set(train) & set(scored["lines.txt"])
    assert [len(texts) for texts in scored.values()] == [20, 20]


def test_rows_are_of_one_stream_and_validation_is_apart(here: Path) -> None:
    run = load_run(RECIPES, "toroidal_lm", None, SETTINGS)
    material = load_language_material(run)
    assert material.train.shape[1] == material.validation.shape[1] == 16
    assert len(material.validation) == 4
    whole = np.concatenate([material.train, material.validation])
    assert len(np.unique(whole, axis=0)) == len(whole)
    assert material.describe()["evaluation_texts"] == {"lines.txt": 12}


def test_what_cannot_be_used_is_one_line(here: Path) -> None:
    run = load_run(RECIPES, "toroidal_lm", None, SETTINGS)
    cases = {
        "host: expected a folder": replace(run, host=None),
        "data.train: expected at least one text set": replace(run, data=LanguageDataOptions()),
        "data.train: expected at least 1004 rows of 16 tokens": replace(
            run, data=replace(run.data, validation_rows=1000)
        ),
        "data.train: every text is among those that are scored": replace(
            run, data=replace(run.data, evaluation=("lines.txt",), evaluation_rows=None)
        ),
    }
    for words, bad in cases.items():
        with pytest.raises((DataError, ValueError), match=words):
            load_language_material(bad)
