from __future__ import annotations

import numpy as np
import pytest

from python_tests.data.test_embeddings import make_tokenizer
from stratcore.data.errors import DataError
from stratcore.data.token_blocks import token_blocks


def test_texts_follow_each_other_and_the_rest_is_left_out() -> None:
    tokenizer = make_tokenizer(False)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7"]
    stream = [tokenizer(text)["input_ids"] for text in texts]
    flat = [token for row in stream for token in row]
    found = token_blocks(texts, tokenizer, 3)
    assert found.dtype == np.int64 and found.tolist() == [flat[:3], flat[3:6]]
    tokenizer.eos_token = "[SEP]"
    ended = [token for row in stream for token in [*row, 3]]
    assert token_blocks(texts, tokenizer, 5).tolist() == [ended[:5], ended[5:]]


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="prose: expected at least the 8 tokens of one row, got 2"):
        token_blocks(["w1 w2"], make_tokenizer(False), 8, source="prose")
    with pytest.raises(DataError, match="prose: row 1: the text is empty"):
        token_blocks(["w1", " "], make_tokenizer(False), 2, source="prose")
    with pytest.raises(ValueError, match="length: expected at least 2 tokens, got 1"):
        token_blocks(["w1 w2"], make_tokenizer(False), 1)
