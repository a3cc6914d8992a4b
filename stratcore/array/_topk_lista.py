"""Codes of top-k LISTA, and the selection alone.

Legend: E experts, B rows, D input size, M atoms, K code width (largest k), T steps, P 1 or the number of steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stratcore import _array
from stratcore.array._checks import as_array, as_batch, require, row_major

OP = "topk_lista"
FORMS = ("classic", "coupled")


class SparseCode(NamedTuple):
    """A sparse code: `values` stand at `indices`, everything else is 0.

    indices: int32 [..., K], distinct and, up to k, ascending; where an expert's k is smaller than K, the rest are
    unused atoms with value 0. values: [..., K].
    """

    indices: NDArray[np.int32]
    values: NDArray[Any]


def topk_lista(
    x: ArrayLike,
    encoder: ArrayLike,
    recurrent: ArrayLike,
    theta: ArrayLike,
    k: int | np.integer | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    input_per_expert: bool = False,
) -> NDArray[Any]:
    """Sparse codes of `x` by learned iterative soft thresholding with a hard top-k after every step.

        z_0 = T_k(h_theta(W x))
        classic:  z <- T_k(h_theta(W x + S z))             num_steps times
        coupled:  z <- T_k(h_theta(z + W (x - D z)))       num_steps times

    h_theta(u) = sign(u) max(|u| - theta, 0); T_k keeps the k entries of largest magnitude, equal magnitudes in
    the order of their index.

    Args:
        x: [..., D]; with `input_per_expert` [E, ..., D]. float64 or float32.
        encoder: W [M, D] for one expert, [E, M, D] for several, [T + 1, E, M, D] for own weights a step.
        recurrent: classic S [M, M], coupled D [D, M]; [E, ...]; or [T, E, ...].
        theta: threshold >= 0, [M]; [E, M]; or [T + 1, E, M].
        k: entries kept, one number or one an expert, in [1, M].
        num_steps: T >= 0, products with `recurrent`.
        form: 'classic' or 'coupled'.
        input_per_expert: `x` holds an own input for every expert.

    Returns:
        Codes [..., M]; with several experts [E, ..., M]. dtype of `x`.

    Raises:
        ValueError: a shape, k or form that does not fit, an array off the CPU, or a tensor that requires grad.
        TypeError: not float64 or float32, or differing dtypes.

    Numerics: computed in the dtype of `x`. NaN stays in its row. Empty batches give empty codes.
    Determinism: the same bits on every run, whatever the number of threads.
    Source: csrc/topk_lista/README.md.
    """
    call = _Call(x, (encoder, recurrent, theta), k, num_steps, form, input_per_expert)
    return call.restore(call.run()[0])


def topk_lista_sparse(
    x: ArrayLike,
    encoder: ArrayLike,
    recurrent: ArrayLike,
    theta: ArrayLike,
    k: int | np.integer | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    input_per_expert: bool = False,
    every_step: bool = False,
) -> SparseCode:
    """`topk_lista` with the codes as indices and values instead of a dense array.

    Returns:
        SparseCode with [..., K] or [E, ..., K]; with `every_step` the codes of all steps, [T + 1, ...] in front.

    Arguments and errors: those of `topk_lista`.
    """
    call = _Call(x, (encoder, recurrent, theta), k, num_steps, form, input_per_expert)
    _, values, indices = call.run()
    if not every_step:
        return SparseCode(call.restore(indices[-1]), call.restore(values[-1]))
    return SparseCode(
        np.stack([call.restore(i) for i in indices]), np.stack([call.restore(v) for v in values])
    )


def topk(x: ArrayLike, k: int) -> NDArray[Any]:
    """The k entries of largest magnitude of each row, the others set to 0.

    Args:
        x: [..., M], float64 or float32.
        k: entries kept, in [1, M]; equal magnitudes in the order of their index.

    Returns:
        [..., M], dtype of `x`.

    Raises:
        ValueError: k outside [1, M], a 0-dimensional x, an array off the CPU, or a tensor that requires grad.
        TypeError: not float64 or float32.

    Determinism: the same bits on every run. NaN counts as larger than everything.
    """
    values = as_array("topk", "x", x)
    fits = values.ndim > 0 and 1 <= k <= values.shape[-1]
    require("topk", fits, "k in [1, M] for x [..., M]", f"k = {k} and x {list(values.shape)}")
    return _array.topk(as_batch(values, 1), operator.index(k))[0].reshape(values.shape)


class _Call:
    """The arguments of one call in the kernel's own layout: x [1 or E, B, D], parameters [P, E, ...]."""

    def __init__(
        self,
        x: ArrayLike,
        parameters: tuple[ArrayLike, ArrayLike, ArrayLike],
        k: int | np.integer | Sequence[int],
        num_steps: int,
        form: str,
        input_per_expert: bool,
    ) -> None:
        require(OP, form in FORMS, f"form to be one of {', '.join(FORMS)}", repr(form))
        inputs = as_array(OP, "x", x)
        named = list(zip(("encoder", "recurrent", "theta"), parameters, (4, 4, 3), strict=True))
        arrays = [as_array(OP, name, value, like=inputs) for name, value, _ in named]
        self.single = arrays[0].ndim == 2
        self.parameters = [
            _with_leading(name, array, ndim) for (name, _, ndim), array in zip(named, arrays, strict=True)
        ]
        experts, _, dim = self.parameters[0].shape[1:]
        own = int(input_per_expert)
        fits = inputs.ndim > own and inputs.shape[-1] == dim and (not own or inputs.shape[0] == experts)
        wanted = f"[{experts}, ..., {dim}]" if own else f"[..., {dim}]"
        require(OP, fits, f"x of shape {wanted} as encoder has it", list(inputs.shape))
        self.batch = inputs.shape[own:-1]
        self.x = inputs.reshape(experts if own else 1, math.prod(self.batch), dim)
        widths = [k] * experts if isinstance(k, int | np.integer) else k
        self.k = [operator.index(width) for width in widths]
        self.num_steps, self.form = operator.index(num_steps), form
        _check_shapes(self.parameters, self.k, form, self.num_steps)

    def run(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int32]]:
        arrays = [row_major(array) for array in (self.x, *self.parameters)]
        return _array.topk_lista(*arrays, self.k, self.form, self.num_steps)

    def restore(self, code: NDArray[Any]) -> NDArray[Any]:
        """[E, B, n] -> [E, ..., n], or [..., n] for a single expert."""
        shape = (*self.batch, code.shape[-1])
        return code.reshape(shape if self.single else (code.shape[0], *shape))


