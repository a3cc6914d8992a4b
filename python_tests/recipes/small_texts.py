"""Four hundred labelled texts of two domains, a tiny encoder beside its tokenizer, and settings that take seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from stratcore.recipes import CompareClassifiersRun, compare_classifiers
from stratcore.recipes.settings import load_run

WORDS = ["good", "fine", "bad", "poor", "plot", "actor", "taste", "cook", "the", "was", "very"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
DOMAINS = {"film": ("plot", "actor"), "food": ("taste", "cook")}
SETTINGS = (
    "encoder=tiny",
    "data.sets=[rows.jsonl]",
    "data.split.test_rows=20",
    "data.split.least_test_rows=40",
    "data.split.validation_rows=10",
    "stage.steps=4",
    "stage.optimizer.warmup_steps=1",
    "stage.intervals.eval_every=2",
    "stage.numerics.precision=fp32",
    "seeds=[0,1]",
    "learning_rates=[1e-3]",
    "device=cpu",
)


def save_small_texts(folder: Path) -> None:
    """Writes `tiny` (encoder and tokenizer) and `rows.jsonl`."""
    names = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "tiny")
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(vocab_size=16, **sizes)).save_pretrained(folder / "tiny")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in small_texts()))


def small_texts(rows_per_domain: int = 200) -> list[dict[str, Any]]:
    """Rows with text, label and domain; a number makes every text another one."""
    drawn = random.Random(0)
    rows = []
    for domain, nouns in DOMAINS.items():
        for index in range(rows_per_domain):
            label = ("negative", "positive")[index % 2]
            word = drawn.choice(WORDS[:2] if label == "positive" else WORDS[2:4])
            text = f"{index} the {drawn.choice(nouns)} was very {word}"
            rows.append({"text": text, "label": label, "domain": domain})
    return rows


def small_comparison(*settings: str) -> CompareClassifiersRun:
    """The run of the settings above and these."""
    return load_run(
        {"compare_classifiers": compare_classifiers}, "compare_classifiers", None, [*SETTINGS, *settings]
    )
