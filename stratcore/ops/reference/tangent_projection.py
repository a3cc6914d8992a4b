"""Definition of the tangent projection in plain torch. Legend: N rows, D dimension, A anchors."""

from __future__ import annotations

import torch
from torch import Tensor


def on_sphere(x_ND: Tensor, eps: float = 1e-12) -> Tensor:
    """Rows x / max(|x|, eps), with their true derivative."""
    return x_ND / x_ND.norm(dim=-1, keepdim=True).clamp_min(eps)


def unit_anchors(anchors_AD: Tensor) -> Tensor:
    """Scaled to length 1, without a gradient; a zero anchor stays 0."""
    anchors = anchors_AD.detach()
    length = anchors.norm(dim=-1, keepdim=True)
    return torch.where(length == 0, 0.0, anchors / length)


def nearest_anchor(y_ND: Tensor, anchors_AD: Tensor) -> tuple[Tensor, Tensor]:
    """Index and cosine of the anchor with the largest <y, n>: NaN the largest, the lowest index of equals."""
    cosine_NA = y_ND.detach() @ unit_anchors(anchors_AD).T
    largest_N = cosine_NA.amax(-1)
    wins_NA = (cosine_NA == largest_N[:, None]) | cosine_NA.isnan()
    index_A = torch.arange(len(anchors_AD), device=y_ND.device)
    return torch.where(wins_NA, index_A, len(anchors_AD)).amin(-1), largest_N


def surrogate_gradient(
    grad_ND: Tensor,
    x_ND: Tensor,
    n_ND: Tensor | None = None,
    *,
    tangential: float = 1.0,
    separation: float = 0.0,
    separation_sign: str = "repel",
    jacobian: str = "tangent",
    eps: float = 1e-12,
) -> Tensor:
    """dL/dx of `sphere_normalize` for dL/dy = grad; n is the nearest unit anchor of each row."""
    y = on_sphere(x_ND, eps)
    gradient = grad_ND - tangential * (grad_ND * y).sum(-1, keepdim=True) * y
    if n_ND is not None and separation_sign == "repel":
        gradient = gradient + separation * (n_ND - (n_ND * y).sum(-1, keepdim=True) * y)
    elif n_ND is not None:
        gradient = gradient - separation * (gradient * n_ND).sum(-1, keepdim=True).relu() * n_ND
    if jacobian == "normalize":
        return torch.func.vjp(lambda x: on_sphere(x, eps), x_ND)[1](gradient)[0]
    radius_N1 = x_ND.norm(dim=-1, keepdim=True).clamp_min(eps)
    return gradient / radius_N1 if jacobian == "tangent" else gradient
