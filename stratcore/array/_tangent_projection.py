"""Rows on the sphere, and their nearest anchors. Legend: N rows, D dimension, A anchors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratcore import _array
from stratcore.array._checks import as_array, as_batch, require, row_major

OP = "tangent_projection"
LEAST_EPS = 1e-18  # below it, squares leave the range of float32


class SphereNormalized(NamedTuple):
    """Rows on the sphere, y [..., D]; nearest: int32 [...], the anchor of largest cosine; cosine [...] with it."""

    y: NDArray[Any]
    nearest: NDArray[np.int32]
    cosine: NDArray[Any]


def sphere_normalize(x: ArrayLike, *, eps: float = 1e-12) -> NDArray[Any]:
    """Rows of `x` scaled to length 1: x / max(|x|, eps).

    Args:
        x: [..., D], float64 or float32.
        eps: least length that a row is divided by, >= 1e-18.

    Returns:
        [..., D], dtype of `x`.

    Raises:
        ValueError: a 0-dimensional x, no D, an eps that does not fit, an array off the CPU, or a tensor that
            requires grad.
        TypeError: not float64 or float32.

    Numerics: NaN stays in its row.
    Determinism: the same bits on every run, whatever the number of threads.
    Source: csrc/tangent_projection/README.md.
    """
    values = _checked(x, eps)
    no_anchors = np.empty((0, values.shape[-1]), values.dtype)
    return _array.sphere_normalize(as_batch(values, 1), no_anchors, float(eps))[0].reshape(values.shape)


def sphere_normalize_nearest(x: ArrayLike, anchors: ArrayLike, *, eps: float = 1e-12) -> SphereNormalized:
    """`sphere_normalize` with the nearest anchor of each row and its cosine <y, n>.

    Args:
        x: as in `sphere_normalize`.
        anchors: [A, D] of any lengths, A >= 1, dtype of `x`; a zero anchor has cosine 0.
        eps: as in `sphere_normalize`.

    Returns:
        SphereNormalized; of equal cosines the lowest index.

    Raises:
        ValueError: as in `sphere_normalize`, or anchors of another shape.
        TypeError: as in `sphere_normalize`, or anchors of another dtype.
    """
    values = _checked(x, eps)
    directions = as_array(OP, "anchors", anchors, like=values)
    batch, dim = values.shape[:-1], values.shape[-1]
    fits = directions.ndim == 2 and directions.shape[0] > 0 and directions.shape[1] == dim
    require(OP, fits, f"anchors of shape [A, {dim}] with A >= 1", list(directions.shape))
    y, nearest, cosine = _array.sphere_normalize(as_batch(values, 1), row_major(directions), float(eps))
    return SphereNormalized(y.reshape(values.shape), nearest.reshape(batch), cosine.reshape(batch))


def _checked(x: ArrayLike, eps: float) -> NDArray[Any]:
    values = as_array(OP, "x", x)
    require(OP, LEAST_EPS <= eps < math.inf, f"a finite eps >= {LEAST_EPS}", eps)
    fits = values.ndim > 0 and values.shape[-1] > 0
    require(OP, fits, "x of shape [..., D] with D >= 1", list(values.shape))
    return values
