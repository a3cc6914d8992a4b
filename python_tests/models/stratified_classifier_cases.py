"""Tiny encoders whose random weights tell pads and positions apart; a tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from stratcore.models import VARIANTS, StratifiedClassifier

POSITIONS = 160
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "pad_token_id": 1,
}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS: dict[str, Any] = {
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=64,
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        pad_token_id=1,
    ),
    "bert": lambda: hf.BertConfig(**SIZES),
    "roberta": lambda: hf.RobertaConfig(**SIZES | SPECIAL | {"type_vocab_size": 1}),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, initializer_range=0.2, **SPECIAL
    ),
}
ENCODERS = tuple(CONFIGS)
# Further families, by what they do with positions, types and caches.
CONFIGS |= {
    "electra": lambda: hf.ElectraConfig(**SIZES, embedding_size=32),
    "deberta": lambda: hf.DebertaV2Config(**SIZES),
    "mpnet": lambda: hf.MPNetConfig(**SIZES),
    "modernbert": lambda: hf.ModernBertConfig(**SIZES | SPECIAL, cls_token_id=0, sep_token_id=0),
    "llama": lambda: hf.LlamaConfig(**SIZES | SPECIAL, num_key_value_heads=2),
    "opt": lambda: hf.OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=32,
        init_std=0.2,
        **SPECIAL,
    ),
}
FAMILIES = tuple(CONFIGS)[len(ENCODERS) :]
ROUTED = tuple(name for name in VARIANTS if name not in ("plain", "mlp", "geometric_regularization"))
BLOCKS = ("mlp", *ROUTED)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "fine", "poor", "film", "day", "the", "a", "very")


@cache
def encoder(name: str) -> Any:
    """The same each time; never to be changed: classifiers take copies."""
    torch.manual_seed(7)
    return hf.AutoModel.from_config(CONFIGS[name]()).eval()


def classifier(
    name: str = "distilbert", variant: str = "stratified_moe", **options: Any
) -> StratifiedClassifier:
    if variant == "mlp":
        options = {"matched_parameters": 8_000} | options
    return StratifiedClassifier.from_encoder(encoder(name), variant=variant, **options)


def moved(model: StratifiedClassifier, std: float = 0.3) -> StratifiedClassifier:
    """The model away from its start: zeros of the block become normal numbers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in () if model.block is None else model.block.parameters():
            if not parameter.any():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model


def batch() -> dict[str, Tensor]:
    """Three sequences of 9, 5 and 1 tokens, with labels."""
    generator = torch.Generator().manual_seed(5)
    input_ids = torch.randint(5, 64, (3, 9), generator=generator)
    attention_mask = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    return {
        "input_ids": torch.where(attention_mask, input_ids, 1),
        "attention_mask": attention_mask.long(),
        "labels": torch.tensor([0, 1, 1]),
    }


def tokenizer() -> hf.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **names)
