from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_texts import save_small_texts, small_comparison, small_texts
from stratcore.data import DataError
from stratcore.data.bundled import carriers
from stratcore.recipes import compare_classifiers_data
from stratcore.recipes.compare_classifiers_data import checked_split, describe, fetched_encoder, prepare


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_small_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parts_are_the_split_and_the_description_counts_them(here: Path) -> None:
    run = small_comparison()
    material = prepare(run, here)
    split = checked_split(run, material.table, 1)
    parts = material.parts(split)
    assert [parts[name].num_rows for name, _ in split.parts()] == [340, 20, 40]
    assert np.array_equal(parts["test"].label, material.table.label[split.test])
    about = describe(run, material.table)
    assert about["rows"] == {"train": 340, "validation": 20, "test": 40}
    assert about["test_rows_by_domain"] == {"film": 20, "food": 20}
    assert about["audit"]["warnings"] == []


def test_confounds_are_refused_unless_allowed(here: Path) -> None:
    rows = small_texts()
    for index, row in enumerate(rows):
        row["split"] = "train" if index % 8 < 6 else ("validation", "test")[index % 2]
    (here / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="validation rows of domain 'film' hold one label only"):
        prepare(small_comparison("data.sets=[given.jsonl]"), here)
    allowed = prepare(small_comparison("data.sets=[given.jsonl]", "data.allow_confounds=true"), here)
    assert allowed.table.num_rows == 400


def test_the_encoder_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fetch_model(place: Path) -> Path:
        calls.append(place)
        found = place / "model" / carriers.MODEL_FOLDER
        found.mkdir(parents=True)
        (found / "config.json").write_text("{}")
        return found

    monkeypatch.setattr(compare_classifiers_data.carriers, "fetch_model", fetch_model)
    assert fetched_encoder(tmp_path) == fetched_encoder(tmp_path)
    assert calls == [tmp_path / "encoder"]


def test_a_small_encoder_is_made_of_the_texts(here: Path) -> None:
    material = prepare(small_comparison("encoder=small"), here)
    assert material.encoder == str(here / "encoder") and (here / "encoder/model.safetensors").is_file()
    again = prepare(small_comparison("encoder=small"), here)
    assert np.array_equal(again.tokens.ids, material.tokens.ids)
