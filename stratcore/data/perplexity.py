"""Perplexity of each text under a causal language model, independent of how texts are batched.

Legend: N texts, W windows, B rows and L tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from stratcore.data.hub import load_causal_model
from stratcore.data.texts import check_texts

NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class PerplexityOptions:
    """How texts are scored.

    Args:
        window: tokens the model sees at once; a smaller limit of the model or tokenizer holds instead.
        stride: tokens by which the window moves along a longer text; each token after the first window then has at
            least window - stride tokens before it. None: half the window.
        max_tokens: tokens a text is cut to; None: the whole text.
        start_token: put the tokenizer's beginning-of-text token before each text, so that its first token is scored.
        tokens_per_batch: padded tokens in one batch; their logits are tokens x vocabulary numbers.
        shard_rows: windows per cache file, so what an interruption can lose.
        dtype: of the weights when a model is loaded by name. A module that is given keeps its own.
        device: such as `cuda:0`. A loaded model goes to the GPU by default, a given module stays where it is.

    Raises:
        ValueError: names the option.
    """

    window: int = 1024
    stride: int | None = None
    max_tokens: int | None = None
    start_token: bool = False
    tokens_per_batch: int = 2048
    shard_rows: int = 256
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"PerplexityOptions.dtype: expected float32, bfloat16 or float16, got {self.dtype!r}"
            )
        least = {"window": 2, "stride": 1, "max_tokens": 1, "tokens_per_batch": 1, "shard_rows": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"PerplexityOptions.{name}: expected at least {low}, got {value}")


@dataclass(frozen=True, eq=False, kw_only=True)
class TextPerplexity:
    """How well a language model foresees each text.

    Args:
        negative_log_likelihood: [N] float64, nats, summed over the scored tokens of each text.
        scored: [N] int64, number of scored tokens: all but the first, which nothing precedes.
        token_count: [N] int64, tokens of each text, special tokens included.
    """

    negative_log_likelihood: np.ndarray
    scored: np.ndarray
    token_count: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Nats per scored token of each text, [N]; NaN where a text has no scored token."""
        nothing = self.scored == 0
        return np.where(nothing, np.nan, self.negative_log_likelihood / np.where(nothing, 1, self.scored))

    @property
    def perplexity(self) -> np.ndarray:
        """exp(mean) of each text, [N]; NaN where a text has no scored token."""
        return np.exp(self.mean)

    def overall(self) -> float:
        """Perplexity of all texts together, every scored token with the same weight; NaN where there is none."""
        scored = int(self.scored.sum())
        return float(np.exp(self.negative_log_likelihood.sum() / scored)) if scored else float("nan")


