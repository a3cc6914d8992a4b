"""Rows of a run: from a file, from the package, from texts through a saved encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_run import small_table
from stratcore.data import save_table
from stratcore.recipes.rows import RowOptions, load_rows


def test_rows_of_a_file(tmp_path: Path) -> None:
    save_table(small_table(), tmp_path / "rows.safetensors")
    table = load_rows(RowOptions(source=str(tmp_path / "rows.safetensors")), tmp_path)
    np.testing.assert_array_equal(table.embeddings, small_table().embeddings)


def test_rows_inside_the_package(tmp_path: Path) -> None:
    assert load_rows(RowOptions(), tmp_path).embeddings.shape[1] == 384


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("a.txt",)}, "data.encoder: expected the model that embeds data.texts, got nothing"),
        ({"rows": 0}, "data.rows: expected a number >= 1 or None, got 0"),
    ],
)
def test_options_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowOptions(**changes)
