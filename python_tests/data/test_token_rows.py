from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stratcore.data.classification import ClassificationTable
from stratcore.data.errors import DataError
from stratcore.data.token_rows import tokenize_table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def table(texts: tuple[str, ...], second: tuple[str, ...] | None = None) -> ClassificationTable:
    rows = np.arange(len(texts))
    return ClassificationTable(
        texts=texts, second=second, label=rows % 2, label_names=("no", "yes"), domain=np.zeros_like(rows),
        domain_names=("d",), source="rows",
    )  # fmt: skip


def test_batches_are_padded_to_their_longest_row(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = tokenize_table(table(("a b c d", "e", "b a")), tokenizer, max_length=5)
    assert rows.ids.tolist() == [2, 4, 5, 6, 3, 2, 8, 3, 2, 5, 4, 3] and rows.num_rows == 3
    batch = rows.batch(np.array([2, 1]), CPU)
    assert batch.input_ids.tolist() == [[2, 5, 4, 3], [2, 8, 3, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.label.tolist() == [0, 1] and batch.token_type_ids is None
    assert set(batch.inputs()) == {"input_ids", "attention_mask"}
    assert [numbers.tolist() for numbers in rows.by_length(2)] == [[0, 2], [1]]


def test_selected_rows_are_the_same_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = tokenize_table(table(("a b c d", "e", "b a")), tokenizer, max_length=9)
    some = rows.select(np.array([2, 0]))
    for place, row in enumerate((2, 0)):
        ours, theirs = some.batch(np.array([place]), CPU), rows.batch(np.array([row]), CPU)
        assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(ours.label, theirs.label)


def test_pairs_have_types(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = tokenize_table(table(("a b", "c"), ("d", "e d a")), tokenizer, max_length=9)
    batch = rows.batch(np.array([0, 1]), CPU)
    assert batch.token_type_ids is not None
    assert batch.input_ids.tolist() == [[2, 4, 5, 3, 7, 3, 0], [2, 6, 3, 8, 7, 4, 3]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert "token_type_ids" in batch.inputs()
    assert rows.select(np.array([1])).types is not None


def test_texts_without_tokens_are_named() -> None:
    bare = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    bare.normalizer = normalizers.Replace("z", "")
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="[PAD]", unk_token="[UNK]")
    with pytest.raises(DataError, match=r"^rows: row 1: no token is left of 'z'$"):
        tokenize_table(table(("a", "z")), fast, max_length=4)
