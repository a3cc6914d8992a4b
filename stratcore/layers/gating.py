"""Gates that choose experts. Legend: B rows, D input size, Q query size, E experts, R rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SELECTIONS = ("soft", "straight_through", "threshold")


class QueryKeyGate(nn.Module):
    """Scaled dot product of a projected query with one learned key an expert, plus an optional energy term.

        s_e(x) = (W_q x + b) . k_e / sqrt(Q) + sum_r a_er (v_er . (x - c_e))^2

    The first term alone is affine in x: it separates strata by where they lie, and cannot own both x and -x of
    two strata that share a center. The second (`energy_rank` > 0) is even around c_e and can.

    Shapes: input [B, D]; logits [B, E].
    Source: the query-key gate is that of arXiv 2502.13577; the energy term is ours.
    """

    def __init__(
        self, input_dim: int, num_experts: int, *, query_dim: int = 128, energy_rank: int = 0
    ) -> None:
        super().__init__()
        self.query = nn.Linear(input_dim, query_dim)
        self.keys = nn.Parameter(torch.empty(num_experts, query_dim))
        nn.init.xavier_uniform_(self.keys)
        self.energy_rank = energy_rank
        if energy_rank:
            self.directions = nn.Parameter(
                torch.randn(num_experts, energy_rank, input_dim) / math.sqrt(input_dim)
            )
            self.energies = nn.Parameter(0.01 * torch.randn(num_experts, energy_rank))
            self.centers = nn.Parameter(torch.zeros(num_experts, input_dim))

    def fit(
        self, x_BD: Tensor, expert_B: Tensor, centers_ED: Tensor, *, steps: int = 200, lr: float = 1e-2
    ) -> None:
        """Starts the gate as a classifier of the given rows into experts, by full-batch Adam.

        Smoothed labels keep it from saturating, so that a wrong start can still be undone.
        """
        with torch.no_grad():
            if self.energy_rank:
                self.centers.copy_(centers_ED)
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(self(x_BD), expert_B, label_smoothing=0.02).backward()
                optimizer.step()
        self.zero_grad(set_to_none=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Logits [B, E]."""
        query_BQ = self.query(x_BD)
        logits_BE = query_BQ @ self.keys.mT / math.sqrt(query_BQ.shape[-1])
        if self.energy_rank:
            shifted_EBD = x_BD - self.centers[:, None, :]
            along_EBR = shifted_EBD @ self.directions.mT
            logits_BE = logits_BE + torch.einsum("ebr,er->be", along_EBR.square(), self.energies)
        return logits_BE


def expert_weights(
    logits_BE: Tensor, selection: str, sparsities: tuple[int, ...], threshold: float = 0.5
) -> Tensor:
    """Mixture weights [B, E] from gate logits.

    Args:
        logits_BE: gate logits.
        selection: 'soft': the softmax p. 'straight_through': one-hot of the largest p forward, gradient of p.
            'threshold': one-hot of the expert of lowest sparsity among those with p >= threshold * max p
            (the rule of the source documents), gradient of p.
        sparsities: k of each expert, for 'threshold'.
        threshold: share of the largest probability that makes an expert eligible.

    Returns:
        Weights that sum to 1 in every row.

    Raises:
        ValueError: an unknown selection.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection: expected one of {', '.join(SELECTIONS)}, got {selection!r}")
    p_BE = logits_BE.softmax(-1)
    if selection == "soft":
        return p_BE
    if selection == "straight_through":
        chosen_B = p_BE.argmax(-1)
    else:
        cost_E = torch.tensor(sparsities, device=p_BE.device, dtype=p_BE.dtype)
        eligible_BE = p_BE >= threshold * p_BE.amax(-1, keepdim=True)
        chosen_B = torch.where(eligible_BE, cost_E, torch.inf).argmin(-1)
    hard_BE = torch.zeros_like(p_BE).scatter(-1, chosen_B[:, None], 1.0)
    return hard_BE + (p_BE - p_BE.detach())  # in this order the sum is exactly one-hot
