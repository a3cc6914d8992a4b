"""Host and texts of `toroidal_lm`. Legend: R rows, L tokens of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from stratcore.data import DataError, PerplexityOptions, load_texts
from stratcore.data._batches import resolve_model
from stratcore.data.hub import load_causal_model
from stratcore.data.perplexity import TextPerplexity, text_perplexity
from stratcore.data.token_blocks import token_blocks
from stratcore.models.toroidal_lm import turn_off_attention_dropout
from stratcore.recipes.toroidal_lm import LanguageDataOptions, ToroidalLMRun


@dataclass(frozen=True, eq=False)
class LanguageMaterial:
    """What every arm starts from.

    Args:
        host: on the CPU, in evaluation mode, without dropout of attention weights; never changed.
        tokenizer: its own.
        train: int64 [R, L].
        validation: int64 [R, L], of the same texts, in other rows.
        evaluation: texts by name of their set.
        scoring: window and stride.
    """

    host: nn.Module
    tokenizer: Any
    train: np.ndarray
    validation: np.ndarray
    evaluation: dict[str, tuple[str, ...]]
    scoring: PerplexityOptions

    def perplexities(self, model: nn.Module) -> dict[str, TextPerplexity]:
        """How well a model foresees each set; the one way in which every arm is scored."""
        return {
            name: text_perplexity(model, texts, self.tokenizer, self.scoring, progress=False)
            for name, texts in self.evaluation.items()
        }

    def describe(self) -> dict[str, Any]:
        """Sizes."""
        return {
            "host": type(self.host).__name__,
            "train_tokens": int(self.train.size),
            "row_length": int(self.train.shape[1]),
            "validation_rows": len(self.validation),
            "evaluation_texts": {name: len(texts) for name, texts in self.evaluation.items()},
        }


def load_language_material(run: ToroidalLMRun) -> LanguageMaterial:
    """Loads host and texts.

    Raises:
        DataError: texts or a host that cannot be used, or fewer rows than wanted.
        ValueError: no host, or no training text.
    """
    if run.host is None:
        raise ValueError("host: expected a folder, a .gguf file or a hub name of a language model, got none")
    if not run.data.train:
        raise ValueError("data.train: expected at least one text set or file, got none")
    train, evaluation = load_language_texts(run.data)
    host, tokenizer = resolve_model(run.host, None, load_causal_model, run.host_dtype, "cpu")
    turn_off_attention_dropout(host)  # type: ignore[arg-type]
    rows = token_blocks(train, tokenizer, run.data.length, source="data.train")
    kept = run.data.validation_rows
    if len(rows) < kept + run.batch_size:
        raise DataError(
            f"data.train: expected at least {kept + run.batch_size} rows of {run.data.length} tokens "
            f"(data.validation_rows, batch_size, data.length), got {len(rows)}"
        )
    order = np.random.default_rng(run.data.seed).permutation(len(rows))
    scoring = PerplexityOptions(window=run.data.window or run.data.length, stride=run.data.stride)
    return LanguageMaterial(
        host=host.eval(),
        tokenizer=tokenizer,
        train=rows[order[kept:]],
        validation=rows[order[:kept]],
        evaluation=evaluation,
        scoring=scoring,
    )


def load_language_texts(data: LanguageDataOptions) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Texts to learn from, and those of each set to be scored; no text is both.

    Raises:
        DataError: a set that cannot be read, or whose every text is scored.
    """
    train: list[str] = []
    scored: dict[str, tuple[str, ...]] = {}
    for name in data.evaluation:
        scored[name] = load_texts(name, data.evaluation_rows, data.seed).texts
    for name in data.train:
        # What is scored comes off first, so that it is the same however many rows are learned from.
        shared = name in data.evaluation
        whole = shared or not data.evaluation
        texts = load_texts(name, None if whole else data.rows, data.seed).texts
        if not data.evaluation:
            count = max(1, round(data.held_out * len(texts)))
            scored[name], texts = texts[:count][: data.evaluation_rows], texts[count:]
        if whole:
            own = set(scored[name])
            texts = tuple(text for text in texts if text not in own)[: data.rows]
        train += texts
    seen = {text for texts in scored.values() for text in texts}
    kept = [text for text in train if text not in seen]
    if not kept:
        raise DataError("data.train: every text is among those that are scored")
    return kept, scored
