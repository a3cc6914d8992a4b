"""The residual block after a host's attention."""

from __future__ import annotations

from stratcore.layers.stratum_router import RouterOptions
from stratcore.layers.token_routing import TokenRouting, TokenRoutingOptions


class StratifiedPostAttention(TokenRouting):
    """A `TokenRouting` with a linear router on the input itself, to stand behind a host's attention.

        y = h + alpha W_f sum_s w_s(h) f_s(LN h),   w = top-k of softmax(W h + b)

    W_f alone starts at 0. In the source documents the last maps of all f_s do so too: the gradient of either is a
    product with the other, both are 0 for ever, and only the bias of W_f learns.

    Args:
        dim: D.
        num_strata: S.
        top_k: strata a token goes to, in [1, S].
        hidden_dim: hidden size of f_s; None: D.
        scale: alpha; 0.01 in the source documents. As W_f starts at 0, no small factor is needed for a safe start.

    Shapes, Gradient, Numerics, Determinism, Cost: as `TokenRouting`.
    Source: a later block of the source documents' code; its losses are 'entropy' (times -1e-4) and 'usage' (1e-4).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_strata: int = 3,
        top_k: int = 2,
        hidden_dim: int | None = None,
        scale: float = 1.0,
    ) -> None:
        router = RouterOptions(num_strata=num_strata, mode="top_k", top_k=top_k, hidden_dim=0)
        super().__init__(
            TokenRoutingOptions(dim=dim, router=router, hidden_dim=hidden_dim, route_on="input", scale=scale)
        )
