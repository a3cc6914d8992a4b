"""Attention within strata. Legend: B sequences, N tokens, D channels, S strata, H heads, G all heads, E head size."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from stratcore.layers._residual_branch import ZeroLinear, add_branch, blank_pads, checked_tokens
from stratcore.layers.stratified_output import StratifiedOutput, stratified_output
from stratcore.layers.stratum_router import RouterOptions, StratumRouter

PROJECTIONS = ("separate", "shared")
GATE_FLOOR = 1e-9
PAD_LOGIT = -1e4


def log_gate_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Softmax attention with keys weighted by a gate.

        y_i = sum_j softmax_j(q_i . k_j / sqrt(E) + log(g_j + 1e-9)) v_j

    With a gate of 0 and 1 this is attention among the keys of gate 1 (block-diagonal after sorting by stratum).

    Args:
        q: [B, G, N, E].
        k: [B, G, N, E].
        v: [B, G, N, E].
        gate: [B, G, N], in [0, 1].
        mask: bool [B, N], true at real keys, or None.
        causal: each query sees keys up to its own position only.

    Returns:
        [B, G, N, E]; finite, of no meaning where a query sees no real key.

    Gradient: exact, finite at g = 0; in float16 it is 0 there.
    Numerics: log-gate and mask are further channels of the keys, against ones in the queries: no N x N tensor, not
        in the gradient either, and every kernel of torch serves. In 16 bits the log-gate takes two channels, a
        rounded value and the rest: error < 2e-4. Foreign keys keep a share of 1e-9 in the hard limit.
    Cost: that of attention with heads of E + 2 channels, rounded up to a multiple of 8.
    """
    head_dim = q.shape[-1]
    log_gate = (gate + GATE_FLOOR).log()
    if mask is not None:
        log_gate = torch.where(mask[:, None, :], log_gate, PAD_LOGIT)
    high = log_gate.to(k.dtype)
    low = (log_gate - high).to(k.dtype)
    extra = -(head_dim + 2) % 8
    ones = torch.ones_like(q[..., :1])
    q = pad(torch.cat([q * head_dim**-0.5, ones, ones], -1), (0, extra))
    k = pad(torch.cat([k, high[..., None], low[..., None]], -1), (0, extra))
    v = pad(v, (0, 2 + extra))
    return scaled_dot_product_attention(q, k, v, scale=1.0, is_causal=causal)[..., :head_dim]


@dataclass(frozen=True, kw_only=True)
class StratifiedAttentionOptions:
    """Size and form of a `StratifiedAttention`.

    Args:
        dim: D.
        num_heads: H, divides D; heads of each stratum ('separate') or of all together ('shared').
        router: router over the S = `router.num_strata` strata.
        projections: 'separate': each stratum has queries, keys and values of its own, S H heads in all.
            'shared': one set, its H heads in S groups, a group a stratum; S divides H.
        causal: each token sees itself and earlier ones only.
    """

    dim: int
    num_heads: int = 8
    router: RouterOptions = field(default_factory=RouterOptions)
    projections: str = "separate"
    causal: bool = False

    def __post_init__(self) -> None:
        if self.projections not in PROJECTIONS:
            raise ValueError(
                f"projections: expected one of {', '.join(PROJECTIONS)}, got {self.projections!r}"
            )
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim = {self.dim}, got {self.num_heads}")
        if self.projections == "shared" and self.num_heads % self.router.num_strata:
            raise ValueError(
                f"num_heads: expected a multiple of num_strata = {self.router.num_strata} with shared"
                f" projections, got {self.num_heads}"
            )


class StratifiedAttention(nn.Module):
    """Tokens attend within strata; how much of each stratum a token reads and gives is its routing weight.

        A^s_ij = softmax_j(q^s_i . k^s_j / sqrt(E) + log(g_js + 1e-9)),   g of a `StratumRouter` on LN x
        separate   y_i = x_i + W_o sum_s g_is [heads of s: sum_j A^s_ij v^s_j]
        shared     y_i = x_i + W_o concat_s g_is [heads of group s: sum_j A^s_ij v_j]

    W_o starts at 0, so the layer starts as the identity, bitwise. With one-hot g ('straight_through') attention is
    block-diagonal after sorting by stratum.

    Args:
        options: size and form.

    Shapes: hidden [B, N, D], mask [B, N] (true at real tokens); result `StratifiedOutput`, routing 'strata'.
    Gradient: of W_o at once, of what is behind it a step later; the router learns from keys and from queries.
    Numerics: see `log_gate_attention`. A sequence of pads alone stays as it is.
    Determinism: as torch's attention. `torch.compile(fullgraph=True)`: yes.
    Cost: separate: S times that of attention over D channels; shared: once.
    Source: the source documents; there foreign tokens, set to 0, stayed in the softmax, the choice by argmax had no
        gradient and pads were attended to.
    """

    def __init__(self, options: StratifiedAttentionOptions) -> None:
        super().__init__()
        self.options = options
        dim, sets = options.dim, options.router.num_strata if options.projections == "separate" else 1
        self.all_heads = sets * options.num_heads
        self.norm = nn.LayerNorm(dim)
        self.router = StratumRouter(dim, options.router)
        self.qkv = nn.Linear(dim, 3 * sets * dim)
        self.output = ZeroLinear(dim, dim)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
        """Hidden state [B, N, D] with what strata read added.

        Raises:
            ValueError: hidden or mask of another shape, or a mask of floating point.
        """
        options = self.options
        mask = checked_tokens(hidden, mask, options.dim)
        normed = self.norm(blank_pads(hidden, mask))
        routing = self.router(normed, mask)
        strata = options.router.num_strata
        gate_BNG = routing.weights.repeat_interleave(self.all_heads // strata, -1)
        gate_BGN = gate_BNG.transpose(1, 2)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.all_heads, -1)).permute(2, 0, 3, 1, 4)
        read_BGNE = log_gate_attention(q, k, v, gate_BGN, mask, causal=options.causal)
        read_BGNE = read_BGNE * gate_BGN[..., None].to(read_BGNE.dtype)
        if options.projections == "separate":
            read_BGNE = read_BGNE.unflatten(1, (strata, -1)).sum(1)
        branch = self.output(read_BGNE.transpose(1, 2).flatten(-2))
        return stratified_output(add_branch(hidden, branch, mask), {"strata": routing})
