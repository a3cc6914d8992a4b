"""What the tests of sphere_normalize share. Legend: N rows, D dimension, A anchors."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference

op = torch.ops.stratcore.tangent_projection
backward_op = torch.ops.stratcore.tangent_projection_backward
SIGNS = ["repel", "reference"]
JACOBIANS = ["tangent", "normalize", "identity"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SURROGATES = [
    {"tangential": 0.7, "separation": 0.3, "separation_sign": sign, "jacobian": jacobian}
    for sign, jacobian in itertools.product(SIGNS, JACOBIANS)
]


def normal(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def problem(
    rows: int, dim: int, anchors: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """x, anchors of various lengths, and a gradient of y."""
    lengths = normal(anchors, 1, dtype=dtype, device=device, seed=3).exp()
    return (
        normal(rows, dim, dtype=dtype, device=device),
        normal(anchors, dim, dtype=dtype, device=device, seed=8) * lengths,
        normal(rows, dim, dtype=dtype, device=device, seed=9),
    )


def gradient(x: Tensor, anchors: Tensor | None, grad: Tensor, **options: Any) -> Tensor:
    leaf = x.detach().requires_grad_()
    ops.sphere_normalize(leaf, anchors, **options).backward(grad)
    return leaf.grad


def define_gradient(x: Tensor, anchors: Tensor | None, grad: Tensor, nearest: Any, **options: Any) -> Tensor:
    n = None if anchors is None else reference.unit_anchors(anchors)[nearest.long()]
    return reference.surrogate_gradient(grad, x, n, **options)
