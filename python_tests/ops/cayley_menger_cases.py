"""What the tests of the Cayley-Menger op share. Legend: B simplices, k order, D dimension, N rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

op = torch.ops.stratcore.cayley_menger
backward_op = torch.ops.stratcore.cayley_menger_backward
OUTPUTS = ops.SimplexMeasures._fields
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 4, 6), (1, 1, 1), (3, 1, 7), (7, 2, 2), (9, 2, 33), (33, 3, 17), (64, 4, 128), (17, 4, 300), (5, 5, 8),
          (8, 6, 65), (6, 7, 40), (11, 8, 16), (2, 8, 257)]  # fmt: skip


@dataclass(frozen=True)
class Case:
    simplices: int = 5
    k: int = 4
    dim: int = 6
    rows: int = 0  # of a table; 0: none

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(7)
        shape = (self.rows, self.dim) if self.rows else (self.simplices, self.k + 1, self.dim)
        points = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        if not self.rows:
            return points, None
        draws = torch.rand(self.simplices, self.rows, generator=generator).argsort(-1)
        return points, draws[:, : self.k + 1].contiguous().to(device)


def vertices(points: Tensor, indices: Tensor | None) -> Tensor:
    return points if indices is None else points[indices]


def loss(measures: tuple) -> Tensor:
    """Every output, with other weights for every simplex and about the same share of each output."""
    parts = []
    for measure in measures:
        weights = torch.linspace(0.5, 1.5, measure.numel(), dtype=measure.dtype, device=measure.device)
        size = measure.detach().abs().mean().clamp_min(1e-30)
        parts.append((weights.view_as(measure) * measure / size).sum())
    return torch.stack(parts).sum()


def gradient(run, points: Tensor) -> Tensor:
    leaf = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(run(leaf)), leaf)
    return grad


def baseline(points: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What eager torch makes of it; in float64, the accuracy of the oracle itself, the bordered determinant."""
    if dtype != torch.float64:
        return reference.simplex_measures(points.float())
    distances = reference.squared_distances(points)
    squared, determinant = reference.squared_volume(points), reference.cayley_menger_determinant(distances)
    return squared.sqrt(), 0.5 * squared.log(), squared, determinant, distances