def _with_leading(name: str, array: NDArray[Any], ndim: int) -> NDArray[Any]:
    fits = ndim - 2 <= array.ndim <= ndim
    require(OP, fits, f"{name} with {ndim - 2} to {ndim} dimensions", list(array.shape))
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _check_shapes(parameters: Sequence[NDArray[Any]], k: Sequence[int], form: str, num_steps: int) -> None:
    """The conditions of the torch op, in its words; x has been checked."""
    check = partial(require, OP)
    encoder, recurrent, theta = parameters
    experts, atoms, dim = encoder.shape[1:]
    check(num_steps >= 0, "num_steps >= 0", num_steps)
    counts = {"encoder": num_steps + 1, "recurrent": num_steps, "theta": num_steps + 1}
    for (name, count), array in zip(counts.items(), parameters, strict=True):
        leading = array.shape[0]
        check(leading in (1, count), f"{name} with 1 (tied) or {count} (per step) leading entries", leading)
    nonempty = min(experts, atoms, dim) > 0
    check(nonempty, "at least one expert, atom and input dimension", list(encoder.shape))
    shapes = ((experts, atoms if form == "classic" else dim, atoms), (experts, atoms))
    for name, array, shape in zip(("recurrent", "theta"), (recurrent, theta), shapes, strict=True):
        wanted = [array.shape[0], *shape]
        check(list(array.shape) == wanted, f"{name} of shape {wanted}", list(array.shape))
    check(len(k) == experts, f"k with {experts} entries", len(k))
    check(all(1 <= width <= atoms for width in k), f"every k in [1, {atoms}]", list(k))
