"""Token routing over parallel processing paths. Legend: B sequences, N tokens, D channels, P paths."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from stratcore.layers._expert_dispatch import ExpertMLPs, check_dispatch, mix_experts
from stratcore.layers._residual_branch import ZeroLinear, add_branch, blank_pads, checked_tokens
from stratcore.layers.stratified_output import StratifiedOutput, stratified_output
from stratcore.layers.stratum_router import RouterOptions, StratumRouter

ROUTE_ON = ("normalized", "input")


@dataclass(frozen=True, kw_only=True)
class TokenRoutingOptions:
    """Size and form of a `TokenRouting`.

    Args:
        dim: D.
        router: router over the P = `router.num_strata` paths.
        hidden_dim: hidden size of a path; None: D.
        activation: 'relu' or 'gelu'.
        dispatch: 'dense' runs every path on every token; 'sparse' runs a path on the tokens that chose it, which
            needs a router of mode 'top_k' or 'straight_through'. None: 'dense' for mode 'softmax', else 'sparse'.
        capacity_factor: c of 'sparse': a path takes at most ceil(c K T / P) of T real tokens; None: no bound.
        route_on: what the router reads, 'normalized' (LN x) or 'input' (x).
        scale: alpha, a fixed factor of the branch.
    """

    dim: int
    router: RouterOptions = field(default_factory=RouterOptions)
    hidden_dim: int | None = None
    activation: str = "relu"
    dispatch: str | None = None
    capacity_factor: float | None = None
    route_on: str = "normalized"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_dispatch(self.resolved_dispatch, self.router.mode, self.capacity_factor)
        if self.route_on not in ROUTE_ON:
            raise ValueError(f"route_on: expected one of {', '.join(ROUTE_ON)}, got {self.route_on!r}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")

    @property
    def resolved_dispatch(self) -> str:
        """'dense' or 'sparse'."""
        return self.dispatch or ("dense" if self.router.mode == "softmax" else "sparse")


class TokenRouting(nn.Module):
    """Sends each token through paths of its own and adds what they make of it.

        y = x + alpha W_c sum_p w_p(LN x) f_p(LN x),   f_p a perceptron D -> H -> D, w of a `StratumRouter`

    W_c starts at 0, so the layer starts as the identity, bitwise. Tokens that overflow a path's capacity lose that
    path's share: first choices are served before second ones, earlier tokens before later ones.

    Args:
        options: size and form.

    Shapes: hidden [B, N, D], mask [B, N] (true at real tokens); result `StratifiedOutput`, routing 'paths'.
    Gradient: of W_c at once, of what is behind it a step later. 'sparse' with 'straight_through': the router sees
        the chosen path alone; 'dense': all of them.
    Numerics: 'sparse' with K = P equals 'dense' but for the order of sums. The router runs in full precision. Pads
        change nothing at real tokens, but in training through the router's noise.
    Determinism: bitwise, backward too. `torch.compile(fullgraph=True)`: both; 'sparse' saves operations there in
        bfloat16 only, for in other types tracing allows no product of a size that depends on the data.
    Cost: a token 4 D H operations for each of P paths ('dense') or K ('sparse'), and 2 D^2. 'sparse' runs grouped
        products (on GPUs in bfloat16, D and H multiples of 8, without a look at the data by the host); other types
        pad every path to the longest, at the price of one synchronization a product. On GPUs with Triton what
        follows a product takes one pass over its result. A model exported to ONNX runs every path on every token.
    Source: the source documents (dense); Shazeer et al. 2017, Fedus et al. 2021 (dispatch and capacity).
    """

    def __init__(self, options: TokenRoutingOptions) -> None:
        super().__init__()
        self.options = options
        dim, paths = options.dim, options.router.num_strata
        hidden = dim if options.hidden_dim is None else options.hidden_dim
        self.paths = ExpertMLPs(paths, dim, hidden, activation=options.activation)
        self.norm = nn.LayerNorm(dim)
        self.router = StratumRouter(dim, options.router)
        self.combiner = ZeroLinear(dim, dim)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
        """Hidden state [B, N, D] with the paths' share added.

        Raises:
            ValueError: hidden or mask of another shape, or a mask of floating point.
        """
        mask = checked_tokens(hidden, mask, self.options.dim)
        options = self.options
        real = blank_pads(hidden, mask)
        normed = self.norm(real)
        routing = self.router(normed if options.route_on == "normalized" else real, mask)
        mixed, overflow = mix_experts(
            self.paths, normed, routing, options.resolved_dispatch, options.capacity_factor
        )
        branch = self.combiner(mixed)
        if options.scale != 1:  # a pass over memory
            branch = options.scale * branch
        return stratified_output(add_branch(hidden, branch, mask), {"paths": routing}, overflow=overflow)
