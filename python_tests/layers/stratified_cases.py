"""Every stratified block, small, with one way to call it. Legend: B sequences, N tokens, D channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stratcore.layers import (
    LayerProcessing,
    LayerProcessingOptions,
    RouterOptions,
    StratifiedAttention,
    StratifiedAttentionOptions,
    StratifiedEmbedding,
    StratifiedEmbeddingOptions,
    StratifiedMoE,
    StratifiedMoEOptions,
    StratifiedOutput,
    StratifiedPostAttention,
    TokenRouting,
    TokenRoutingOptions,
)

TOP_2 = RouterOptions(num_strata=3, mode="top_k", top_k=2)
HARD = RouterOptions(num_strata=2, mode="straight_through")
FIVE = RouterOptions(num_strata=5)
VOCABULARY = 11


def attention(dim: int, **options: Any) -> nn.Module:
    return StratifiedAttention(StratifiedAttentionOptions(dim=dim, num_heads=2, **options))


def routing(dim: int, **options: Any) -> nn.Module:
    return TokenRouting(TokenRoutingOptions(**{"dim": dim, "hidden_dim": 8} | options))


def layers(dim: int, **options: Any) -> nn.Module:
    return LayerProcessing(LayerProcessingOptions(dim=dim, router=FIVE, **options))


def experts(dim: int, **options: Any) -> nn.Module:
    return StratifiedMoE(StratifiedMoEOptions(**{"dim": dim, "hidden_dim": 8} | options))


def embedding(dim: int, **options: Any) -> nn.Module:
    return StratifiedEmbedding(
        StratifiedEmbeddingOptions(vocab_size=VOCABULARY, dim=dim, table_dim=3, **options)
    )


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "attention separate": lambda dim: attention(dim),
    "attention top-k": lambda dim: attention(dim, router=TOP_2),
    "attention hard": lambda dim: attention(dim, router=HARD),
    "attention shared": lambda dim: attention(dim, projections="shared", router=RouterOptions(num_strata=2)),
    "routing dense": lambda dim: routing(dim),
    "routing dense top-k": lambda dim: routing(dim, router=TOP_2, dispatch="dense"),
    "routing sparse": lambda dim: routing(dim, router=TOP_2, activation="gelu"),
    "routing hard": lambda dim: routing(dim, router=HARD),
    "layers all": lambda dim: layers(dim),
    "layers norm": lambda dim: layers(dim, processor="norm", selector="token"),
    "layers last": lambda dim: layers(dim, inputs="last", hidden_dim=6),
    "layers last norm": lambda dim: layers(dim, inputs="last", processor="norm"),
    "experts": lambda dim: experts(dim),
    "experts of odd size": lambda dim: experts(dim, hidden_dim=7),
    "experts dense": lambda dim: experts(dim, dispatch="dense"),
    "experts capacity": lambda dim: experts(dim, capacity_factor=0.8),
    "post attention": lambda dim: StratifiedPostAttention(dim, hidden_dim=6, scale=0.5),
    "embedding": lambda dim: embedding(dim),
    "embedding token": lambda dim: embedding(dim, selector="token"),
}
BIASED = [name for name in BLOCKS if "hard" in name]  # straight-through: not the gradient of the forward


def call(block: nn.Module, x: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
    """The block on hidden states x; what else it needs is a function of x, token by token."""
    if isinstance(block, LayerProcessing) and block.options.inputs == "all":
        return block([x * scale - scale for scale in (0.2, -0.5, 0.7, 1.4)] + [x], mask)
    if isinstance(block, StratifiedEmbedding):
        tokens = (x.detach()[..., 0].float().nan_to_num() * 7).long() % VOCABULARY
        return block(x, tokens, mask)
    return block(x, mask)


def moved(block: nn.Module, std: float = 0.4) -> nn.Module:
    """The block away from its start: zeros become normal numbers."""
    with torch.no_grad():
        for parameter in block.parameters():
            if not parameter.any():
                parameter.normal_(std=std)
    return block


def tokens_and_mask(dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Three sequences: whole, half padded, pads alone."""
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2] = False
    return torch.randn(3, 6, dim).to(dtype), mask
