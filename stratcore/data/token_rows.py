"""Tokenized texts with labels and domains, kept without pads; batches are padded to their longest row.

Legend: N rows, T tokens of all rows, B rows and L tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratcore.data.classification import ClassificationTable
from stratcore.data.errors import DataError


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """input_ids, attention_mask and, for pairs, token_type_ids [B, L]; label and domain [B]."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    label: Tensor
    domain: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with, the labels left out."""
        named = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return named if self.token_type_ids is None else {**named, "token_type_ids": self.token_type_ids}


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of token ids, one behind the other.

    Args:
        ids: [T] int64.
        types: [T] int64, which text of a pair a token is from; None for single texts.
        offsets: [N + 1] int64, where each row begins.
        label, domain: [N] int64.
        pad: id that fills short rows; masked out.
    """

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    label: np.ndarray
    domain: np.ndarray
    pad: int

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return len(self.label)

    def batch(self, rows: np.ndarray, device: torch.device) -> TokenBatch:
        """The rows with these numbers [B], padded on the right to the longest of them, on a device."""
        begins, ends = self.offsets[rows], self.offsets[rows + 1]
        place_BL = np.arange((ends - begins).max()) + begins[:, None]
        mask_BL = place_BL < ends[:, None]
        place_BL = np.minimum(place_BL, len(self.ids) - 1)
        ids_BL = np.where(mask_BL, self.ids[place_BL], self.pad)
        types_BL = None if self.types is None else np.where(mask_BL, self.types[place_BL], 0)

        def moved(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        return TokenBatch(
            input_ids=moved(ids_BL),
            attention_mask=moved(mask_BL.astype(np.int64)),
            token_type_ids=None if types_BL is None else moved(types_BL),
            label=moved(self.label[rows]),
            domain=moved(self.domain[rows]),
        )

    def by_length(self, size: int) -> Iterator[np.ndarray]:
        """Row numbers of batches of `size`, the longest first."""
        order = np.argsort(-np.diff(self.offsets), kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def select(self, rows: np.ndarray) -> TokenRows:
        """The rows with these numbers, in their order."""
        pieces = [slice(self.offsets[row], self.offsets[row + 1]) for row in rows]
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        return TokenRows(
            ids=np.concatenate([self.ids[piece] for piece in pieces]),
            types=None if self.types is None else np.concatenate([self.types[piece] for piece in pieces]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            label=self.label[rows],
            domain=self.domain[rows],
            pad=self.pad,
        )


def tokenize_table(table: ClassificationTable, tokenizer: Any, max_length: int) -> TokenRows:
    """Tokenize texts or pairs, with special tokens, cut to `max_length`.

    Args:
        table: N texts.
        tokenizer: of transformers.
        max_length: in tokens; of a pair the longer text is cut first.

    Raises:
        DataError: a text without a token, named by row.
    """
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    ids: list[Sequence[int]] = []
    types: list[Sequence[int]] = []
    for start in range(0, table.num_rows, 1024):
        chunk = slice(start, start + 1024)
        second = None if table.second is None else list(table.second[chunk])
        encoded = tokenizer(
            list(table.texts[chunk]),
            second,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=second is not None,
        )
        ids.extend(encoded["input_ids"])
        types.extend(encoded["token_type_ids"] if second is not None else ())
    for row, tokens in enumerate(ids):
        if not tokens:
            raise DataError(f"{table.source}: row {row}: no token is left of {table.texts[row][:40]!r}")
    return TokenRows(
        ids=np.concatenate([np.asarray(row, np.int64) for row in ids]),
        types=np.concatenate([np.asarray(row, np.int64) for row in types]) if types else None,
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
        label=table.label,
        domain=table.domain,
        pad=pad,
    )
