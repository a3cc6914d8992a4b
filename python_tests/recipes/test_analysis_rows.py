"""Rows of an analysis: tables, tokens, perplexities, draws, reductions, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from python_tests.recipes.small_analysis import ROWS, run, table
from stratcore.data import DataError
from stratcore.recipes.analysis import AnalysisRows
from stratcore.recipes.analysis_rows import load_analyzed_rows
from stratcore.recipes.trained_run import load_trained_run

CPU = torch.device("cpu")


def test_rows_of_a_table(tmp_path):
    rows = load_analyzed_rows(run(tmp_path), tmp_path, CPU)
    np.testing.assert_array_equal(rows.x, table().embeddings.astype(np.float64))
    assert rows.kind == "text embeddings" and rows.num_features == 8 and rows.variance_kept is None
    assert rows.names[0] == "both, row 0" and rows.names[1] == "flat, row 1"
    assert rows.domain[200] == "both" and rows.tokens.shape == (ROWS,)
    assert np.isnan(rows.perplexity[5]) and np.isfinite(rows.perplexity).sum() == ROWS - 1


def test_a_draw_keeps_rows_together(tmp_path):
    options = run(tmp_path, data=AnalysisRows(source=str(tmp_path / "rows.safetensors"), most=50))
    rows = load_analyzed_rows(options, tmp_path, CPU)
    whole = load_analyzed_rows(run(tmp_path), tmp_path, CPU)
    place = [whole.names.index(name) for name in rows.names]
    assert place == sorted(place) and len(set(place)) == 50
    np.testing.assert_array_equal(rows.x, whole.x[place])
    np.testing.assert_array_equal(rows.perplexity, whole.perplexity[place])
    assert rows.notes == ("50 of 240 rows, drawn at random (data.most).",)


def test_constant_features_are_named(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    x[:, [1, 3]] = 2.0
    np.save(tmp_path / "x.npy", x)
    options = run(tmp_path, data=AnalysisRows(source=str(tmp_path / "x.npy")), perplexity=None)
    rows = load_analyzed_rows(options, tmp_path, CPU)
    assert rows.notes == ("2 of 5 features are the same in all rows, and move no distance.",)


def test_a_reduction_keeps_its_share(tmp_path):
    options = run(tmp_path)
    rows = load_analyzed_rows(replace(options, data=replace(options.data, reduce=3)), tmp_path, CPU)
    assert rows.x.shape == (ROWS, 3) and rows.num_features == 8
    whole = table().embeddings.astype(np.float64)
    assert rows.variance_kept == pytest.approx(rows.x.var(axis=0).sum() / whole.var(axis=0).sum())
    with pytest.raises(ValueError, match="data.reduce: expected at most 8 components of 240 rows"):
        load_analyzed_rows(replace(options, data=replace(options.data, reduce=9)), tmp_path, CPU)


def test_rows_of_a_trained_run_come_in_the_order_of_its_table(trained_folder, tmp_path):
    trained = load_trained_run(trained_folder)
    rows = load_analyzed_rows(
        run(tmp_path, perplexity=None, data=AnalysisRows(run=trained_folder)), tmp_path, CPU
    )
    whole = trained.data.table.embeddings.astype(np.float64)
    np.testing.assert_allclose(rows.x, trained.data.pca.transform(whole), atol=1e-9)
    assert np.array_equal(np.flatnonzero(~rows.experts.held_out), np.sort(trained.data.split.train))
    names = np.array(trained.data.table.domain_names)[trained.data.table.domain]
    assert np.array_equal(rows.domain, names)
    x = (rows.x - trained.data.center) / trained.data.scale
    with torch.no_grad():
        gate = trained.model(torch.from_numpy(x.astype(np.float32))).probabilities
    np.testing.assert_allclose(rows.experts.gate, gate.numpy(), atol=1e-5)


def test_a_model_without_texts_gives_its_tokens(tmp_path):
    sizes = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "model"
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", *(f"word{i}" for i in range(34))]
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    options = run(tmp_path, perplexity=None, data=AnalysisRows(encoder=str(tmp_path / "model")))
    rows = load_analyzed_rows(options, tmp_path, CPU)
    assert rows.kind == "token embeddings" and rows.x.shape == (34, 8)
    assert rows.names[0] == "'word0'" and rows.domain is None
    assert rows.notes == ("Left out: 5 special, 1 unused rows.",)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones(3), "expected 240 floats, one a row, got float64 of shape"),
        (np.ones(ROWS, int), "expected 240 floats, one a row, got int64"),
        (
            np.r_[np.full(ROWS - 3, np.nan), 1.0, 2.0, 3.0],
            "expected at least 4 perplexities, got 3, else NaN",
        ),
        (np.r_[np.ones(ROWS - 1), 0.0], "row 239: expected a perplexity > 0 or NaN, got 0.0"),
    ],
)
def test_perplexities_that_do_not_fit(values, words, tmp_path):
    options = run(tmp_path)
    np.save(tmp_path / "perplexity.npy", values)
    with pytest.raises(DataError, match=words):
        load_analyzed_rows(options, tmp_path, CPU)


def test_files_that_are_missing_or_no_array(tmp_path):
    options = run(tmp_path)
    (tmp_path / "perplexity.npy").write_text("1 2 3")
    with pytest.raises(DataError, match="perplexity.npy: not a readable .npy file"):
        load_analyzed_rows(options, tmp_path, CPU)
    (tmp_path / "perplexity.npy").unlink()
    with pytest.raises(DataError, match="perplexity.npy: no such file"):
        load_analyzed_rows(options, tmp_path, CPU)
    missing = replace(options, perplexity=None, data=AnalysisRows(run=Path(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="expected the folder of a trained run"):
        load_analyzed_rows(missing, tmp_path, CPU)
