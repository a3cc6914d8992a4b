"""Coefficient of variation (CV) of the volumes of random simplices, with its loss, in one pass each way.

Legend: N rows, D dimension, n simplices, K = k + 1 vertices, P = k (k + 1) / 2 entries of a symmetric k x k matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, forward_mode_active
from stratcore.ops._cayley_menger_call import MAX_ORDER
from stratcore.ops._checks import check_floating
from stratcore.ops._simplex_cv_replay import gradient, tangents
from stratcore.ops._vmap import one_by_one
from stratcore.ops.simplex_baseline import cv_uniform


class SimplexCV(NamedTuple):
    """Statistics of the volumes of random simplices; float64 for float64 points, else float32.

    loss: (cv - target)^2, 0 with fewer than min_valid valid simplices. cv, mean, std (unbiased): NaN there. count:
    valid simplices, int64. volumes [n]: of all simplices. indices [n, k + 1]: rows of their vertices, int64.
    """

    loss: Tensor
    cv: Tensor
    mean: Tensor
    std: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    volumes: Tensor
    indices: Tensor


def simplex_cv(
    x: Tensor,
    *,
    k: int = 4,
    num_simplices: int = 1024,
    target: float | None = None,
    seed: Tensor | int | None = None,
    pool: int | None = None,
    valid_above: float = 0.0,
    min_valid: int = 2,
    eps: float = 0.0,
) -> SimplexCV:
    """Draws simplices from the rows of `x` and measures how uneven their volumes are.

        V_s = sqrt(det(E_s E_s^T)) / k!        E_s: the k edges from the first vertex of simplex s
        cv = std(V) / (mean(V) + eps),  loss = (cv - target)^2        over the valid simplices

    Args:
        x: points [N, D], float64, float32, bfloat16 or float16; any strides.
        k: order of the simplices, 1 to 8; each has k + 1 distinct rows of `x` as vertices.
        num_simplices: n >= 1; the CV of independent simplices has a relative error of about 1 / sqrt(2 n).
        target: CV at which the loss is 0; None: `cv_uniform(D, k)`, that of uniform points on the sphere.
        seed: int64 tensor [2] on the device of `x`, (seed, offset): the sample is a function of it and of N, k and
            n. An int s means (s, 0). None draws one from torch's generator. Under CUDA graphs pass a tensor and
            add 1 to seed[1] in place between the replays: each draws a fresh sample.
        pool: vertices are drawn from the first `pool` rows, in [k + 1, N]; None: from all.
        valid_above: a simplex is valid where its squared volume is larger; 0 excludes degenerate ones and NaN.
        min_valid: with fewer valid simplices the loss is 0, with gradient 0; >= 2.
        eps: added to the mean.

    Returns:
        SimplexCV. Its CV means something beside `cv_uniform(D, k)` and `effective_dim_from_cv(cv, k)` only.

    Raises:
        ValueError: a shape or number out of range, named with what was expected.
        TypeError: points that are not floating point, or a seed that is no int64.

    The conventions of the source documents are `k=4, num_simplices=64, pool=min(512, N), valid_above=1e-20,
    min_valid=5, eps=1e-8`, with a target of .2 or .22, which is the CV of uniform points in 16 or 14 dimensions.

    Gradient: of loss, cv, mean, std and volumes with respect to `x`; none through the choice of the rows. Twice
    differentiable; forward mode. A degenerate simplex (height below 1e-7 of its edges) has volume 0 and gradient 0.
    Numerics: differences and Gram matrices in float64 whatever the input; outputs and sums of the gradient in float32
    unless the input is float64. NaN makes the volumes of its simplices NaN, and these do not count.
    Autocast changes nothing of it.
    Determinism: the same bits on every run and for any number of threads; CPU and CUDA draw the same sample.
    Cost: O(n k^2 D); saved for the backward: `x` and n (k + 2 + P) numbers. No host synchronization.
    Source: csrc/cayley_menger/README.md; sampling: Floyd's algorithm on Philox 4x32-10 (Salmon et al. 2011).
    """
    check_floating("simplex_cv", "x", x)
    pool = x.shape[0] if pool is None and x.ndim == 2 else pool
    _check(x, k, num_simplices, pool, valid_above, min_valid, eps, ValueError)
    if target is None:
        target = _uniform(int(x.shape[1]), k)
    seeds = _as_seed(seed, x.device)
    outputs = _call(x, seeds, k, num_simplices, pool, target, valid_above, min_valid, eps)
    return SimplexCV(*outputs[:7])


_uniform_cvs: dict[tuple[int, int], float] = {}


def _uniform(dim: int, k: int) -> float:
    """cv_uniform, kept: it costs as much as the rest of the call. Below k dimensions no simplex is valid."""
    if (dim, k) not in _uniform_cvs:
        _uniform_cvs[dim, k] = cv_uniform(max(dim, k), k)
    return _uniform_cvs[dim, k]


def _as_seed(seed: Tensor | int | None, device: torch.device) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"simplex_cv: expected seed of dtype int64, got {seed.dtype}")
        if seed.shape != (2,):
            raise ValueError(f"simplex_cv: expected seed of shape [2], got {list(seed.shape)}")
        return seed
    if seed is None:
        return torch.randint(1 << 62, (2,), device=device)
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"simplex_cv: expected seed of at most 64 bits, got {seed}")
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def _check(
    x: Tensor,
    k: int,
    num_simplices: int,
    pool: int | None,
    valid_above: float,
    min_valid: int,
    eps: float,
    error: type[Exception],
) -> None:
    """The conditions of check() in simplex_cv_op.cpp, in its words."""
    expected: str
    got: Any
    if x.ndim != 2:
        expected, got = "x with 2 dimensions", list(x.shape)
    elif not 1 <= k <= MAX_ORDER:
        expected, got = f"k in [1, {MAX_ORDER}]", k
    elif x.shape[1] < 1:
        expected, got = "x with at least one column", list(x.shape)
    elif num_simplices < 1:
        expected, got = "num_simplices >= 1", num_simplices
    elif pool is None or not k < pool <= x.shape[0]:
        expected, got = f"pool in [k + 1, rows of x] = [{k + 1}, {x.shape[0]}]", pool
    elif not valid_above >= 0:
        expected, got = "valid_above >= 0", valid_above
    elif min_valid < 2:
        expected, got = "min_valid >= 2", min_valid
    elif not eps >= 0:
        expected, got = "eps >= 0", eps
    else:
        return
    raise error(f"simplex_cv: expected {expected}, got {got}")


_op = torch.ops.stratcore.simplex_cv.default
_backward_op = torch.ops.stratcore.simplex_cv_backward.default


@torch.library.register_fake("stratcore::simplex_cv")
def _fake(
    x: Tensor,
    seed: Tensor,
    order: int,
    num_simplices: int,
    pool: int,
    target: float,
    valid_above: float,
    min_valid: int,
    eps: float,
) -> tuple[Tensor, ...]:
    check_floating("simplex_cv", "x", x)
    _check(x, order, num_simplices, pool, valid_above, min_valid, eps, RuntimeError)
    if seed.shape != (2,) or seed.dtype != torch.int64:
        raise RuntimeError(
            f"simplex_cv: expected seed of shape [2] and dtype int64, got {list(seed.shape)} and {seed.dtype}"
        )
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        *(x.new_empty((), dtype=dtype) for _ in range(4)),
        x.new_empty((), dtype=torch.int64),
        x.new_empty((num_simplices,), dtype=dtype),
        x.new_empty((num_simplices, order + 1), dtype=torch.int64),
        x.new_empty((4 + num_simplices * (1 + order * (order + 1) // 2),), dtype=torch.float64),
    )


@torch.library.register_fake("stratcore::simplex_cv_backward")
def _fake_backward(
    grad_loss: Tensor | None,
    grad_cv: Tensor | None,
    grad_mean: Tensor | None,
    grad_std: Tensor | None,
    grad_volumes: Tensor | None,
    x: Tensor,
    *args: Any,
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, count, indices, state = inputs[0], output[4], output[6], output[7]
    ctx.mark_non_differentiable(count, indices, state)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, indices, state)
    if forward_mode_active():
        ctx.save_for_forward(x, indices, state)
    ctx.options = inputs[5:]


def _gradient(
    ctx: Any,
    grad_loss: Tensor | None,
    grad_cv: Tensor | None,
    grad_mean: Tensor | None,
    grad_std: Tensor | None,
    grad_count: None,
    grad_volumes: Tensor | None,
    *_: Any,
) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    grads = (grad_loss, grad_cv, grad_mean, grad_std, grad_volumes)
    if grad_loss is None and all(grad is None for grad in grads):
        return (None,) * 9
    x, indices, state = ctx.saved_tensors
    if torch.is_grad_enabled():
        grad_x = gradient(x, indices, state, grads, *ctx.options)
    else:
        grad_x = _backward_op(*grads, x, indices, state, *ctx.options)
    return grad_x, None, None, None, None, None, None, None, None


def _tangent(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple:
    x, indices, state = ctx.saved_tensors
    loss, cv, mean, std, volumes = tangents(x, indices, state, tangent, *ctx.options)
    return loss, cv, mean, std, None, volumes, None, None


_call = differentiable(_op, setup_context=_save, backward=_gradient, jvp=_tangent)


# The kernels of one call fill the machine by themselves.
torch.library.register_vmap("stratcore::simplex_cv", one_by_one(_op))
torch.library.register_vmap("stratcore::simplex_cv_backward", one_by_one(_backward_op))


@register_flop_formula(torch.ops.stratcore.simplex_cv)
def _flops(x: Any, seed: Any, order: int, num_simplices: int, *args: Any, **kwargs: Any) -> int:
    """Products of edges: the lower triangle of every Gram matrix."""
    return num_simplices * order * (order + 1) * x[1]


@register_flop_formula(torch.ops.stratcore.simplex_cv_backward)
def _backward_flops(
    grad_loss: Any,
    grad_cv: Any,
    grad_mean: Any,
    grad_std: Any,
    grad_volumes: Any,
    x: Any,
    indices: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Products W E."""
    return 2 * indices[0] * (indices[1] - 1) ** 2 * x[1]
