"""Texts as one stream of tokens, cut into rows of equal length. Legend: R rows, L tokens of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stratcore.data._batches import tokenize
from stratcore.data.errors import DataError
from stratcore.data.texts import check_texts

NO_LIMIT = 2**31 - 1


def token_blocks(texts: Sequence[str], tokenizer: Any, length: int, *, source: str = "texts") -> np.ndarray:
    """Texts behind each other, an end-of-text token after each where the tokenizer has one, in rows without pads.

    Args:
        texts: none empty.
        tokenizer: of transformers.
        length: L, at least 2.
        source: begins error messages.

    Returns:
        int64 [R, L]; tokens that fill no row are left out.

    Raises:
        DataError: an empty text, or fewer tokens than one row.
        ValueError: rows of fewer than 2 tokens, in which nothing is foreseen.
    """
    if length < 2:
        raise ValueError(f"length: expected at least 2 tokens, got {length}")
    check_texts(texts, source)
    end = getattr(tokenizer, "eos_token_id", None)
    closing = [] if end is None else [end]
    stream = np.concatenate([[*row, *closing] for row in tokenize(texts, tokenizer, NO_LIMIT)])
    rows = len(stream) // length
    if rows == 0:
        raise DataError(f"{source}: expected at least the {length} tokens of one row, got {len(stream)}")
    return stream[: rows * length].astype(np.int64).reshape(rows, length)
