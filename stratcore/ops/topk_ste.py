"""Exact selection of the k largest entries of each row, with a straight-through or a masked gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable
from stratcore.ops._checks import check_choice, check_floating


def topk_ste(x: Tensor, k: int, *, backward: str = "straight_through") -> Tensor:
    """The k entries of largest magnitude of each row, the others set to 0.

    Args:
        x: [..., M], float64, float32, bfloat16 or float16; any strides.
        k: entries kept, in [1, M]; equal magnitudes in the order of their index.
        backward: 'straight_through' (the gradient passes unchanged) or 'masked' (at the kept entries only,
            the exact gradient wherever the selection does not change).

    Returns:
        [..., M], dtype and device of `x`.

    Raises:
        ValueError: k outside [1, M], an unknown backward, or a 0-dimensional x.
        TypeError: not floating point.

    Gradient: as `backward` says; forward mode likewise; differentiable any number of times.
    Determinism: the same bits on every run. NaN counts as larger than everything.
    Source: straight-through estimator: Bengio et al. 2013; csrc/topk_lista/README.md.
    """
    check_choice("topk_ste", "backward", backward, ("straight_through", "masked"))
    check_floating("topk_ste", "x", x)
    if x.ndim == 0 or not 1 <= k <= x.shape[-1]:
        raise ValueError(f"topk_ste: expected k in [1, M] for x [..., M], got k = {k} and x {list(x.shape)}")
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return _call(rows, k, backward == "masked")[0].reshape(x.shape)


_op = torch.ops.stratcore.topk_ste.default


@torch.library.register_fake("stratcore::topk_ste")
def _fake(x: Tensor, k: int, masked: bool) -> tuple[Tensor, ...]:
    check_floating("topk_ste", "x", x)
    if x.ndim != 2:
        raise RuntimeError(f"topk_ste: expected x with 2 dimensions, got {list(x.shape)}")
    if not 1 <= k <= x.shape[1]:
        raise RuntimeError(f"topk_ste: expected k in [1, {x.shape[1]}], got {k}")
    slots = (x.shape[0], k)
    return x.new_empty(x.shape), x.new_empty(slots), x.new_empty(slots, dtype=torch.int32)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    indices = output[2]
    ctx.mark_non_differentiable(indices)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(indices)
    ctx.save_for_forward(indices)
    ctx.shape, ctx.masked = inputs[0].shape, inputs[2]


def _scatter(shape: torch.Size, indices: Tensor, values: Tensor) -> Tensor:
    return values.new_zeros(shape).scatter(-1, indices.long(), values)


def _gradient(ctx: Any, grad_dense: Tensor | None, grad_values: Tensor | None, _: Any) -> tuple:
    (indices,) = ctx.saved_tensors
    grad = grad_dense
    if grad is not None and ctx.masked:
        grad = _scatter(ctx.shape, indices, grad.gather(-1, indices.long()))
    if grad_values is not None:
        scattered = _scatter(ctx.shape, indices, grad_values)
        grad = scattered if grad is None else grad + scattered
    return grad, None, None


def _tangent(ctx: Any, tangent: Tensor, *_: Any) -> tuple:
    (indices,) = ctx.saved_tensors
    values = tangent.gather(-1, indices.long())
    dense = _scatter(ctx.shape, indices, values) if ctx.masked else tangent.clone()
    return dense, values, None


_call = differentiable(_op, setup_context=_save, backward=_gradient, jvp=_tangent)


@torch.library.register_vmap("stratcore::topk_ste")
def _vmap(info: Any, in_dims: tuple, x: Tensor, k: int, masked: bool) -> tuple:
    rows = x.movedim(in_dims[0], 0)
    outputs = _op(rows.flatten(0, 1), k, masked)
    return tuple(t.unflatten(0, rows.shape[:2]) for t in outputs), (0, 0, 0)
