"""Embeddings of texts with any Hugging Face encoder or decoder, independent of how rows are batched.

Legend: N texts, B rows and L tokens of a batch, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from stratcore.data._batches import (
    Shards,
    evaluating,
    length_limit,
    padded_forward,
    progress_bar,
    resolve_model,
    run_shards,
    tokenize,
)
from stratcore.data.embedding_cache import ShardCache, cache_key
from stratcore.data.errors import DataError
from stratcore.data.hub import load_model
from stratcore.data.table import EmbeddingTable
from stratcore.data.texts import TextTable, check_texts

POOLINGS = ("mean", "last")


@dataclass(frozen=True)
class EmbedOptions:
    """How texts become embeddings.

    Args:
        pooling: `mean` (of the last hidden state over real tokens) or `last` (real token; for decoders).
        max_length: tokens a text is cut to; a smaller limit of the model or tokenizer holds instead.
        tokens_per_batch: padded tokens in one batch; a single longer text is a batch by itself.
        shard_rows: rows per cache file, so what an interruption can lose.
        dtype: of the weights when a model is loaded by name: `float32`, `bfloat16` or `float16`. A module
            that is given keeps its own.
        device: such as `cuda:0`. A loaded model goes to the GPU by default, a given module stays where it is.

    Raises:
        ValueError: names the option.
    """

    pooling: str = "mean"
    max_length: int = 512
    tokens_per_batch: int = 8192
    shard_rows: int = 512
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"EmbedOptions.pooling: expected one of {POOLINGS}, got {self.pooling!r}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"EmbedOptions.dtype: expected float32, bfloat16 or float16, got {self.dtype!r}")
        for name in ("max_length", "tokens_per_batch", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"EmbedOptions.{name}: expected at least 1, got {getattr(self, name)}")


class Embedded(NamedTuple):
    """Embeddings [N, d] float32 and the number of tokens each was made of, [N] int64."""

    embeddings: np.ndarray
    token_count: np.ndarray


def embed_texts(
    texts: Sequence[str],
    model: nn.Module | str | Path,
    tokenizer: Any = None,
    options: EmbedOptions | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Embedded:
    """Embed texts by pooling the last hidden state over the real tokens.

        mean_i = sum_t m_it h_it / sum_t m_it,    last_i = h_{i, max {t : m_it = 1}}

    Args:
        texts: N texts, none empty.
        model: a module of `transformers`, a local folder, a .gguf file, a name of `PAPER_MODELS`, or a hub name.
        tokenizer: of a given module; by default it is loaded along with the model.
        options: pooling, lengths, batches, device.
        cache_dir: folder for finished shards, under a key made of tokens, weights and options. A run that was
            interrupted goes on after its last finished shard; the same job again only reads.
        progress: show a bar; only on a terminal.

    Returns:
        `Embedded(embeddings, token_count)` in the order of `texts`.

    Raises:
        DataError: an empty text or one that is no string, named by row; a model that cannot be loaded; an
            embedding that is not finite.

    Numerics: pooled in float32. The batch a row was in changes it by rounding alone (tested: 1e-5).
    Determinism: batches are formed by length, so a resumed run is bitwise equal to an uninterrupted one.
    """
    options = options or EmbedOptions()
    check_texts(texts, "texts")
    module, tokenizer = _resolve(model, tokenizer, options)
    tokens = tokenize(texts, tokenizer, min(options.max_length, length_limit(module, tokenizer)))
    lengths = np.array([len(row) for row in tokens], np.int64)
    cache = None
    if cache_dir is not None:
        layout = f"{options.pooling} {options.shard_rows} {options.tokens_per_batch}"
        cache = ShardCache(Path(cache_dir) / cache_key(texts, tokens, module, layout))
    embed_batch = _batch_function(module, tokenizer, options.pooling)
    with evaluating(module), progress_bar("embedding", len(texts), progress) as advance:
        embeddings = run_shards(
            lengths,
            Shards(options.shard_rows, options.tokens_per_batch, cache),
            lambda rows: embed_batch([tokens[row] for row in rows]),
            _check_finite,
            advance,
        )
    return Embedded(embeddings, lengths)


def embed_table(
    texts: TextTable, model: nn.Module | str | Path, tokenizer: Any = None, source: str = "", **arguments: Any
) -> EmbeddingTable:
    """Embed a text table; labels of different tasks get different numbers (`TextTable.task_labels`).

    Args:
        texts: the texts.
        model: see `embed_texts`.
        tokenizer: see `embed_texts`.
        source: name of the result in messages; the name of the model by default.
        arguments: `options`, `cache_dir` and `progress` of `embed_texts`.
    """
    embedded = embed_texts(texts.texts, model, tokenizer, **arguments)
    name = source or (type(model).__name__ if isinstance(model, nn.Module) else str(model))
    return EmbeddingTable(
        embedded.embeddings, texts.domain, texts.domain_names, texts.task_labels(), embedded.token_count, name
    )


def pool_hidden(hidden_BLd: torch.Tensor, mask_BL: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool hidden states over real tokens, in float32.

    Args:
        hidden_BLd: hidden states [B, L, d], any float type.
        mask_BL: 1 at real tokens [B, L], padded on either side; at least one per row.
        pooling: `mean` or `last`.

    Returns:
        [B, d] float32.
    """
    if pooling == "last":
        positions = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        last_B = (positions * mask_BL.bool()).argmax(dim=1)
        return hidden_BLd[torch.arange(len(last_B), device=last_B.device), last_B].float()
    # Masked positions may hold anything, NaN included, so they are replaced and not multiplied.
    kept_BLd = hidden_BLd.float().masked_fill(~mask_BL.bool().unsqueeze(-1), 0.0)
    return kept_BLd.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).float()


def _resolve(model: nn.Module | str | Path, tokenizer: Any, options: EmbedOptions) -> tuple[nn.Module, Any]:
    module, tokenizer = resolve_model(model, tokenizer, load_model, options.dtype, options.device)
    # The head of a language model is not needed, and an encoder-decoder is embedded by its encoder.
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return cast(Any, module).get_encoder(), tokenizer
    return getattr(module, "base_model", module), tokenizer


def _batch_function(
    module: nn.Module, tokenizer: Any, pooling: str
) -> Callable[[list[list[int]]], np.ndarray]:
    forward = padded_forward(module, tokenizer)

    def embed_batch(tokens: list[list[int]]) -> np.ndarray:
        output, mask_BL = forward(tokens)
        hidden_BLd = getattr(output, "last_hidden_state", None)
        if hidden_BLd is None:
            raise DataError(f"{type(module).__name__}: returns no last_hidden_state; give its base model")
        return pool_hidden(hidden_BLd, mask_BL, pooling).cpu().numpy()

    return embed_batch


def _check_finite(part: np.ndarray, rows: np.ndarray) -> None:
    bad = rows[~np.isfinite(part).all(axis=1)]
    if bad.size:
        raise DataError(f"texts: row {bad.min()}: the model's embedding is not finite ({bad.size} such rows)")