def text_perplexity(
    model: nn.Module | str | Path,
    texts: Sequence[str],
    tokenizer: Any = None,
    options: PerplexityOptions | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> TextPerplexity:
    """Score each text with a causal language model.

        perplexity_i = exp(-1 / n_i sum_t log p(x_it | x_i1, ..., x_i(t-1))),  t = 2, ..., 1 + n_i

    Args:
        model: a causal model of `transformers`, a local folder, a .gguf file, a name of `PAPER_MODELS`, or a hub
            name.
        texts: N texts, none empty.
        tokenizer: of a given module; by default it is loaded along with the model.
        options: window, stride, lengths, batches, device.
        cache_dir: folder for finished shards, under a key made of tokens, weights and options. A run that was
            interrupted goes on after its last finished shard; the same job again only reads.
        progress: show a bar; only on a terminal.

    Returns:
        Sums and counts per text, in the order of `texts`. A text of one token has nothing to score: count 0, sum 0,
        perplexity NaN.

    Raises:
        DataError: an empty text, named by row; a model that cannot be loaded or whose tokens see later ones; a
            likelihood that is not finite; a stride that is not shorter than the window.

    Numerics: log-softmax in float32 (float64 for a float64 model), sums in float64. Labels are the inputs shifted by
    one, once; padding is never scored. The batch a text was in changes its sum by rounding alone (tested: 1e-6).
    Determinism: batches are formed by length, so a resumed run is bitwise equal to an uninterrupted one.
    Cost: one forward pass over window / stride times the tokens of long texts.
    """
    options = options or PerplexityOptions()
    check_texts(texts, "texts")
    module, tokenizer = resolve_model(model, tokenizer, load_causal_model, options.dtype, options.device)
    tokens = _tokens(texts, tokenizer, options)
    window = min(options.window, length_limit(module, tokenizer))
    stride = max(window // 2, 1) if options.stride is None else options.stride
    if not stride < window:
        raise DataError(
            f"perplexity: stride: expected fewer than the {window} tokens of a window, got {stride}"
        )
    windows = _windows(tokens, window, stride)
    cache = None
    if cache_dir is not None:
        layout = f"perplexity {window} {stride} {options.shard_rows} {options.tokens_per_batch}"
        cache = ShardCache(Path(cache_dir) / cache_key(texts, tokens, module, layout), np.float64)
    shards = Shards(options.shard_rows, options.tokens_per_batch, cache)
    with evaluating(module), progress_bar("perplexity", len(windows.rows), progress) as advance:
        sums = _sums(module, tokenizer, windows, shards, advance) if windows.rows else np.zeros(0)
    return TextPerplexity(
        negative_log_likelihood=np.bincount(windows.text, sums, minlength=len(texts)),
        scored=np.array([len(row) - 1 for row in tokens], np.int64),
        token_count=np.array([len(row) - options.start_token for row in tokens], np.int64),
    )


class _Windows(NamedTuple):
    """Pieces of texts that the model sees at once.

    text: text of each window [W]. rows: tokens of each. known: leading tokens of each that are context only [W].
    """

    text: np.ndarray
    rows: list[list[int]]
    known: np.ndarray


def _tokens(texts: Sequence[str], tokenizer: Any, options: PerplexityOptions) -> list[list[int]]:
    tokens = tokenize(texts, tokenizer, options.max_tokens or NO_LIMIT)
    if not options.start_token:
        return tokens
    start = getattr(tokenizer, "bos_token_id", None)
    if start is None:
        raise DataError("perplexity: start_token: this tokenizer has no beginning-of-text token")
    return [[start, *row] for row in tokens]


def _windows(tokens: list[list[int]], window: int, stride: int) -> _Windows:
    """Cut texts so that each token but a text's first is scored in exactly one window."""
    owner, rows, known = [], [], []
    for text, row in enumerate(tokens):
        done = 1  # tokens of this text that need no score any more
        for start in range(0, len(row), stride):
            end = min(start + window, len(row))
            if end > done:
                owner.append(text)
                rows.append(row[start:end])
                known.append(done - start)
                done = end
    return _Windows(np.array(owner, np.int64), rows, np.array(known, np.int64))


def _sums(
    module: nn.Module, tokenizer: Any, windows: _Windows, shards: Shards, advance: Callable[[int], None]
) -> np.ndarray:
    """Negative log-likelihood of each window, [W] float64."""
    forward = padded_forward(module, tokenizer)
    _check_causal(forward, windows.rows[0][:2], type(module).__name__)

    def compute(batch: np.ndarray) -> np.ndarray:
        return _score(forward, [windows.rows[i] for i in batch], windows.known[batch])

    def check(part: np.ndarray, batch: np.ndarray) -> None:
        bad = windows.text[batch[~np.isfinite(part[:, 0])]]
        if bad.size:
            raise DataError(
                f"texts: row {bad.min()}: the model's likelihood is not finite ({bad.size} such windows)"
            )

    lengths = np.array([len(row) for row in windows.rows], np.int64)
    return run_shards(lengths, shards, compute, check, advance)[:, 0]


def _score(
    forward: Callable[..., tuple[Any, torch.Tensor]], rows: list[list[int]], known: np.ndarray
) -> np.ndarray:
    """Negative log-likelihoods [B, 1] of the tokens of each row after its known ones."""
    output, _ = forward(rows)
    sums = []
    # One row at a time: a log-softmax takes as much memory as its logits.
    for row, logits_LV, seen in zip(rows, output.logits, known.tolist(), strict=True):
        scores = logits_LV[seen - 1 : len(row) - 1]
        scores = scores if scores.dtype == torch.float64 else scores.float()
        labels = torch.tensor(row[seen:], device=scores.device)
        losses = nn.functional.cross_entropy(scores, labels, reduction="none")
        sums.append(losses.double().sum())
    return torch.stack(sums)[:, None].cpu().numpy()


def _check_causal(forward: Callable[..., tuple[Any, torch.Tensor]], prefix: list[int], name: str) -> None:
    """Raise `DataError` where a later token changes the scores of earlier ones."""
    output, _ = forward([[*prefix, token] for token in (prefix[0], prefix[0] - 1 if prefix[0] else 1)])
    logits_BLV = getattr(output, "logits", None)
    if logits_BLV is None:
        raise DataError(f"{name}: returns no logits; perplexity needs a language model with its head")
    first_LV, second_LV = logits_BLV[:, : len(prefix)].double()
    if not torch.allclose(first_LV, second_LV, rtol=1e-2, atol=1e-2 * float(first_LV.std()), equal_nan=True):
        raise DataError(f"{name}: its tokens see later ones; perplexity needs a causal language model")
