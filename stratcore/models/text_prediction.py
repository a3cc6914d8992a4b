"""Texts in, labels out. Legend: N texts, C labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from stratcore.models.stratified_classifier import StratifiedClassifier

MAX_CHARACTERS = 1_000_000
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextPrediction:
    """labels: N names. indices: int64 [N]. probabilities: float32 [N, C], rows sum to 1. label_names: C names."""

    labels: tuple[str, ...]
    indices: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]


def find_tokenizer(name: str | Path) -> Any:
    """Tokenizer of a local folder or of a name on the hub; None where there is none."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def encode_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of each text, with special tokens, cut to `max_length`, not padded.

    Raises:
        TypeError: a row that is no text.
        ValueError: a text that is empty, too long to be one, or has no token; named by its row.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected a sequence of texts, got one text")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts: row {row}: expected a text, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"texts: row {row}: expected a text, got an empty one")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"texts: row {row}: {len(text)} characters, of {MAX_CHARACTERS} at most")
    if not len(texts):
        return []
    rows = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"]
    for row, tokens in enumerate(rows):
        if not tokens:
            raise ValueError(f"texts: row {row}: no token is left of {texts[row][:40]!r}")
    return [list(tokens) for tokens in rows]


def padded_batch(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask [B, longest], pads on the right."""
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def pad_token(model: Any, tokenizer: Any) -> int:
    """Token to pad with; decoders often have none, and any serves where a mask hides it."""
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(model.config.encoder, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    return next((token for token in candidates if isinstance(token, int) and token >= 0), 0)


def token_limit(model: Any, tokenizer: Any) -> int:
    """Most tokens that both the encoder's positions and the tokenizer allow."""
    config = model.config.encoder
    positions = getattr(config, "max_position_embeddings", None)
    if positions and _offset_positions(model):
        positions -= config.pad_token_id + 1
    limits = (positions, getattr(tokenizer, "model_max_length", None))
    return min(int(limit) for limit in (*limits, 1 << 30) if limit)


def _offset_positions(model: Any) -> bool:
    """Whether positions begin behind the index of the pad token, as RoBERTa's do."""
    embeddings = getattr(model.encoder, "embeddings", None)
    return getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None) is not None


class TextPredictor:
    """Reads texts in batches of similar length; the result does not depend on the batches, but for rounding.

    Args:
        model: classifier; it runs in evaluation mode, and goes back to the mode that it was in.
        tokenizer: None: the model's own.
        max_length: tokens of a text, the rest is cut off; None: as many as the encoder takes, at most 512.
        tokens_per_batch: most tokens of a batch, pads included.

    Raises:
        ValueError: no tokenizer, or a number below 1.
    """

    def __init__(
        self,
        model: StratifiedClassifier,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        tokens_per_batch: int = 8192,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer or model.tokenizer
        if self.tokenizer is None:
            raise ValueError("tokenizer: expected one, as none lies beside the classifier's weights")
        limit = token_limit(model, self.tokenizer)
        self.max_length = min(512, limit) if max_length is None else max_length
        self.tokens_per_batch = tokens_per_batch
        if not 1 <= self.max_length <= limit:
            raise ValueError(f"max_length: expected a number in [1, {limit}], got {max_length}")
        if tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch: expected at least 1, got {tokens_per_batch}")

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> TextPrediction:
        """Labels and probabilities, in the order of the texts."""
        rows = encode_texts(texts, self.tokenizer, self.max_length)
        names = self.model.config.label_names
        probabilities_NC = np.zeros((len(rows), len(names)), dtype=np.float32)
        pad, device = pad_token(self.model, self.tokenizer), self.model.device
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches([len(row) for row in rows]):
                inputs = padded_batch([rows[index] for index in batch], pad, device)
                logits = self.model(**inputs).logits
                probabilities_NC[batch] = logits.float().softmax(-1).cpu().numpy()
        finally:
            self.model.train(was_training)
        indices_N = probabilities_NC.argmax(-1)
        return TextPrediction(
            labels=tuple(names[index] for index in indices_N),
            indices=indices_N,
            probabilities=probabilities_NC,
            label_names=names,
        )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows by falling length, so that the first batch is the largest one."""
        batch: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.tokens_per_batch:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch
