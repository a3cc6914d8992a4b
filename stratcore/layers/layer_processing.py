"""Mixtures over layers. Legend: L layers, B sequences, N tokens, D channels, H hidden size, T = B N rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from stratcore.layers._residual_branch import ZeroLinear, add_branch, blank_pads, checked_tokens
from stratcore.layers.stratified_output import StratifiedOutput, stratified_output
from stratcore.layers.stratum_router import SELECTORS, RouterOptions, StratumRouter

INPUTS = ("all", "last")
PROCESSORS = ("mlp", "norm")


@dataclass(frozen=True, kw_only=True)
class LayerProcessingOptions:
    """Size and form of a `LayerProcessing`.

    Args:
        dim: D.
        router: layer selector over the L = `router.num_strata` layers.
        inputs: 'all': processor l reads hidden state l of the L that are given (a host of n blocks gives L = n + 1).
            'last': all L processors read the last one, as in the source documents.
        processor: 'mlp': Linear, LayerNorm, ReLU, Linear. 'norm': a LayerNorm alone (a mixture over depth).
        hidden_dim: H of 'mlp'; None: D.
        selector: 'sequence': one mixture a sequence, from the mean over its real tokens. 'token': one a token.
    """

    dim: int
    router: RouterOptions = field(default_factory=lambda: RouterOptions(num_strata=6))
    inputs: str = "all"
    processor: str = "mlp"
    hidden_dim: int | None = None
    selector: str = "sequence"

    def __post_init__(self) -> None:
        for name, allowed in (("inputs", INPUTS), ("processor", PROCESSORS), ("selector", SELECTORS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise ValueError(f"hidden_dim: expected at least 1 or None, got {self.hidden_dim}")


class LayerProcessors(nn.Module):
    """L perceptrons in parallel: f_l(x) = V_l relu(LN_l(W_l x + b_l)) + c_l, mixed with given weights.

    Shapes: input [T, D] for all or [L, T, D], a slice each; weights [T, L]; result [T, D].
    Cost: a row 4 L D H operations, as three products.
    """

    def __init__(self, num_layers: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_weight = nn.Parameter(torch.empty(num_layers, hidden_dim, dim))
        self.in_bias = nn.Parameter(torch.empty(num_layers, hidden_dim))
        self.norm_weight = nn.Parameter(torch.empty(num_layers, hidden_dim))
        self.norm_bias = nn.Parameter(torch.empty(num_layers, hidden_dim))
        self.out_weight = nn.Parameter(torch.empty(num_layers, hidden_dim, dim))
        self.out_bias = nn.Parameter(torch.empty(num_layers, dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights anew, each map as torch.nn.Linear and torch.nn.LayerNorm start."""
        hidden, dim = self.in_weight.shape[1:]
        for parameters, fan_in in (
            ((self.in_weight, self.in_bias), dim),
            ((self.out_weight, self.out_bias), hidden),
        ):
            for parameter in parameters:
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5)
        self.norm_weight.fill_(1.0)
        self.norm_bias.zero_()

    def forward(self, x: Tensor, weights_TL: Tensor) -> Tensor:
        """Mixture [T, D]."""
        hidden_TLH = torch.einsum("td,lhd->tlh" if x.dim() == 2 else "ltd,lhd->tlh", x, self.in_weight)
        hidden_TLH = hidden_TLH + self.in_bias
        normed_TLH = layer_norm(hidden_TLH, hidden_TLH.shape[-1:]) * self.norm_weight + self.norm_bias
        weights_TL = weights_TL.to(normed_TLH.dtype)
        weighted_TLH = relu(normed_TLH) * weights_TL[..., None]
        return weighted_TLH.flatten(1) @ self.out_weight.flatten(0, 1) + weights_TL @ self.out_bias


class LayerNorms(nn.Module):
    """L layer norms of [L, T, D] (or of [T, D]), mixed with given weights [T, L]; result [T, D]."""

    def __init__(self, num_layers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, dim))
        self.bias = nn.Parameter(torch.zeros(num_layers, dim))

    def forward(self, x: Tensor, weights_TL: Tensor) -> Tensor:
        """Mixture [T, D] of what is normalized already."""
        scaled = weights_TL.to(x.dtype)
        if x.dim() == 2:
            return x * (scaled @ self.weight) + scaled @ self.bias
        return torch.einsum("tl,ltd,ld->td", scaled, x, self.weight) + scaled @ self.bias


class LayerProcessing(nn.Module):
    """Mixes what processors make of the hidden states of a host's layers.

        all    y = h^L + W_c sum_l w_l f_l(norm(h^l))
        last   y = h^L + W_c sum_l w_l f_l(norm(h^L))

    norm is a layer norm without weights, w comes of a `StratumRouter` on the mean of norm(h^L) over real tokens (or
    on each token), f_l is a perceptron or a scaling of its own. W_c starts at 0, so the layer starts as the identity
    on the last state, bitwise.

    Args:
        options: size and form.

    Shapes: hidden states, a sequence of L times [B, N, D] (with inputs 'last' one tensor will do), mask [B, N] (true
        at real tokens); result `StratifiedOutput`, routing 'layers' over [B, L] or [B, N, L].
    Gradient: of W_c at once, of what is behind it a step later.
    Numerics: the router runs in full precision. A sequence of pads alone stays as it is.
    Determinism: bitwise. `torch.compile(fullgraph=True)`: yes.
    Cost: a token 4 L D H operations ('mlp') or 2 L D ('norm'), and 2 D^2.
    Source: the source documents (inputs 'last', whose mean took pads in); Peters et al. 2018 for the mixture over
        depth.
    """

    def __init__(self, options: LayerProcessingOptions) -> None:
        super().__init__()
        self.options = options
        dim, layers = options.dim, options.router.num_strata
        self.router = StratumRouter(dim, options.router)
        self.processors: nn.Module
        if options.processor == "mlp":
            self.processors = LayerProcessors(layers, dim, options.hidden_dim or dim)
        else:
            self.processors = LayerNorms(layers, dim)
        self.combiner = ZeroLinear(dim, dim)

    def forward(
        self, hidden_states: Sequence[Tensor] | Tensor, mask: Tensor | None = None
    ) -> StratifiedOutput:
        """Last hidden state [B, N, D] with the layers' share added.

        Raises:
            ValueError: another number of hidden states, shapes that differ, or a mask of another shape or of
                floating point.
        """
        options = self.options
        states = [hidden_states] if isinstance(hidden_states, Tensor) else list(hidden_states)
        if options.inputs == "all" and len(states) != options.router.num_strata:
            raise ValueError(
                f"hidden_states: expected {options.router.num_strata} of them, got {len(states)}"
            )
        if not states:
            raise ValueError("hidden_states: expected at least 1 of them, got 0")
        last = states[-1]
        mask = checked_tokens(last, mask, options.dim)
        if any(state.shape != last.shape for state in states):
            raise ValueError(
                f"hidden_states: expected shape {list(last.shape)}, got {[list(s.shape) for s in states]}"
            )
        kept = states if options.inputs == "all" else [last]
        normed = layer_norm(blank_pads(torch.stack(kept), mask), (options.dim,))
        routing, weights = self.router.select(normed[-1], mask, options.selector)
        rows = normed.flatten(1, 2)
        mixed = self.processors(rows if len(kept) > 1 else rows[0], weights.flatten(0, 1))
        branch = self.combiner(mixed.unflatten(0, last.shape[:2]))
        return stratified_output(add_branch(last, branch, mask), {"layers": routing})
