"""A tiny language model beside its tokenizer, a file of lines that it can learn, and settings that take seconds."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from python_tests.huggingface.hosts import host

WORDS = [f"w{index}" for index in range(60)]
SETTINGS = (
    "host=tiny",
    "data.train=[lines.txt]",
    "data.length=16",
    "data.validation_rows=4",
    "data.evaluation_rows=12",
    "stage.steps=3",
    "stage.accumulate=1",
    "stage.optimizer.warmup_steps=1",
    "stage.intervals.eval_every=2",
    "stage.numerics.precision=fp32",
    "seeds=[0,1]",
    "device=cpu",
)


def save_small_language(folder: Path) -> None:
    """Writes `tiny` (a Llama and its tokenizer), `lines.txt` and `other.txt`."""
    names = {word: index for index, word in enumerate(["[UNK]", "[PAD]", "[BOS]", "[EOS]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tiny")
    host("llama").save_pretrained(folder / "tiny")
    (folder / "lines.txt").write_text("\n".join(lines(120, 0)))
    (folder / "other.txt").write_text("\n".join(lines(20, 1)))


def lines(count: int, seed: int) -> list[str]:
    """Words of which each is one or two behind the one before."""
    drawn = random.Random(seed)
    found = []
    for _ in range(count):
        place, words = drawn.randrange(60), []
        for _ in range(drawn.randrange(5, 12)):
            place = (place + drawn.randrange(1, 3)) % 60
            words.append(WORDS[place])
        found.append(" ".join(words))
    return found
