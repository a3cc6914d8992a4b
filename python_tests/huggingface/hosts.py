"""Tiny hosts with random weights, large enough for attention to be far from uniform; and an oracle for the bias.

Legend: B batch, H heads, N queries, M keys, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import transformers as hf
from torch import Tensor

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
HYBRID = ["sliding_attention", "full_attention", "sliding_attention"]


def host(name: str, **changes: Any) -> Any:
    """A model in evaluation mode, the same each time."""
    kind, config, options = {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, GROUPED),
        "gpt2": (
            hf.GPT2LMHeadModel,
            hf.GPT2Config,
            {
                "vocab_size": 64,
                "n_embd": 32,
                "n_head": 4,
                "n_layer": 3,
                "n_positions": 128,
                "initializer_range": 0.3,
            }
            | SPECIAL,
        ),
        "phi": (hf.PhiForCausalLM, hf.PhiConfig, SIZES | {"pad_token_id": 0}),
        "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, GROUPED | {"pad_token_id": 0} | SPECIAL),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, GROUPED),
        "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, SIZES | SPECIAL),
        "mistral": (hf.MistralForCausalLM, hf.MistralConfig, GROUPED | {"sliding_window": 5}),
        "gemma3": (
            hf.Gemma3ForCausalLM,
            hf.Gemma3TextConfig,
            GROUPED | {"head_dim": 8, "sliding_window": 5, "layer_types": HYBRID, "initializer_range": 0.1},
        ),
        "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, GROUPED | {"head_dim": 8}),
        "bert": (hf.BertForMaskedLM, hf.BertConfig, SIZES),
        "vit": (
            hf.ViTModel,
            hf.ViTConfig,
            {k: SIZES[k] for k in SIZES if k not in ("vocab_size", "max_position_embeddings")}
            | {"image_size": 16, "patch_size": 4},
        ),
        "bart": (
            hf.BartModel,
            hf.BartConfig,
            {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
        ),
        "bloom": (
            hf.BloomModel,
            hf.BloomConfig,
            {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4},
        ),
    }[name]
    torch.manual_seed(7)
    implementation = changes.pop("attn_implementation", "sdpa")
    model = kind(config(**{**options, **changes})).eval()
    model.set_attn_implementation(implementation)
    return model


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> Tensor:
    """[B, N], never 0."""
    return torch.randint(1, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """[B, N, V]."""
    with torch.no_grad():
        return model(ids, **inputs).logits


def distance(i: int, j: int, lattice: Sequence[int], metric: str = "l1") -> float:
    """Of two positions in row-major order, by definition: over all ways around the torus."""
    place = []
    for t in (i, j):
        left, coordinates = t % math.prod(lattice), []
        for period in lattice[::-1]:
            coordinates.append(left % period)
            left //= period
        place.append(coordinates[::-1])
    best = math.inf
    for turns in product((-1, 0, 1), repeat=len(lattice)):
        steps = [abs(x - y + turn * n) for x, y, turn, n in zip(*place, turns, lattice, strict=True)]
        best = min(best, {"l1": sum(steps), "l2": math.hypot(*steps), "linf": max(steps)}[metric])
    return best


def biased_mask(
    slopes: Tensor,
    length: int,
    lattice: Sequence[int],
    metric: str = "l1",
    causal: bool = True,
    first: int = 0,
) -> Tensor:
    """The toroidal bias as the mask [1, H, N, N] that a host adds to its scores."""
    rows = range(first, first + length)
    table = torch.tensor([[distance(i, j, lattice, metric) for j in rows] for i in rows])
    mask = -slopes[:, None, None] * table
    if causal:
        mask = mask.masked_fill(torch.ones(length, length).triu(1).bool(), torch.finfo(torch.float32).min)
    return mask[None]
