"""Mixture of experts whose gate knows strata. Legend: B sequences, N tokens, D channels, S strata, E experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stratcore.layers._expert_dispatch import ExpertMLPs, check_dispatch, mix_experts
from stratcore.layers._residual_branch import add_branch, blank_pads, checked_tokens
from stratcore.layers.stratified_output import StratifiedOutput, stratified_output
from stratcore.layers.stratum_router import (
    RouterOptions,
    StratumRouter,
    check_routing,
    full_precision,
    route,
)


@dataclass(frozen=True, kw_only=True)
class StratifiedMoEOptions:
    """Size and form of a `StratifiedMoE`.

    Args:
        dim: D.
        hidden_dim: hidden size of an expert.
        num_experts: E.
        num_strata: S.
        top_k: experts a token goes to, in [1, E].
        capacity_factor: c: an expert takes at most ceil(c k T / E) of T real tokens; None: no bound.
        noise: standard deviation of normal noise on the gate's logits, in training only.
        activation: 'relu' or 'gelu'.
        dispatch: 'sparse' runs an expert on its own tokens, 'dense' every expert on every token.
    """

    dim: int
    hidden_dim: int = 64
    num_experts: int = 4
    num_strata: int = 3
    top_k: int = 2
    capacity_factor: float | None = None
    noise: float = 0.0
    activation: str = "relu"
    dispatch: str = "sparse"

    def __post_init__(self) -> None:
        check_routing(self.num_experts, "top_k", self.top_k, 1.0, self.noise)
        check_dispatch(self.dispatch, "top_k", self.capacity_factor)


class StratifiedMoE(nn.Module):
    """Top-k mixture of experts; the stratum of a token shifts which experts it prefers.

        l_e(x) = u_e . LN(x) + sum_s p_s(LN x) B_se,   p the softmax of a `StratumRouter`, B learned [S, E]
        y = x + sum_e w_e f_e(LN x),                   w = top-k of softmax(l), f_e a perceptron D -> H -> D

    The last maps of the experts start at 0, so the layer starts as the identity, bitwise. What overflows an expert's
    capacity is left to the residual: first choices are served before second ones, earlier tokens before later ones.

    Args:
        options: size and form.

    Shapes: hidden [B, N, D], mask [B, N] (true at real tokens); result `StratifiedOutput`, routing 'experts' and
        'strata'; losses are sums over both.
    Gradient: of the experts' last maps (of those chosen) and, through the losses, of the gates at once; of the rest
        a step later. The stratum detector learns through B and through the losses.
    Numerics: 'sparse' with k = E equals 'dense' but for the order of sums. Gates run in full precision. Pads change
        nothing at real tokens; with a capacity, other sequences of the batch do.
    Determinism: bitwise, backward too. `torch.compile(fullgraph=True)`: as `TokenRouting`.
    Cost: a token 4 k D H operations and D^2 of the detector; sorting T k small integers.
    Source: the source documents, whose detector reached no output; Shazeer et al. 2017; Fedus et al. 2021.
    """

    def __init__(self, options: StratifiedMoEOptions) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        self.experts = ExpertMLPs(
            options.num_experts, dim, options.hidden_dim, activation=options.activation, zero_output=True
        )
        self.norm = nn.LayerNorm(dim)
        self.strata = StratumRouter(dim, RouterOptions(num_strata=options.num_strata))
        self.gate = nn.Linear(dim, options.num_experts, bias=False)
        self.affinity = nn.Parameter(torch.empty(options.num_strata, options.num_experts))
        nn.init.normal_(self.affinity, std=0.02)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
        """Hidden state [B, N, D] with the experts' share added.

        Raises:
            ValueError: hidden or mask of another shape, or a mask of floating point.
        """
        options = self.options
        mask = checked_tokens(hidden, mask, options.dim)
        normed = self.norm(blank_pads(hidden, mask))
        strata = self.strata(normed, mask)
        with torch.autocast(hidden.device.type, enabled=False):
            prior = strata.probabilities @ self.affinity.to(strata.probabilities.dtype)
        experts = route(
            full_precision(self.gate, normed) + prior,
            mask,
            mode="top_k",
            top_k=options.top_k,
            noise=options.noise if self.training else 0.0,
        )
        mixed, overflow = mix_experts(
            self.experts, normed, experts, options.dispatch, options.capacity_factor
        )
        routing = {"experts": experts, "strata": strata}
        return stratified_output(add_branch(hidden, mixed, mask), routing, overflow=overflow)
