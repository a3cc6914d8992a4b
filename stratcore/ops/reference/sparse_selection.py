"""Definitions of batch_topk and jump_relu in plain torch. Legend: B rows, M atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from stratcore.ops.reference.topk_lista import topk_ste


def batch_topk(x_BM: Tensor, k: int, backward: str = "straight_through") -> Tensor:
    """All rows as one, of which k B entries are kept."""
    return topk_ste(x_BM.flatten(), k * x_BM.shape[0], backward).view(x_BM.shape)


def jump_relu(x_BM: Tensor, theta_M: Tensor) -> tuple[Tensor, Tensor]:
    """Values x H(x - theta) [B, M] and the sums of H [B]."""
    step_BM = torch.heaviside(x_BM - theta_M, torch.zeros_like(x_BM))
    return x_BM * step_BM, step_BM.sum(-1)


def jump_relu_gradients(
    x_BM: Tensor, theta_M: Tensor, grad_values_BM: Tensor, grad_active_B: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """Gradients d x [B, M] and d theta [M], row by row and atom by atom as the paper writes them."""
    grad_x_BM, grad_theta_M = torch.zeros_like(x_BM), torch.zeros_like(theta_M)
    for row in range(x_BM.shape[0]):
        for atom in range(x_BM.shape[1]):
            z, theta, grad = x_BM[row, atom], theta_M[atom], grad_values_BM[row, atom]
            if z > theta:
                grad_x_BM[row, atom] = grad
            if -0.5 < (z - theta) / bandwidth < 0.5:
                grad_theta_M[atom] -= (theta * grad + grad_active_B[row]) / bandwidth
    return grad_x_BM, grad_theta_M
