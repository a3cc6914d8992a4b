"""Definition of the CV of simplex volumes in plain torch, for given vertices.

Legend: N rows, D dimension, n simplices, k order, K = k + 1 vertices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def simplex_cv(
    x_ND: Tensor,
    indices_nK: Tensor,
    target: float,
    valid_above: float = 0.0,
    min_valid: int = 2,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]:
    """Loss, cv, mean, std, count and volumes [n] of the simplices with these rows as vertices."""
    vertices_nKD = x_ND[indices_nK]
    edges_nkD = vertices_nKD[:, 1:] - vertices_nKD[:, :1]
    squared = torch.linalg.det(edges_nkD @ edges_nkD.mT) / math.factorial(indices_nK.shape[1] - 1) ** 2
    valid = squared > valid_above
    volumes = torch.where(squared > 0, squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt(), 0.0)
    kept, count = volumes[valid], int(valid.sum())
    if count < min_valid:
        undefined = x_ND.new_full((), math.nan)
        return x_ND.sum() * 0, undefined, undefined, undefined, count, volumes
    mean, std = kept.mean(), kept.std()
    cv = std / (mean + eps)
    return (cv - target) ** 2, cv, mean, std, count, volumes
