"""What stands between the encoder and the classifier, by variant. Legend: B sequences, N tokens, D channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from stratcore.layers._residual_branch import ZeroLinear, add_branch, blank_pads, checked_tokens
from stratcore.layers.layer_processing import LayerProcessing, LayerProcessingOptions
from stratcore.layers.stratified_attention import StratifiedAttention, StratifiedAttentionOptions
from stratcore.layers.stratified_moe import StratifiedMoE, StratifiedMoEOptions
from stratcore.layers.stratified_output import StratifiedOutput
from stratcore.layers.stratified_post_attention import StratifiedPostAttention
from stratcore.layers.stratum_router import RouterOptions, StratumRouter
from stratcore.layers.token_routing import TokenRouting, TokenRoutingOptions
from stratcore.models.stratified_classifier_config import StratifiedClassifierConfig

MATCH_TOLERANCE = 0.01

_OPTIONS: dict[str, Any] = {
    "stratified_attention": StratifiedAttentionOptions,
    "token_routing": TokenRoutingOptions,
    "layer_processing": LayerProcessingOptions,
    "stratified_moe": StratifiedMoEOptions,
}
_POST_ATTENTION = ("top_k", "hidden_dim", "scale")


class ResidualMLP(nn.Module):
    """The control of a stratified block: as many parameters, no routing.

        y = x + W_2 gelu(W_1 LN x + b_1)

    W_2 starts at 0, so the layer starts as the identity, bitwise.

    Args:
        dim: D.
        hidden_dim: H.

    Shapes: hidden [B, N, D], mask [B, N] (true at real tokens); result `StratifiedOutput` without routing.
    Cost: a token 4 D H operations; 2 D + H (2 D + 1) parameters.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.input = nn.Linear(dim, hidden_dim)
        self.output = ZeroLinear(hidden_dim, dim)

    @classmethod
    def matched(cls, dim: int, parameters: int) -> ResidualMLP:
        """The one of nearest size.

        Raises:
            ValueError: no hidden size comes within 1 % of the parameters.
        """
        hidden = max(1, round((parameters - 2 * dim) / (2 * dim + 1)))
        size = 2 * dim + hidden * (2 * dim + 1)
        if abs(size - parameters) > MATCH_TOLERANCE * parameters:
            raise ValueError(
                f"matched_parameters: expected a number that a residual MLP of {dim} channels comes within 1 % of,"
                f" got {parameters} (nearest: {size})"
            )
        return cls(dim, hidden)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
        """Hidden state [B, N, D] with the perceptron's share added."""
        mask = checked_tokens(hidden, mask, self.dim)
        branch = self.output(gelu(self.input(self.norm(blank_pads(hidden, mask)))))
        return StratifiedOutput(hidden=add_branch(hidden, branch, mask), losses={}, statistics={}, routing={})


def build_block(config: StratifiedClassifierConfig) -> nn.Module | None:
    """The block of a configuration, anew from torch's generator; None for the variants without one.

    Raises:
        ValueError: options that the block does not know, or that do not fit.
    """
    if config.variant == "mlp":
        return ResidualMLP.matched(config.hidden_size, int(config.matched_parameters or 0))
    name = config.block_variant
    if name is None:
        return None
    return _stratified_block(config, name)


def router_parameters(block: nn.Module) -> list[nn.Parameter]:
    """What decides where tokens go: routers, and of a `StratifiedMoE` gate and affinity too."""
    found = [
        p for module in block.modules() if isinstance(module, StratumRouter) for p in module.parameters()
    ]
    if isinstance(block, StratifiedMoE):
        found += [*block.gate.parameters(), block.affinity]
    return found


def block_parameters(config: StratifiedClassifierConfig) -> int:
    """How many parameters the configured block has, without memory for them: what a control has to match."""
    with torch.device("meta"):
        block = build_block(config)
    return 0 if block is None else sum(parameter.numel() for parameter in block.parameters())


def _stratified_block(config: StratifiedClassifierConfig, name: str) -> nn.Module:
    dim = config.hidden_size
    options = dict(config.block_options)
    router = options.pop("router", {})
    if name == "stratified_post_attention":
        _refuse_unknown(name, options, _POST_ATTENTION)
        _refuse_unknown(f"{name}: router", router, ())
        return StratifiedPostAttention(dim, num_strata=config.num_strata, **options)
    known = [field.name for field in fields(_OPTIONS[name])]
    _refuse_unknown(name, options, [key for key in known if key not in ("dim", "router", "num_strata")])
    if name == "stratified_moe":
        _refuse_unknown(f"{name}: router", router, ())
        return StratifiedMoE(StratifiedMoEOptions(dim=dim, num_strata=config.num_strata, **options))
    _refuse_unknown(
        f"{name}: router", router, [f.name for f in fields(RouterOptions) if f.name != "num_strata"]
    )
    if name == "layer_processing":
        of_all = options.get("inputs", "all") == "all"
        strata = config.num_hidden_layers + 1 if of_all else config.num_strata
        return LayerProcessing(
            LayerProcessingOptions(dim=dim, router=RouterOptions(num_strata=strata, **router), **options)
        )
    routed = RouterOptions(num_strata=config.num_strata, **router)
    if name == "token_routing":
        return TokenRouting(TokenRoutingOptions(dim=dim, router=routed, **options))
    heads = {"num_heads": config.encoder.num_attention_heads} | options
    return StratifiedAttention(StratifiedAttentionOptions(dim=dim, router=routed, **heads))


def _refuse_unknown(where: str, options: Mapping[str, Any], known: Any) -> None:
    for name in options:
        if name not in known:
            raise ValueError(f"block_options: {where} has the options {list(known)}, got {name!r}")
