"""Token embeddings by stratum. Legend: B sequences, N tokens, D channels, S strata, R size of a table's rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stratcore.layers._residual_branch import ZeroLinear, add_branch, blank_pads, checked_tokens
from stratcore.layers.stratified_output import StratifiedOutput, stratified_output
from stratcore.layers.stratum_router import SELECTORS, RouterOptions, StratumRouter


@dataclass(frozen=True, kw_only=True)
class StratifiedEmbeddingOptions:
    """Size and form of a `StratifiedEmbedding`.

    Args:
        vocab_size: number of tokens of the vocabulary.
        dim: D.
        router: router over the S = `router.num_strata` tables.
        table_dim: R; None: D.
        selector: 'sequence': one mixture a sequence, from the mean over its real tokens. 'token': one a token.
    """

    vocab_size: int
    dim: int
    router: RouterOptions = field(default_factory=RouterOptions)
    table_dim: int | None = None
    selector: str = "sequence"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.table_dim is not None and self.table_dim < 1:
            raise ValueError(f"table_dim: expected at least 1 or None, got {self.table_dim}")
        if self.selector not in SELECTORS:
            raise ValueError(f"selector: expected one of {', '.join(SELECTORS)}, got {self.selector!r}")


class StratifiedEmbedding(nn.Module):
    """Adds to a host's embeddings what S tables of its own hold for the same tokens.

        y_i = x_i + W_c sum_s w_s E_s[t_i],   w of a `StratumRouter` on the mean of LN x over real tokens

    W_c starts at 0, so the layer starts as the identity on x, bitwise.

    Args:
        options: size and form.

    Shapes: hidden (the host's embeddings) [B, N, D], tokens int [B, N], mask [B, N] (true at real tokens); result
        `StratifiedOutput`, routing 'strata' over [B, S] or [B, N, S].
    Gradient: of W_c at once, of what is behind it a step later; of the tables at the tokens that occur.
    Determinism: bitwise. `torch.compile(fullgraph=True)`: yes.
    Cost: S R values read and 2 S R + 2 R D operations a token; S R vocab_size weights.
    Source: the source documents' code, whose S tables replaced the host's and whose mean took pads in.
    """

    def __init__(self, options: StratifiedEmbeddingOptions) -> None:
        super().__init__()
        self.options = options
        table_dim = options.table_dim or options.dim
        # The S rows of a token side by side: one gather serves all tables.
        self.tables = nn.Embedding(options.vocab_size, options.router.num_strata * table_dim)
        self.norm = nn.LayerNorm(options.dim)
        self.router = StratumRouter(options.dim, options.router)
        self.combiner = ZeroLinear(table_dim, options.dim)

    def forward(self, hidden: Tensor, tokens: Tensor, mask: Tensor | None = None) -> StratifiedOutput:
        """Embeddings [B, N, D] with the tables' share added.

        Raises:
            ValueError: hidden, tokens or mask of another shape, tokens that are no integers, or a mask of floating
                point.
            IndexError: a token outside the vocabulary.
        """
        options = self.options
        mask = checked_tokens(hidden, mask, options.dim)
        if tokens.shape != hidden.shape[:2] or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"tokens: expected shape {list(hidden.shape[:2])} of int64 or int32, got"
                f" {list(tokens.shape)} of {tokens.dtype}"
            )
        normed = self.norm(blank_pads(hidden, mask))
        routing, weights = self.router.select(normed, mask, options.selector)
        rows_BNSR = self.tables(tokens).unflatten(-1, (options.router.num_strata, -1))
        mixed = (rows_BNSR * weights[..., None].to(rows_BNSR.dtype)).sum(-2)
        return stratified_output(add_branch(hidden, self.combiner(mixed), mask), {"strata": routing})
