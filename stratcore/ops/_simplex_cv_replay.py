"""Derivatives of `simplex_cv` in differentiable torch operations, on the simplices that the kernel drew.

Legend: N rows, D dimension, n simplices, k order, K = k + 1 vertices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class _Sample:
    """Edges, volumes, W = V G^-1 and statistics in float64, as functions of `x`.

    `state` [4 + n (1 + P)] is that of the kernel: four statistics, the last of them the count of valid simplices,
    then the volumes and W; 0 where degenerate.
    """

    def __init__(
        self, x: Tensor, indices: Tensor, state: Tensor, valid_above: float, min_valid: int, eps: float
    ) -> None:
        count, volumes = state[3], state[4 : 4 + len(indices)]
        weights = state[4 + len(indices) :].unflatten(0, (len(indices), -1))
        vertices_nKD = x.double()[indices]
        self.edges_nkD = vertices_nKD[:, 1:] - vertices_nKD[:, :1]
        k = self.edges_nkD.shape[1]
        degenerate = (weights == 0).all(-1)
        identity = torch.eye(k, dtype=torch.float64, device=x.device)
        gram_nkk = torch.where(degenerate[:, None, None], identity, self.edges_nkD @ self.edges_nkD.mT)
        factor_nkk = torch.linalg.cholesky_ex(gram_nkk).L
        heights = factor_nkk.diagonal(dim1=-2, dim2=-1).prod(-1)
        self.volumes = torch.where(degenerate, 0.0, heights / math.factorial(k))
        # Not cholesky_inverse, whose forward mode is wrong in torch 2.13.
        inverse_nkk = torch.linalg.solve_triangular(factor_nkk, identity, upper=False)
        self.weights_nkk = self.volumes[:, None, None] * (inverse_nkk.mT @ inverse_nkk)
        self.defined = count >= min_valid
        self.valid = (volumes > math.sqrt(valid_above)) & self.defined
        self.count = count.clamp_min(2)
        self.mean = self.over_valid(self.volumes).sum() / self.count
        self.deviations = self.over_valid(self.volumes - self.mean)
        variance = self.deviations.square().sum() / (self.count - 1)
        self.spread = variance > 0
        self.std = torch.where(self.spread, torch.where(self.spread, variance, 1.0).sqrt(), 0.0)
        self.scale = torch.where(self.defined, self.mean + eps, 1.0)
        self.cv = self.std / self.scale

    def over_valid(self, values: Tensor) -> Tensor:
        return torch.where(self.valid, values, 0.0)

    def std_slopes(self) -> Tensor:
        """Derivative of std with respect to the volume of every simplex; 0 where all volumes are equal."""
        std = torch.where(self.spread, self.std, 1.0)
        return torch.where(self.spread, self.deviations / ((self.count - 1) * std), 0.0)


def gradient(
    x: Tensor,
    indices: Tensor,
    state: Tensor,
    grads: tuple[Tensor | None, ...],
    target: float,
    valid_above: float,
    min_valid: int,
    eps: float,
) -> Tensor:
    """Gradient of `x` from the cotangents of loss, cv, mean, std and volumes."""
    sample = _Sample(x, indices, state, valid_above, min_valid, eps)
    zero = sample.mean.new_zeros(())
    loss, cv, mean, std, each = (zero if grad is None else grad.double() for grad in grads)
    slopes = sample.std_slopes()
    cv_slopes = slopes / sample.scale - sample.std / (sample.count * sample.scale.square())
    shared = (2 * loss * (sample.cv - target) + cv) * cv_slopes + mean / sample.count + std * slopes
    cotangents = sample.over_valid(shared) + each
    grad_nkD = cotangents[:, None, None] * (sample.weights_nkk @ sample.edges_nkD)
    grad_nKD = torch.cat([-grad_nkD.sum(1, keepdim=True), grad_nkD], 1)
    grad_ND = torch.zeros_like(x, dtype=torch.float64)
    return grad_ND.index_add(0, indices.flatten(), grad_nKD.flatten(0, 1)).to(x.dtype)


def tangents(
    x: Tensor,
    indices: Tensor,
    state: Tensor,
    tangent: Tensor | None,
    target: float,
    valid_above: float,
    min_valid: int,
    eps: float,
) -> tuple[Tensor, ...]:
    """Tangents of loss, cv, mean, std and volumes from the tangent of `x`."""
    sample = _Sample(x, indices, state, valid_above, min_valid, eps)
    moved_nKD = torch.zeros_like(x).double()[indices] if tangent is None else tangent.double()[indices]
    moved_nkD = moved_nKD[:, 1:] - moved_nKD[:, :1]
    volume = (sample.weights_nkk @ sample.edges_nkD * moved_nkD).sum((-2, -1))
    mean_tangent = sample.over_valid(volume).sum() / sample.count
    std_tangent = (sample.std_slopes() * volume).sum()
    cv_tangent = (std_tangent - sample.cv * mean_tangent) / sample.scale
    loss = torch.where(sample.defined, 2 * (sample.cv - target) * cv_tangent, 0.0)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(t.to(dtype) for t in (loss, cv_tangent, mean_tangent, std_tangent, volume))
