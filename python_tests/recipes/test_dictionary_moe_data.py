from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from python_tests.recipes.small_run import small_run, small_table
from stratcore.data import DataError, EmbeddingTable, save_table
from stratcore.recipes.dictionary_moe_data import PreparedData, prepare


def prepared(folder: Path, *settings: str, table: EmbeddingTable | None = None) -> PreparedData:
    save_table(table or small_table(), folder / "rows.safetensors")
    return prepare(small_run(*settings, source=str(folder / "rows.safetensors")), folder)


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_reduction_center_and_scale_come_from_the_training_rows_alone(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepared(tmp_path)
    values = before.table.embeddings.copy()
    values[getattr(before.split, part)[5]] += 100.0
    # The split is a function of the values; here it stays.
    monkeypatch.setattr(
        "stratcore.recipes.dictionary_moe_data.split_rows", lambda *arguments, seed: before.split
    )
    after = prepared(tmp_path, table=replace(before.table, embeddings=values))
    same = part != "train"
    assert np.array_equal(before.pca.components_, after.pca.components_) is same
    assert np.array_equal(before.pca.mean_, after.pca.mean_) is same
    assert np.array_equal(before.center, after.center) is same
    assert (before.scale == after.scale) is same
    assert not np.array_equal(before.reduced(part), after.reduced(part))


@pytest.mark.parametrize("settings", [(), ("data.reduce=false", "model.input_dim=16")])
def test_training_rows_have_mean_0_and_root_mean_square_1(settings: tuple[str, ...], tmp_path: Path) -> None:
    data = prepared(tmp_path, *settings)
    x_ND = data.rows("train").x.double()
    assert x_ND.shape == (210, 16 if settings else 8)
    assert x_ND.mean(0).abs().max() < 1e-6
    assert float(x_ND.square().mean()) == pytest.approx(1.0, abs=1e-6)
    # One number for all directions: what is large stays large.
    spread = data.reduced("train").std(0)
    np.testing.assert_allclose(x_ND.numpy().std(0) / spread, 1 / data.scale, rtol=1e-5)


def test_the_reduction_is_the_leading_directions(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    train = data.table.embeddings[data.split.train].astype(np.float64)
    _, _, directions = np.linalg.svd(train - train.mean(0), full_matrices=False)
    own = (data.table.embeddings[data.split.test] - train.mean(0)) @ directions[:8].T
    np.testing.assert_allclose(np.abs(data.reduced("test")), np.abs(own), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [("model.input_dim=16",), ("model.input_dim=16", "data.reduce=false"), ()]
)
def test_restoring_undoes_the_reduction(settings: tuple[str, ...], tmp_path: Path) -> None:
    data = prepared(tmp_path, *settings)
    reduced = data.reduced("test")
    np.testing.assert_allclose(data.unscale(data.rows("test").x), reduced, atol=1e-5)
    restored = data.restore(reduced)
    original = data.table.embeddings[data.split.test]
    if settings:
        np.testing.assert_allclose(restored, original, atol=1e-5)
    else:  # what eight directions hold comes back, the rest is orthogonal to them
        np.testing.assert_allclose(data.pca.transform(restored), reduced, atol=1e-9)
        assert np.abs((original - restored) @ data.pca.components_.T).max() < 1e-5


def test_parts_keep_their_domains_and_hold_every_row_once(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    together = np.concatenate([data.split.train, data.split.validation, data.split.test])
    np.testing.assert_array_equal(np.sort(together), np.arange(300))
    for part, size in (("train", 70), ("validation", 15), ("test", 15)):
        domain = data.rows(part).domain
        assert domain.bincount().tolist() == [size] * 3
        np.testing.assert_array_equal(domain.numpy(), data.table.domain[getattr(data.split, part)])


def test_the_seed_draws_the_split(tmp_path: Path) -> None:
    first, same, other = (prepared(tmp_path, f"seed={seed}").split.test for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_too_few_training_rows_count_duplicates_and_rounding(tmp_path: Path) -> None:
    # 100 of 143 rows would do, were it not that each domain rounds by itself.
    data = prepared(tmp_path, "batch_size=100", table=small_table(144))
    assert len(data.split.train) >= 100
    with pytest.raises(DataError, match="at least 100 training rows are needed .*; 140 rows leave 9"):
        prepared(tmp_path, "batch_size=100", table=small_table(140))
