"""Measures of simplices from their vertices: volume, log-volume, Cayley-Menger determinant, squared distances.

Legend: B simplices, k order, V = k + 1 vertices, D dimension, N rows of a table, P = k (k + 1) / 2 pairs of vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, forward_mode_active
from stratcore.ops._cayley_menger_call import OP, OUTPUTS, Call, check_shapes, result_dtype
from stratcore.ops._cayley_menger_replay import SimplexReplay, gradient_of_points, through_table
from stratcore.ops._checks import check_floating
from stratcore.ops._vmap import batch_in_front


class SimplexMeasures(NamedTuple):
    """What was asked for of every simplex; None what was not.

    volume, log_volume, squared_volume, determinant (of the bordered Cayley-Menger matrix): [...]. squared_distances:
    [..., P], pairs (0, 1), (0, 2), .., (0, k), (1, 2), ..
    """

    volume: Tensor | None = None
    log_volume: Tensor | None = None
    squared_volume: Tensor | None = None
    determinant: Tensor | None = None
    squared_distances: Tensor | None = None


def simplex_measures(
    points: Tensor,
    indices: Tensor | None = None,
    *,
    outputs: Sequence[str] = OUTPUTS,
    deterministic: bool | None = None,
) -> SimplexMeasures:
    """Volume, log-volume, squared volume, Cayley-Menger determinant and squared distances, in one pass.

        E = (x_i - x_0), i = 1..k        V^2 = det(E E^T) / (k!)^2
        det [[0, 1^T], [1, D]] = (-1)^(k + 1) 2^k (k!)^2 V^2        D_ij = |x_i - x_j|^2

    Args:
        points: vertices [..., k + 1, D] with k in 1..8; or, with `indices`, a table [N, D]. float64, float32,
            bfloat16 or float16; any strides. Unit: length.
        indices: rows of the table [..., k + 1], int64 or int32.
        outputs: names of the fields that are computed.
        deterministic: gradients of a table in a fixed order of additions; None follows
            `torch.are_deterministic_algorithms_enabled()`, read once, here.

    Returns:
        SimplexMeasures: float64 for float64 points, else float32 (volumes of 16-bit points overflow float16). Units:
        length^k, its logarithm, length^2k twice, length^2.

    Raises:
        ValueError: a shape, order or output that does not fit, named with what was expected.
        TypeError: points not floating point, or indices not integer.
        RuntimeError: on the CPU, an index outside of [0, N). A GPU would have to be waited for: there such a simplex
            gives NaN and has no gradient.

    Gradient: exact, through every output, differentiable any number of times, with a forward mode. A degenerate
    simplex (a vertex lies in the plane of those before it, up to 1e-7 of its distance from vertex 0) has volume,
    squared volume and determinant 0 and log-volume -inf. There squared volume, determinant and distances keep their
    derivatives, while volume and log-volume have none and give 0.
    Numerics: differences first, then E E^T = L diag L^T, all in float64 whatever the input: at a height of 1e-4 of
    the edges V^2 keeps a relative error of 2e-7 against the rounded coordinates, most of it the rounding of the
    result to float32. The log-volume neither overflows nor underflows. A squared distance is as exact as 1e-15 of
    the larger distance from vertex 0. NaN stays in its simplex. Under autocast: float32.
    Determinism: forward always; backward on the CPU and of points without indices always, over a table on a GPU with
    `deterministic`. Empty batches give empty outputs.
    Cost: O(B k^2 D): one pass over the vertices forward, two backward.
    Source: Menger 1928; csrc/cayley_menger/README.md.
    """
    return SimplexMeasures(*Call(points, indices, outputs, deterministic).run(_call))


def simplex_volume(
    points: Tensor, indices: Tensor | None = None, *, deterministic: bool | None = None
) -> Tensor:
    """Volume of simplices, sqrt(det(E E^T)) / k!: points [..., k + 1, D], or [N, D] with indices [..., k + 1].

    Returns:
        [...], unit length^k, float64 for float64 points, else float32; 0 where degenerate, with gradient 0.

    Arguments, errors, gradient, numerics and source: those of `simplex_measures`, field `volume`.
    """
    return _one(points, indices, "volume", deterministic)


def simplex_log_volume(
    points: Tensor, indices: Tensor | None = None, *, deterministic: bool | None = None
) -> Tensor:
    """Logarithm of `simplex_volume`, which neither overflows nor underflows.

    Returns:
        [...], float64 for float64 points, else float32; -inf where degenerate, with gradient 0.

    Arguments, errors, gradient, numerics and source: those of `simplex_measures`, field `log_volume`.
    """
    return _one(points, indices, "log_volume", deterministic)


def simplex_squared_volume(
    points: Tensor, indices: Tensor | None = None, *, deterministic: bool | None = None
) -> Tensor:
    """Square of `simplex_volume`, with a derivative everywhere.

    Returns:
        [...], unit length^2k, float64 for float64 points, else float32; 0 where degenerate.

    Arguments, errors, gradient, numerics and source: those of `simplex_measures`, field `squared_volume`.
    """
    return _one(points, indices, "squared_volume", deterministic)


def cayley_menger_determinant(
    points: Tensor, indices: Tensor | None = None, *, deterministic: bool | None = None
) -> Tensor:
    """Determinant of the bordered matrix: (-1)^(k + 1) 2^k (k!)^2 times `simplex_squared_volume`.

    Returns:
        [...], unit length^2k, float64 for float64 points, else float32; positive for odd k, negative for even k, 0
        where degenerate.

    Arguments, errors, gradient, numerics and source: those of `simplex_measures`, field `determinant`.
    """
    return _one(points, indices, "determinant", deterministic)


def _one(points: Tensor, indices: Tensor | None, name: str, deterministic: bool | None) -> Tensor:
    result = Call(points, indices, (name,), deterministic).run(_call)[OUTPUTS.index(name)]
    assert result is not None  # for mypy: it was asked for
    return result


_op = torch.ops.stratcore.cayley_menger.default
_backward_op = torch.ops.stratcore.cayley_menger_backward.default


@torch.library.register_fake("stratcore::cayley_menger")
def _fake(points: Tensor, indices: Tensor | None, *options: bool) -> tuple[Tensor, ...]:
    check_floating(OP, "points", points)
    vertices = check_shapes(points, indices, RuntimeError)
    count, dtype = (points if indices is None else indices).shape[0], result_dtype(points)
    shapes = [(count,)] * 4 + [(count, vertices * (vertices - 1) // 2)]
    return tuple(
        points.new_empty(shape if wanted else (0,), dtype=dtype)
        for shape, wanted in zip(shapes, options[:5], strict=True)
    )


@torch.library.register_fake("stratcore::cayley_menger_backward")
def _fake_backward(
    grad_volume: Tensor | None,
    grad_log_volume: Tensor | None,
    grad_squared_volume: Tensor | None,
    grad_determinant: Tensor | None,
    grad_squared_distances: Tensor | None,
    points: Tensor,
    indices: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    return points.new_empty(points.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    points, indices, *wanted, deterministic = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(points, indices)
    if forward_mode_active():
        ctx.save_for_forward(points, indices)
    ctx.wanted, ctx.deterministic = wanted, deterministic


def _gradient(ctx: Any, *grads: Tensor | None) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    points, indices = ctx.saved_tensors
    used = [grad if wanted else None for grad, wanted in zip(grads, ctx.wanted, strict=True)]
    if all(grad is None for grad in used):
        return (None,) * 8
    if torch.is_grad_enabled():
        return gradient_of_points(points, indices, used), *(None,) * 7
    order = None
    if indices is not None and ctx.deterministic:
        order = _stable_order(indices, points.shape[0])
    return _backward_op(*used, points, indices, order), *(None,) * 7


def _stable_order(indices: Tensor, rows: int) -> Tensor:
    """Permutation that sorts the indices of a table of `rows` rows; a radix sort of short keys has fewer passes.

    Indices outside of the table stay on their side of it: the backward passes over them.
    """
    short = torch.int16 if rows < 1 << 15 else torch.int32 if rows < 1 << 31 else torch.int64
    return indices.flatten().clamp(-1, rows).to(short).argsort(stable=True)


def _tangent(ctx: Any, tangent: Tensor, *_: Any) -> tuple:
    points, indices = ctx.saved_tensors
    vertices, rows, inside = through_table(points, indices)
    moved = through_table(tangent, rows)[0]
    dtype = result_dtype(points)
    tangents = []
    for part, wanted in zip(SimplexReplay(vertices).tangents(moved), ctx.wanted, strict=True):
        if inside is not None:
            part = torch.where(inside if part.ndim == 1 else inside[:, None], part, 0.0)
        tangents.append(part.to(dtype) if wanted else part.new_zeros(0, dtype=dtype))
    return tuple(tangents)


_call = differentiable(_op, setup_context=_save, backward=_gradient, jvp=_tangent)


def _fold(size: int, points: Tensor, indices: Tensor | None, dims: Sequence[int | None]) -> tuple:
    """Batches of points or indices [X, ...] as one: vertices lie in a row, tables under each other."""
    if indices is None:
        return batch_in_front(points, dims[0], size).flatten(0, 1), None
    rows_XBV = batch_in_front(indices, dims[1], size)
    if dims[0] is None:
        return points, rows_XBV.flatten(0, 1)
    count = points.movedim(dims[0], 0).shape[1]
    inside = (rows_XBV >= 0) & (rows_XBV < count)
    start = torch.arange(size, device=points.device)[:, None, None] * count
    rows_XBV = torch.where(inside, rows_XBV + start, -1)
    return points.movedim(dims[0], 0).flatten(0, 1), rows_XBV.flatten(0, 1)


@torch.library.register_vmap("stratcore::cayley_menger")
def _vmap(info: Any, in_dims: tuple, points: Tensor, indices: Tensor | None, *options: bool) -> tuple:
    outputs = _op(*_fold(info.batch_size, points, indices, in_dims[:2]), *options)
    wanted = options[:5]
    split = [t.unflatten(0, (info.batch_size, -1)) if w else t for t, w in zip(outputs, wanted, strict=True)]
    return tuple(split), tuple(0 if w else None for w in wanted)


@torch.library.register_vmap("stratcore::cayley_menger_backward")
def _vmap_backward(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    """A batch of cotangents: every one has its own gradient, so that tables are repeated too."""
    size, grads = info.batch_size, arguments[:5]
    points, indices, order = arguments[5:]
    if in_dims[5] is None:
        points, in_dims = points.expand(size, *points.shape), (*in_dims[:5], 0, *in_dims[6:])
    folded, rows = _fold(size, points, indices, in_dims[5:7])
    wide = [
        None if g is None else batch_in_front(g, d, size).flatten(0, 1)
        for g, d in zip(grads, in_dims[:5], strict=True)
    ]
    if order is not None:
        order = _stable_order(rows, folded.shape[0])
    return _backward_op(*wide, folded, rows, order).unflatten(0, (size, -1)), 0


torch.library.register_autocast("stratcore::cayley_menger", "cpu", torch.float32)
torch.library.register_autocast("stratcore::cayley_menger", "cuda", torch.float32)


def _gram_flops(points: Sequence[int], indices: Sequence[int] | None) -> tuple[int, int, int]:
    """(FLOPs of differences and Gram matrices, B D, k)."""
    count, vertices = (points if indices is None else indices)[:2]
    k, columns = vertices - 1, count * points[-1]
    return columns * (k + k * (k + 1)), columns, k


@register_flop_formula(torch.ops.stratcore.cayley_menger)
def _flops(points: Sequence[int], indices: Sequence[int] | None, *args: Any, **kwargs: Any) -> int:
    return _gram_flops(points, indices)[0]


@register_flop_formula(torch.ops.stratcore.cayley_menger_backward)
def _backward_flops(*shapes: Any, **kwargs: Any) -> int:
    gram, columns, k = _gram_flops(shapes[5], shapes[6])
    return gram + columns * (2 * k * k + k)
