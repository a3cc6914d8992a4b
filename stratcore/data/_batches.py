"""Rows of token ids through a language model in batches: what embeddings and perplexities share.

Legend: N rows, B rows and L tokens of a batch.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stratcore.data.embedding_cache import ShardCache
from stratcore.data.errors import DataError


@dataclass(frozen=True)
class Shards:
    """How rows are cut into pieces of work.

    Args:
        rows: per cache file, so what an interruption can lose.
        tokens: padded tokens in one batch; a single longer row is a batch by itself.
        cache: where finished shards lie; None: nowhere.
    """

    rows: int
    tokens: int
    cache: ShardCache | None


def run_shards(
    lengths: np.ndarray,
    shards: Shards,
    compute: Callable[[np.ndarray], np.ndarray],
    check: Callable[[np.ndarray, np.ndarray], None],
    advance: Callable[[int], None],
) -> np.ndarray:
    """Compute something for every row, longest rows first, and resume after the last finished shard.

    Args:
        lengths: tokens per row, [N].
        shards: sizes and cache.
        compute: rows of one batch [B] -> their values [B, d].
        check: called with the values of a new shard and their rows; raises where they are bad.
        advance: called with the number of rows done.

    Returns:
        Values [N, d] in the order of `lengths`.

    Determinism: batches are formed by length, so a resumed run is bitwise equal to an uninterrupted one.
    """
    order = np.argsort(-lengths, kind="stable")  # longest first: a batch too large for memory fails at once
    parts: list[np.ndarray] = []
    for number, start in enumerate(range(0, len(order), shards.rows)):
        rows = order[start : start + shards.rows]
        part = shards.cache.load(number, len(rows)) if shards.cache else None
        if part is None:
            pieces = []
            for batch in batches_by_tokens(lengths[rows].tolist(), shards.tokens):
                pieces.append(compute(rows[batch]))
                advance(len(pieces[-1]))
            part = np.concatenate(pieces)
            check(part, rows)
            if shards.cache:
                shards.cache.save(number, part)
        else:
            advance(len(rows))
        parts.append(part)
    values = np.empty((len(lengths), *parts[0].shape[1:]), parts[0].dtype)
    values[order] = np.concatenate(parts)
    return values


def batches_by_tokens(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[slice]:
    """Yield consecutive slices whose padded size, rows times longest row, stays within the budget."""
    start, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start + 1) * longest > tokens_per_batch:
            yield slice(start, i)
            start, longest = i, length
    if start < len(lengths):
        yield slice(start, len(lengths))


def tokenize(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Return the token ids of each text, with special tokens, cut to `max_length`, not padded.

    Raises:
        DataError: a text without a token, named by row.
    """
    ids: list[list[int]] = []
    for start in range(0, len(texts), 1024):
        chunk = list(texts[start : start + 1024])
        encoded = tokenizer(chunk, truncation=True, max_length=max_length, padding=False)
        ids.extend(list(row) for row in encoded["input_ids"])
    for row, tokens in enumerate(ids):
        if not tokens:
            raise DataError(f"texts: row {row}: no token is left of {texts[row][:40]!r}")
    return ids


def length_limit(module: nn.Module, tokenizer: Any) -> int:
    """Return the most tokens that both the positions of the model and its tokenizer allow."""
    from stratcore.data.hub import position_limit

    limits = (getattr(tokenizer, "model_max_length", None), position_limit(getattr(module, "config", None)))
    return min((int(limit) for limit in limits if limit), default=sys.maxsize)


def padded_forward(
    module: nn.Module, tokenizer: Any
) -> Callable[[list[list[int]]], tuple[Any, torch.Tensor]]:
    """Return a function from rows of token ids to (output of the model, mask [B, L] of the real tokens)."""
    config = getattr(module, "config", None)
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    # Decoders often have no pad token. Any token serves: the mask hides it.
    pad = next((token for token in candidates if isinstance(token, int) and token >= 0), 0)
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    cache_off = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}

    def forward(tokens: list[list[int]]) -> tuple[Any, torch.Tensor]:
        longest = max(len(row) for row in tokens)
        # Padded on the right whatever the tokenizer does: positions then start at 0 in every model.
        ids_BL = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=device)
        return module(input_ids=ids_BL, attention_mask=mask_BL, **cache_off), mask_BL

    return forward


def resolve_model(
    model: nn.Module | str | Path,
    tokenizer: Any,
    load: Callable[[str, str], nn.Module],
    dtype: str,
    device: str | None,
) -> tuple[nn.Module, Any]:
    """Return module and tokenizer, loaded where they are given by name.

    Args:
        model: a module, a local folder, a .gguf file, a name of `PAPER_MODELS`, or a hub name.
        tokenizer: of a given module; by default it is loaded along with the model.
        load: (name, dtype) -> module.
        dtype: of the weights of a loaded model.
        device: such as `cuda:0`; by default a loaded model goes to the GPU and a given module stays where it is.

    Raises:
        DataError: a module without its tokenizer, or a model that cannot be loaded.
    """
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise DataError(f"{type(model).__name__}: a model given as a module needs its tokenizer")
        return (model if device is None else model.to(device)), tokenizer
    name = str(model)
    if name.lower().endswith(".gguf"):
        from stratcore.data.gguf import load_gguf

        module, own = load_gguf(name)
        module = module.to(getattr(torch, dtype))
    else:
        from stratcore.data.hub import load_tokenizer

        module = load(name, dtype)
        own = load_tokenizer(name) if tokenizer is None else None
    module = module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return module, own if tokenizer is None else tokenizer


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off and no graph; the training mode comes back afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for child, training in modes.items():
            child.training = training


@contextlib.contextmanager
def progress_bar(what: str, total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar; it does nothing unless a bar is wanted and stderr is a terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
