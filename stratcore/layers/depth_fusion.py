"""Mixing of the slices of a head along depth. Legend: D slices (platters), E channels of a slice, R rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FUSIONS = ("low_rank", "attention", "mean")


class DepthFusion(nn.Module):
    """Mixes the D slices of every head of every token; the same weights for all of them.

        low_rank   y_k = x_k + sum_l (U V^T)_lk x_l                  U, V [D, R], R = max(1, D // 4)
        attention  y_k = (1 - g) x_k + g sum_l softmax_l(<W_q x_k, W_k x_l> / sqrt(E)) x_l
        mean       y_k = mean_l x_l

    'low_rank' starts from U with orthonormal columns and V = 0, 'attention' from g = 0: both as the identity,
    bitwise, in every dtype, with a single zero that has a gradient at once. 'mean' has no weights and loses what
    differs among the slices: a baseline.

    Args:
        depth: D.
        dim: E.
        mode: 'low_rank', 'attention' or 'mean'.

    Raises:
        ValueError: an unknown mode.

    Shapes: [..., D, E], in and out.
    Gradient: exact. At the start U, W_q and W_k have gradient 0, behind V and g.
    Cost: a token and head: low_rank 4 D R E operations, attention 4 D E^2 + 4 D^2 E.
    Source: the source documents; there 'low_rank' lacks the identity, so R of D dimensions of the values are left,
        and 'attention' does not depend on the input.
    """

    def __init__(self, depth: int, dim: int, mode: str = "low_rank") -> None:
        super().__init__()
        if mode not in FUSIONS:
            raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}, got {mode!r}")
        self.depth, self.dim, self.mode = depth, dim, mode
        if mode == "low_rank":
            rank = max(1, depth // 4)
            self.u = nn.Parameter(torch.empty(depth, rank))
            self.v = nn.Parameter(torch.empty(depth, rank))
        elif mode == "attention":
            self.query = nn.Linear(dim, dim, bias=False)
            self.key = nn.Linear(dim, dim, bias=False)
            self.gate = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights anew: the identity, but for 'mean'."""
        if self.mode == "low_rank":
            start = torch.empty_like(self.u, dtype=torch.float32)  # QR knows no 16 bits
            self.u.copy_(nn.init.orthogonal_(start))
            self.v.zero_()
        elif self.mode == "attention":
            self.query.reset_parameters()
            self.key.reset_parameters()
            self.gate.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Slices [..., D, E], mixed."""
        if self.mode == "mean":
            return x.mean(-2, keepdim=True).expand_as(x)
        if self.mode == "low_rank":
            return x + (x.mT @ self.u @ self.v.mT).mT
        scores = self.query(x) @ self.key(x).mT * self.dim**-0.5
        return x + self.gate * (scores.softmax(-1).to(x.dtype) @ x - x)
