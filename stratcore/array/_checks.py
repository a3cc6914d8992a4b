"""Arguments of all functions: as arrays that the kernels read, and checked with the wording of `stratcore.ops`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATING = (np.dtype(np.float64), np.dtype(np.float32))
MAX_ORDER = 8  # of a simplex
_DLPACK_CPU = 1


def require(
    op: str, condition: bool, expected: str, got: object, error: type[Exception] = ValueError
) -> None:
    """Raises `error`, naming the op, what was expected and what was got, unless the condition holds."""
    if not condition:
        raise error(f"{op}: expected {expected}, got {got}")


def as_array(op: str, name: str, value: Any, like: NDArray[Any] | None = None) -> NDArray[Any]:
    """`value` as an array of a dtype that the kernels compute with, without a copy where that is possible.

    Args:
        op: for the message of an error, as is `name`.
        name: of the argument.
        value: anything that `numpy.asarray` takes, or an array with DLPack on the CPU.
        like: the argument x, whose dtype `value` must have.

    Returns:
        The array, in any layout of memory.

    Raises:
        ValueError: a tensor that requires grad, or an array off the CPU.
        TypeError: another dtype.
    """
    if getattr(value, "requires_grad", False):
        raise ValueError(
            f"{op}: expected {name} without a gradient, got a tensor that requires grad: NumPy would lose the "
            "graph; call stratcore.ops, or detach it"
        )
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        array = _from_dlpack(op, name, value)
    else:
        array = np.asarray(value)
    require(op, array.dtype in FLOATING, f"{name} of dtype float64 or float32", array.dtype, TypeError)
    if like is not None:
        require(op, array.dtype == like.dtype, f"{name} of dtype {like.dtype} as x", array.dtype, TypeError)
    return array


def _from_dlpack(op: str, name: str, value: Any) -> NDArray[Any]:
    try:
        device = tuple(int(part) for part in value.__dlpack_device__())
        array = np.from_dlpack(value) if device[0] == _DLPACK_CPU else None
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        got = getattr(value, "dtype", type(value).__name__)
        raise TypeError(
            f"{op}: expected {name} of dtype float64 or float32 on the CPU, got {got}: {error}"
        ) from error
    if array is None:
        raise ValueError(f"{op}: expected {name} on the CPU, got DLPack device {device}")
    return array


def row_major(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or a copy where its memory is not that of the kernels."""
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))


def as_batch(array: NDArray[Any], dimensions: int) -> NDArray[Any]:
    """[..., the last `dimensions`] -> [B, the last `dimensions`], row-major."""
    batch = array.ndim - dimensions
    return row_major(array.reshape(math.prod(array.shape[:batch]), *array.shape[batch:]))
