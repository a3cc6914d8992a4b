"""Measures of simplices from their vertices or from given squared distances.

Legend: B simplices, k order, D dimension, N rows of a table, P = k (k + 1) / 2 pairs of vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratcore import _array
from stratcore.array._checks import MAX_ORDER, as_array, as_batch, require, row_major

OP = "cayley_menger"


class SimplexMeasures(NamedTuple):
    """What was asked for of every simplex; None what was not. Fields as in `stratcore.ops.SimplexMeasures`."""

    volume: NDArray[Any] | None = None
    log_volume: NDArray[Any] | None = None
    squared_volume: NDArray[Any] | None = None
    determinant: NDArray[Any] | None = None
    squared_distances: NDArray[Any] | None = None


class DistanceMeasures(NamedTuple):
    """Measures [...] of simplices with given distances; `euclidean` (bool): points with these distances exist."""

    volume: NDArray[Any]
    log_volume: NDArray[Any]
    squared_volume: NDArray[Any]
    determinant: NDArray[Any]
    euclidean: NDArray[np.bool_]


def simplex_measures(
    points: ArrayLike,
    indices: ArrayLike | None = None,
    *,
    outputs: Sequence[str] = SimplexMeasures._fields,
) -> SimplexMeasures:
    """Volume, log-volume, squared volume, Cayley-Menger determinant and squared distances of simplices.

    Args:
        points: vertices [..., k + 1, D] with k in 1..8; or, with `indices`, a table [N, D]. float64 or float32.
        indices: rows of the table [..., k + 1], integers in [0, N).
        outputs: names of the fields that are computed.

    Returns:
        SimplexMeasures of the dtype of `points`; a degenerate simplex has volume 0 and log-volume -inf.

    Raises:
        ValueError: a shape, order, index or output that does not fit, an array off the CPU, or a tensor that
            requires grad.
        TypeError: points not float64 or float32, or indices not integers.

    Numerics: computed in float64. NaN stays in its simplex.
    Determinism: the same bits on every run, whatever the number of threads.
    Source: csrc/cayley_menger/README.md.
    """
    wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    fields = SimplexMeasures._fields
    for name in wanted:
        require(OP, name in fields, f"outputs among {', '.join(fields)}", repr(name))
    values = as_array(OP, "points", points)
    if indices is None:
        require(OP, values.ndim >= 2, "points of shape [..., k + 1, D]", list(values.shape))
        _check_vertices(values.shape[-2])
        batch, vertices, rows = values.shape[:-2], as_batch(values, 2), None
    else:
        given = _checked_indices(values, indices)
        batch, vertices, rows = given.shape[:-1], row_major(values), as_batch(given, 1)
    flags = [name in wanted for name in fields]
    results = _array.cayley_menger(vertices, rows, flags)
    shaped = (r.reshape((*batch, *r.shape[1:])) if f else None for r, f in zip(results, flags, strict=True))
    return SimplexMeasures(*shaped)


def _checked_indices(points: NDArray[Any], indices: ArrayLike) -> NDArray[np.int64]:
    rows = np.asarray(indices)
    require(OP, np.issubdtype(rows.dtype, np.integer), "indices of integers", rows.dtype, TypeError)
    fits, got = points.ndim == 2 and rows.ndim >= 1, f"{list(points.shape)} and {list(rows.shape)}"
    require(OP, fits, "points [N, D] with indices [..., k + 1]", got)
    _check_vertices(rows.shape[-1])
    outside = rows[(rows < 0) | (rows >= len(points))]
    if outside.size:
        raise ValueError(f"{OP}: expected indices in [0, {len(points)}), got {outside[0]}")
    return rows.astype(np.int64)


def _check_vertices(count: int) -> None:
    require(OP, 2 <= count <= MAX_ORDER + 1, f"2 to {MAX_ORDER + 1} vertices a simplex", count)


def measures_from_distances(squared_distances: ArrayLike, k: int | None = None) -> DistanceMeasures:
    """Measures of simplices from given squared distances, and whether points with these distances exist.

    Args:
        squared_distances: [..., P] with P = k (k + 1) / 2, pairs (0, 1), (0, 2), .., (0, k), (1, 2), ..; float64 or
            float32.
        k: the order, 1..8; None takes it from P.

    Returns:
        DistanceMeasures of the dtype of `squared_distances`; where the squared volume is not positive, volume is 0
        and log-volume -inf.

    Raises:
        ValueError: a number of distances that belongs to no order, or to another than k.
        TypeError: not float64 or float32.
    """
    op = "cayley_menger_distances"
    given = as_array(op, "squared_distances", squared_distances)
    pairs = given.shape[-1] if given.ndim else 0
    order = next((k for k in range(1, MAX_ORDER + 1) if k * (k + 1) // 2 == pairs), 0)
    wanted = f"k (k + 1) / 2 with k in [1, {MAX_ORDER}]" if k is None else f"{k} ({k} + 1) / 2"
    fits = order > 0 and k in (None, order)
    require(op, fits, f"squared_distances [..., P], P = {wanted}", list(given.shape))
    results = _array.cayley_menger_distances(as_batch(given, 1), order)
    return DistanceMeasures(*(result.reshape(given.shape[:-1]) for result in results))
