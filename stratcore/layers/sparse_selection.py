"""Selections of sparse autoencoders as modules. Legend: M atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stratcore import ops


class BatchTopK(nn.Module):
    """`ops.batch_topk` in training; at inference the entries that reach the mean least magnitude kept in training.

        training:   y = batch_topk(x, k),    threshold <- momentum threshold + (1 - momentum) min |y| over y != 0
        inference:  y = x where |x| >= threshold, else 0

    so that a row does not depend on the others. The first batch sets the threshold; before it, all entries pass. A
    batch that keeps nothing but zeros leaves it.

    Args:
        k: entries kept a row on average.
        momentum: of the threshold, in [0, 1).
        backward: 'straight_through' or 'masked', for training; at inference 'masked'.

    Shapes: input [..., M]; output likewise.
    Source: Bussmann, Leask and Nanda 2024 (arXiv 2412.06410).
    """

    threshold: Tensor

    def __init__(self, k: int, *, momentum: float = 0.999, backward: str = "straight_through") -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {momentum}")
        self.k, self.momentum, self.backward = k, momentum, backward
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The selected entries of x, the others 0."""
        if not self.training:
            return torch.where(x.abs() < self.threshold, 0.0, x)
        y = ops.batch_topk(x, self.k, backward=self.backward)
        self._follow(y.detach())
        return y

    @torch.no_grad()
    def _follow(self, y: Tensor) -> None:
        """Without a look at the data from the host, so that a training step fits a CUDA graph."""
        if y.numel() == 0:
            return
        magnitude = y.abs().float()
        least = magnitude.masked_fill(magnitude == 0, torch.inf).amin()
        mean = torch.where(self.threshold == 0, least, self.threshold.lerp(least, 1 - self.momentum))
        self.threshold.copy_(torch.where(least.isfinite(), mean, self.threshold))


class JumpReLU(nn.Module):
    """`ops.jump_relu` with a positive threshold an atom, theta = exp(log_threshold).

    Args:
        atoms: M.
        threshold: initial theta.
        bandwidth: width of the window whose entries teach the threshold.

    Shapes: input [..., M]; values [..., M] and numbers of active entries [...], which an L0 penalty takes.
    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435).
    """

    def __init__(self, atoms: int, *, threshold: float = 1e-3, bandwidth: float = 1e-3) -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold: expected a positive number, got {threshold}")
        self.bandwidth = bandwidth
        self.log_threshold = nn.Parameter(torch.full((atoms,), threshold).log())

    def forward(self, x: Tensor) -> ops.JumpReLUCode:
        """Values above the threshold, and how many a row has."""
        return ops.jump_relu(x, self.log_threshold.exp().to(x.dtype), bandwidth=self.bandwidth)
