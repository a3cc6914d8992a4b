"""A small encoder with random weights and a vocabulary of whole words, to be trained from the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def save_small_encoder(
    folder: str | Path,
    texts: Iterable[str],
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    max_length: int = 128,
    max_words: int = 30_000,
    seed: int = 0,
) -> Path:
    """Write a BERT with random weights and its tokenizer, of the texts' most frequent words, to a folder.

    Args:
        folder: made if missing.
        texts: split at spaces and punctuation, lower-cased.
        hidden_size: D; the perceptrons have 4 D.
        layers: blocks.
        heads: of each block; they divide D.
        max_length: most tokens of a text.
        max_words: most words of the vocabulary; others are unknown.
        seed: of the weights; torch's generator is left as it was.

    Returns:
        The folder, for `load_encoder` and `find_tokenizer`.

    Raises:
        ValueError: no word in the texts, or heads that do not divide D.
    """
    from transformers import BertConfig, BertModel

    if hidden_size % heads:
        raise ValueError(f"heads: expected a number that divides {hidden_size}, got {heads}")
    tokenizer = _tokenizer(texts, max_words, max_length)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=max_length,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return Path(folder)


def _tokenizer(texts: Iterable[str], max_words: int, max_length: int) -> Any:
    """Tokenizer of transformers over the most frequent words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter, lower = pre_tokenizers.BertPreTokenizer(), normalizers.Lowercase()
    counts = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))
    )
    if not counts:
        raise ValueError("texts: expected at least one word, got none")
    # Words of one count in the order of the alphabet: the same vocabulary for the same texts in any order.
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    names = {word: index for index, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", names["[CLS]"]), ("[SEP]", names["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
