"""Measures of simplices from given squared distances, which need not belong to any points.

Legend: B simplices, k order, P = k (k + 1) / 2 pairs of vertices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable
from stratcore.ops._cayley_menger_call import MAX_ORDER, result_dtype
from stratcore.ops._cayley_menger_replay import gradient_of_distances
from stratcore.ops._checks import check_floating
from stratcore.ops._vmap import batch_in_front

OP = "cayley_menger_distances"


class DistanceMeasures(NamedTuple):
    """Measures [...] of simplices with given distances; `euclidean` (bool): points with these distances exist."""

    volume: Tensor
    log_volume: Tensor
    squared_volume: Tensor
    determinant: Tensor
    euclidean: Tensor


def measures_from_distances(squared_distances: Tensor, k: int | None = None) -> DistanceMeasures:
    """Measures of simplices from given squared distances, and whether points with these distances exist.

        G_ij = (d_0i + d_0j - d_ij) / 2        V^2 = det G / (k!)^2

    Args:
        squared_distances: [..., P] with P = k (k + 1) / 2, pairs (0, 1), (0, 2), .., (0, k), (1, 2), ..; float64,
            float32, bfloat16 or float16; any strides. Unit: length^2.
        k: the order, 1..8; None takes it from P.

    Returns:
        DistanceMeasures, float64 for float64, else float32. `squared_volume` and `determinant` carry their sign.
        Where the squared volume is not positive, volume is 0 and log-volume -inf. `euclidean`: no eigenvalue of G is
        below -32 k u times the largest, u = 2^-24 (2^-53 for float64): distances that were rounded once pass. A
        positive squared volume alone does not say so: two negative eigenvalues give one too.

    Raises:
        ValueError: a number of distances that belongs to no order, or to another than k.
        TypeError: not floating point.

    Gradient: through the adjugate of G, finite and right where G is singular; of volume and log-volume 0 where the
    squared volume is not positive. Differentiable any number of times; no forward mode.
    Numerics: eigenvalues of G by Jacobi rotations in float64. NaN stays in its simplex.
    Determinism: the same bits on every run. Cost: O(B k^3).
    Source: Schoenberg 1935; csrc/cayley_menger/README.md.
    """
    check_floating(OP, "squared_distances", squared_distances)
    pairs = squared_distances.shape[-1] if squared_distances.ndim else 0
    order = next((k for k in range(1, MAX_ORDER + 1) if k * (k + 1) // 2 == pairs), 0)
    if order == 0 or k not in (None, order):
        wanted = f"k (k + 1) / 2 with k in [1, {MAX_ORDER}]" if k is None else f"{k} ({k} + 1) / 2"
        raise ValueError(
            f"{OP}: expected squared_distances [..., P], P = {wanted}, got {list(squared_distances.shape)}"
        )
    batch = squared_distances.shape[:-1]
    results = _call(squared_distances.reshape(math.prod(batch), pairs), order)
    return DistanceMeasures(*(result.reshape(batch) for result in results))


_op = torch.ops.stratcore.cayley_menger_distances.default
_backward_op = torch.ops.stratcore.cayley_menger_distances_backward.default


@torch.library.register_fake("stratcore::cayley_menger_distances")
def _fake(squared_distances: Tensor, k: int) -> tuple[Tensor, ...]:
    check_floating(OP, "squared_distances", squared_distances)
    if squared_distances.ndim != 2:
        raise RuntimeError(
            f"{OP}: expected squared_distances with 2 dimensions, got {list(squared_distances.shape)}"
        )
    if not 1 <= k <= MAX_ORDER:
        raise RuntimeError(f"{OP}: expected k in [1, {MAX_ORDER}], got {k}")
    count, wanted = squared_distances.shape[0], k * (k + 1) // 2
    if squared_distances.shape[1] != wanted:
        raise RuntimeError(
            f"{OP}: expected squared_distances of shape {[count, wanted]}, got {list(squared_distances.shape)}"
        )
    dtypes = [result_dtype(squared_distances)] * 4 + [torch.bool]
    return tuple(squared_distances.new_empty(count, dtype=dtype) for dtype in dtypes)


@torch.library.register_fake("stratcore::cayley_menger_distances_backward")
def _fake_backward(
    grad_volume: Tensor | None,
    grad_log_volume: Tensor | None,
    grad_squared_volume: Tensor | None,
    grad_determinant: Tensor | None,
    squared_distances: Tensor,
    k: int,
) -> Tensor:
    return squared_distances.new_empty(squared_distances.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(output[4])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0])
    ctx.k = inputs[1]


def _gradient(ctx: Any, *grads: Tensor | None) -> tuple:
    (squared_distances,) = ctx.saved_tensors
    if all(grad is None for grad in grads[:4]):
        return None, None
    if torch.is_grad_enabled():
        return gradient_of_distances(squared_distances, ctx.k, grads[:4]), None
    return _backward_op(*grads[:4], squared_distances, ctx.k), None


_call = differentiable(_op, setup_context=_save, backward=_gradient)


@torch.library.register_vmap("stratcore::cayley_menger_distances")
def _vmap(info: Any, in_dims: tuple, squared_distances: Tensor, k: int) -> tuple:
    rows_XBP = squared_distances.movedim(in_dims[0], 0)
    outputs = _op(rows_XBP.flatten(0, 1), k)
    return tuple(t.unflatten(0, rows_XBP.shape[:2]) for t in outputs), (0,) * 5


@torch.library.register_vmap("stratcore::cayley_menger_distances_backward")
def _vmap_backward(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    folded = [
        None if tensor is None else batch_in_front(tensor, dim, info.batch_size).flatten(0, 1)
        for tensor, dim in zip(arguments[:5], in_dims[:5], strict=True)
    ]
    return _backward_op(*folded, arguments[5]).unflatten(0, (info.batch_size, -1)), 0


torch.library.register_autocast("stratcore::cayley_menger_distances", "cpu", torch.float32)
torch.library.register_autocast("stratcore::cayley_menger_distances", "cuda", torch.float32)
