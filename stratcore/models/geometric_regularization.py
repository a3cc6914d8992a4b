"""Losses on the shape of hidden states: the source documents' approach that failed, kept as a negative control.

Legend: B sequences, N tokens, D channels, T all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stratcore.layers._residual_branch import blank_pads, checked_tokens

SMALL_VARIANCE = 0.01


def geometric_losses(
    hidden: Tensor, mask: Tensor | None = None, *, signs: str = "corrected"
) -> dict[str, Tensor]:
    """Three losses on hidden states, unweighted.

        kernel     = mean_ij exp(-d_ij / (2 s^2)),  d_ij = |x_i - x_j| of two tokens of a sequence, s = std(d)
        strata     = 1 - kernel ('corrected'),  kernel ('source')
        curvature  = mean_t |x_(t+1) - 2 x_t + x_(t-1)|
        manifold   = sum of the eigenvalues below 0.01 of the covariance of all tokens

    Args:
        hidden: [B, N, D].
        mask: [B, N], bool or integers, true at real tokens; pads and sequences of pads have no part.
        signs: 'corrected': a lower 'strata' draws tokens together, as the source documents say of it. 'source': as
            their code has it; there a lower one drives them apart.

    Returns:
        Scalars 'strata', 'curvature', 'manifold', float32 or wider.

    Raises:
        ValueError: hidden or mask of another shape, or unknown signs.

    Gradient: exact where no two tokens coincide; 0 for the distance of those that do. That of the eigenvalues is
        V diag(1 where small) V^T: it needs no division by their differences, which the general solver of the source
        documents' code has.
    Numerics: outside autocast, in float32 at least.
    Determinism: bitwise on CPU.
    Cost: O(B N^2 D), and O(min(T, D)^3) for the eigenvalues.
    Source: the source documents, whose accuracy fell by 42 to 78 % with them.
    """
    if signs not in ("corrected", "source"):
        raise ValueError(f"signs: expected 'corrected' or 'source', got {signs!r}")
    mask = checked_tokens(hidden, mask, hidden.shape[-1])
    with torch.autocast(hidden.device.type, enabled=False):
        x_BND = blank_pads(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), mask)
        if mask is None:
            mask = torch.ones(x_BND.shape[:2], dtype=torch.bool, device=x_BND.device)
        kernel = _mean_kernel(x_BND, mask)
        return {
            "strata": kernel if signs == "source" else 1 - kernel,
            "curvature": _mean_curvature(x_BND, mask),
            "manifold": _small_variance(x_BND, mask),
        }


def _mean_kernel(x_BND: Tensor, mask: Tensor) -> Tensor:
    pair_BNN = mask[:, :, None] & mask[:, None, :]
    # Differences first: the expanded form of the distance loses what near tokens differ in.
    distance_BNN = torch.cdist(x_BND, x_BND, compute_mode="donot_use_mm_for_euclid_dist")
    count = pair_BNN.sum().clamp_min(1)
    mean = torch.where(pair_BNN, distance_BNN, 0.0).sum() / count
    variance = torch.where(pair_BNN, (distance_BNN - mean).square(), 0.0).sum() / (count - 1).clamp_min(1)
    kernel_BNN = (-distance_BNN / (2 * variance.clamp_min(1e-12))).exp()
    return torch.where(pair_BNN, kernel_BNN, 0.0).sum() / count


def _mean_curvature(x_BND: Tensor, mask: Tensor) -> Tensor:
    bend_BND = x_BND[:, 2:] - 2 * x_BND[:, 1:-1] + x_BND[:, :-2]
    triple_BN = mask[:, 2:] & mask[:, 1:-1] & mask[:, :-2]
    length_BN = torch.linalg.vector_norm(blank_pads(bend_BND, triple_BN), dim=-1)
    return length_BN.sum() / triple_BN.sum().clamp_min(1)


def _small_variance(x_BND: Tensor, mask: Tensor) -> Tensor:
    x_TD, mask_T = x_BND.flatten(0, 1), mask.flatten()
    count = mask_T.sum()
    centered_TD = blank_pads(x_TD - x_TD.sum(0) / count.clamp_min(1), mask_T)
    if x_TD.shape[0] < x_TD.shape[1]:  # the Gram matrix has the same eigenvalues but for zeros
        centered_TD = centered_TD.mT
    covariance = centered_TD.mT @ centered_TD / (count - 1).clamp_min(1)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return torch.where(eigenvalues < SMALL_VARIANCE, eigenvalues, 0.0).sum()
