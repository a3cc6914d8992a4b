"""Arguments of `cayley_menger` in the layout of the op, checked with one wording on every route.

Legend: B simplices, k order, D dimension, N rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stratcore.ops._checks import check_floating

OP = "cayley_menger"
MAX_ORDER = 8
OUTPUTS = ("volume", "log_volume", "squared_volume", "determinant", "squared_distances")


class Call:
    """One call in the op's own layout: points [B, k + 1, D], or a table [N, D] and indices [B, k + 1]."""

    def __init__(
        self,
        points: Tensor,
        indices: Tensor | None,
        outputs: Sequence[str],
        deterministic: bool | None,
    ) -> None:
        wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        for name in wanted:
            if name not in OUTPUTS:
                raise ValueError(f"{OP}: expected outputs among {', '.join(OUTPUTS)}, got {name!r}")
        check_floating(OP, "points", points)
        self.wanted = [name in wanted for name in OUTPUTS]
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        self.deterministic = deterministic
        if indices is None:
            if points.ndim < 2:
                raise ValueError(f"{OP}: expected points of shape [..., k + 1, D], got {list(points.shape)}")
            self.batch = points.shape[:-2]
            self.points = points.reshape(math.prod(self.batch), *points.shape[-2:])
            self.indices = None
        else:
            if indices.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"{OP}: expected indices of dtype int64 or int32, got {indices.dtype}")
            if points.ndim != 2 or indices.ndim < 1:
                raise ValueError(
                    f"{OP}: expected points [N, D] with indices [..., k + 1], got {list(points.shape)} and "
                    f"{list(indices.shape)}"
                )
            self.batch = indices.shape[:-1]
            self.points = points
            self.indices = indices.reshape(math.prod(self.batch), indices.shape[-1]).long()
        check_shapes(self.points, self.indices, ValueError)

    def run(self, op: Callable[..., Any]) -> list[Tensor | None]:
        """The five outputs, in the caller's batch shape; None for those that were not asked for."""
        results = op(self.points, self.indices, *self.wanted, self.deterministic)
        return [
            result.reshape((*self.batch, *result.shape[1:])) if wanted else None
            for result, wanted in zip(results, self.wanted, strict=True)
        ]


def check_shapes(points: Tensor, indices: Tensor | None, error: type[Exception]) -> int:
    """The conditions of check() in cayley_menger_op.cpp, in its words; returns the number of vertices."""
    dimensions = 3 if indices is None else 2
    for name, tensor, wanted in (("points", points, dimensions), ("indices", indices, 2)):
        if tensor is not None and tensor.ndim != wanted:
            raise error(f"{OP}: expected {name} with {wanted} dimensions, got {list(tensor.shape)}")
    if indices is not None and indices.dtype != torch.int64:
        raise error(f"{OP}: expected indices of dtype int64")
    if indices is not None and indices.device != points.device:
        raise error(f"{OP}: expected indices on the device of the first argument")
    vertices = points.shape[1] if indices is None else indices.shape[1]
    if not 2 <= vertices <= MAX_ORDER + 1:
        raise error(f"{OP}: expected 2 to {MAX_ORDER + 1} vertices a simplex, got {vertices}")
    return vertices


def result_dtype(points: Tensor) -> torch.dtype:
    """Of the measures: volumes of 16-bit points would overflow float16."""
    return torch.float64 if points.dtype == torch.float64 else torch.float32
