"""Coefficient of variation (CV) of the volumes of random simplices. Legend: N rows, D dimension, n simplices."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratcore import _array
from stratcore.array._checks import MAX_ORDER, as_array, require, row_major


class SimplexCV(NamedTuple):
    """Statistics of the volumes of random simplices.

    loss: (cv - target)^2, 0 with fewer than min_valid valid simplices. cv, mean, std (unbiased): NaN there. count:
    valid simplices. volumes [n]: of all simplices. indices [n, k + 1]: rows of their vertices.
    """

    loss: float
    cv: float
    mean: float
    std: float
    count: int  # type: ignore[assignment]  # hides tuple.count
    volumes: NDArray[Any]
    indices: NDArray[np.int64]


def simplex_cv(
    x: ArrayLike,
    *,
    seed: int | tuple[int, int],
    target: float,
    k: int = 4,
    num_simplices: int = 1024,
    pool: int | None = None,
    valid_above: float = 0.0,
    min_valid: int = 2,
    eps: float = 0.0,
) -> SimplexCV:
    """Coefficient of variation of the volumes of random simplices whose vertices are rows of `x`.

    Args:
        x: points [N, D], float64 or float32.
        seed: (seed, offset); a single number s means (s, 0). The sample is that of `stratcore.ops.simplex_cv`.
        target: CV at which the loss is 0; the baseline is `stratcore.ops.cv_uniform(D, k)`.
        k: order of the simplices, 1 to 8.
        num_simplices: n >= 1.
        pool: vertices are drawn from the first `pool` rows, in [k + 1, N]; None: from all.
        valid_above: a simplex is valid where its squared volume is larger.
        min_valid: with fewer valid simplices the loss is 0; >= 2.
        eps: added to the mean: cv = std / (mean + eps).

    Returns:
        SimplexCV; numbers are Python's, volumes have the dtype of `x`.

    Raises:
        ValueError: a shape or number out of range, an array off the CPU, or a tensor that requires grad.
        TypeError: not float64 or float32.

    Numerics: differences and Gram matrices in float64. NaN volumes do not count as valid.
    Determinism: the same bits on every run, whatever the number of threads.
    Source: csrc/cayley_menger/README.md.
    """
    check = partial(require, "simplex_cv")
    points = as_array("simplex_cv", "x", x)
    check(points.ndim == 2, "x with 2 dimensions", list(points.shape))
    order, count = operator.index(k), operator.index(num_simplices)
    rows = points.shape[0] if pool is None else operator.index(pool)
    check(1 <= order <= MAX_ORDER, f"k in [1, {MAX_ORDER}]", order)
    check(points.shape[1] >= 1, "x with at least one column", list(points.shape))
    check(count >= 1, "num_simplices >= 1", count)
    range_of_pool = f"pool in [k + 1, rows of x] = [{order + 1}, {points.shape[0]}]"
    check(order < rows <= points.shape[0], range_of_pool, rows)
    check(valid_above >= 0, "valid_above >= 0", valid_above)
    check(min_valid >= 2, "min_valid >= 2", min_valid)
    check(eps >= 0, "eps >= 0", eps)
    pair = np.array((seed, 0) if isinstance(seed, int | np.integer) else seed, dtype=np.int64)
    check(pair.shape == (2,), "seed of shape [2]", list(pair.shape))
    options = (float(target), float(valid_above), operator.index(min_valid), float(eps))
    return SimplexCV(*_array.simplex_cv(row_major(points), pair, order, count, rows, *options))
