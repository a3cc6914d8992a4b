"""JumpReLU: a threshold an atom that is learned by a pseudo-derivative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stratcore.ops._checks import check_floating


class JumpReLUCode(NamedTuple):
    """values: x where x > theta, else 0, [..., M]. active: how many entries of a row pass, [...], dtype of `x`."""

    values: Tensor
    active: Tensor


def jump_relu(x: Tensor, theta: Tensor, *, bandwidth: float = 1e-3) -> JumpReLUCode:
    """Entries above the threshold of their atom, and how many they are, both with a gradient to the threshold.

        values = x H(x - theta),    active = sum over the atoms of H(x - theta),    H(u) = 1 where u > 0, else 0

    Args:
        x: [..., M], float64, float32, bfloat16 or float16; any strides.
        theta: threshold > 0 of each atom, [M], dtype of `x`; positive is meant, not checked.
        bandwidth: epsilon > 0, width of the window around theta whose entries teach the threshold.

    Returns:
        JumpReLUCode.

    Raises:
        ValueError: a theta of another shape than [M], or a bandwidth that is not positive.
        TypeError: not floating point, or differing dtypes.

    Gradient: with K(u) = 1 where |u| < 1/2, else 0, and g, a the gradients of values and active,

        d x     = g H(x - theta)
        d theta = -sum over rows of (theta g + a) K((x - theta) / epsilon) / epsilon

    d x is exact almost everywhere. d theta is a pseudo-derivative (the true one is 0): over many rows it estimates
    the derivative of the expected loss, by a density estimate of x at theta with a box of width epsilon. A second
    derivative takes its window and its factor theta for constants.
    Numerics: NaN counts as above the threshold and stays. Determinism: that of torch's sums over rows.
    Cost: torch operations on both devices, no kernel of our own; torch.compile fuses them.
    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435).
    """
    check_floating("jump_relu", "x", x)
    if theta.dtype != x.dtype:
        raise TypeError(f"jump_relu: expected theta of dtype {x.dtype} as x, got {theta.dtype}")
    if x.ndim == 0 or theta.shape != x.shape[-1:]:
        raise ValueError(
            f"jump_relu: expected theta of shape [M] for x [..., M], got {list(theta.shape)} and x {list(x.shape)}"
        )
    if not bandwidth > 0:
        raise ValueError(f"jump_relu: expected bandwidth > 0, got {bandwidth}")
    level = theta.detach()
    passes = ~(x.detach() <= level)
    window = ((x.detach() - level).abs() < 0.5 * bandwidth).to(x.dtype) / bandwidth
    rise = theta - level  # 0, with the gradient of theta
    values = torch.where(passes, x, 0.0) - level * window * rise
    return JumpReLUCode(values, (passes.to(x.dtype) - window * rise).sum(-1))
