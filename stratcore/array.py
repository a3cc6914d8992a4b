"""The ops on NumPy arrays, without torch and without gradients.

    from stratcore import array

    codes = array.topk_lista(x, encoder, recurrent, theta, 8, num_steps=4)

Inputs are whatever `numpy.asarray` takes, and CPU arrays of other libraries (JAX, torch) through DLPack; memory
that is not row-major is copied, other memory is used as it is. Outputs are fresh NumPy arrays. The kernels are
those of `stratcore.ops`, on plain threads and with a plain matrix product instead of torch's: for large problems
where torch is installed, `stratcore.ops` is faster.

Legend of the codes: E experts, B rows, D input size, M atoms, K code width (largest k), T steps, P 1 or the number
of steps.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from stratcore import _array
except ImportError as error:
    raise ImportError(
        f"stratcore.array needs the compiled module _array, which did not load: {error}. "
        "Reinstall with nanobind present (STRATCORE_ARRAY=on pip install .); 'python -m stratcore.info' tells more."
    ) from error

FLOATING = (np.dtype(np.float64), np.dtype(np.float32))
FORMS = ("classic", "coupled")
_DLPACK_CPU = 1
_MAX_ORDER = 8


class SparseCode(NamedTuple):
    """A sparse code: `values` stand at `indices`, everything else is 0.

    indices: int32 [..., K], distinct and, up to k, ascending; where an expert's k is smaller than K, the rest are
    unused atoms with value 0. values: [..., K].
    """

    indices: NDArray[np.int32]
    values: NDArray[Any]


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


class SphereNormalized(NamedTuple):
    """Rows on the sphere, y [..., D]; nearest: int32 [...], the anchor of largest cosine; cosine [...] with it."""

    y: NDArray[Any]
    nearest: NDArray[np.int32]
    cosine: NDArray[Any]


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

    Args:
        x: as are all further arguments, those of `topk_lista`.
        encoder: see there.
        recurrent: see there.
        theta: see there.
        k: see there.
        num_steps: see there.
        form: see there.
        input_per_expert: see there.
        every_step: return the codes of all steps, with a leading axis T + 1.

    Returns:
        SparseCode with [..., K] or [E, ..., K]; with `every_step` [T + 1, ...] in front.

    Raises:
        ValueError: see `topk_lista`.
        TypeError: see `topk_lista`.
    """
    call = _Call(x, (encoder, recurrent, theta), k, num_steps, form, input_per_expert)
    _, values, indices = call.run()
    if not every_step:
        return SparseCode(call.restore(indices[-1]), call.restore(values[-1]))
    return SparseCode(
        np.stack([call.restore(i) for i in indices]), np.stack([call.restore(v) for v in values])
    )


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
    points = _as_array("simplex_cv", "x", x)

    def require(condition: bool, expected: str, got: Any) -> None:
        if not condition:
            raise ValueError(f"simplex_cv: expected {expected}, got {got}")

    require(points.ndim == 2, "x with 2 dimensions", list(points.shape))
    order, count = operator.index(k), operator.index(num_simplices)
    rows = points.shape[0] if pool is None else operator.index(pool)
    require(1 <= order <= 8, "k in [1, 8]", order)
    require(points.shape[1] >= 1, "x with at least one column", list(points.shape))
    require(count >= 1, "num_simplices >= 1", count)
    require(
        order < rows <= points.shape[0],
        f"pool in [k + 1, rows of x] = [{order + 1}, {points.shape[0]}]",
        rows,
    )
    require(valid_above >= 0, "valid_above >= 0", valid_above)
    require(min_valid >= 2, "min_valid >= 2", min_valid)
    require(eps >= 0, "eps >= 0", eps)
    pair = np.array((seed, 0) if isinstance(seed, int | np.integer) else seed, dtype=np.int64)
    require(pair.shape == (2,), "seed of shape [2]", list(pair.shape))
    options = (float(target), float(valid_above), operator.index(min_valid), float(eps))
    return SimplexCV(*_array.simplex_cv(_row_major(points), pair, order, count, rows, *options))


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
    values = _as_array("topk", "x", x)
    if values.ndim == 0 or not 1 <= k <= values.shape[-1]:
        raise ValueError(f"topk: expected k in [1, M] for x [..., M], got k = {k} and x {list(values.shape)}")
    rows = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
    return _array.topk(_row_major(rows), operator.index(k))[0].reshape(values.shape)


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
    for name in wanted:
        if name not in SimplexMeasures._fields:
            fields = ", ".join(SimplexMeasures._fields)
            raise ValueError(f"cayley_menger: expected outputs among {fields}, got {name!r}")
    values = _as_array("cayley_menger", "points", points)
    batch, rows = _vertices(values, indices)
    if rows is None:
        values = values.reshape(math.prod(batch), *values.shape[-2:])
    flags = [name in wanted for name in SimplexMeasures._fields]
    results = _array.cayley_menger(_row_major(values), rows, flags)
    shaped = (r.reshape((*batch, *r.shape[1:])) if f else None for r, f in zip(results, flags, strict=True))
    return SimplexMeasures(*shaped)


def _vertices(
    points: NDArray[Any], indices: ArrayLike | None
) -> tuple[tuple[int, ...], NDArray[np.int64] | None]:
    """The batch shape, and the checked indices [B, k + 1] or None."""
    rows = None if indices is None else np.asarray(indices)
    if rows is None and points.ndim < 2:
        raise ValueError(f"cayley_menger: expected points of shape [..., k + 1, D], got {list(points.shape)}")
    if rows is not None and not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"cayley_menger: expected indices of integers, got {rows.dtype}")
    if rows is not None and (points.ndim != 2 or rows.ndim < 1):
        raise ValueError(
            f"cayley_menger: expected points [N, D] with indices [..., k + 1], got {list(points.shape)} and "
            f"{list(rows.shape)}"
        )
    vertices = points.shape[-2] if rows is None else rows.shape[-1]
    if not 2 <= vertices <= _MAX_ORDER + 1:
        raise ValueError(f"cayley_menger: expected 2 to {_MAX_ORDER + 1} vertices a simplex, got {vertices}")
    if rows is None:
        return points.shape[:-2], None
    outside = rows[(rows < 0) | (rows >= len(points))]
    if outside.size:
        raise ValueError(f"cayley_menger: expected indices in [0, {len(points)}), got {outside[0]}")
    return rows.shape[:-1], _row_major(rows.reshape(-1, vertices).astype(np.int64))


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
    given = _as_array("cayley_menger_distances", "squared_distances", squared_distances)
    pairs = given.shape[-1] if given.ndim else 0
    order = next((k for k in range(1, _MAX_ORDER + 1) if k * (k + 1) // 2 == pairs), 0)
    if order == 0 or k not in (None, order):
        wanted = f"k (k + 1) / 2 with k in [1, {_MAX_ORDER}]" if k is None else f"{k} ({k} + 1) / 2"
        raise ValueError(
            f"cayley_menger_distances: expected squared_distances [..., P], P = {wanted}, got {list(given.shape)}"
        )
    batch = given.shape[:-1]
    flat = _row_major(given.reshape(math.prod(batch), pairs))
    return DistanceMeasures(*(r.reshape(batch) for r in _array.cayley_menger_distances(flat, order)))


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
    rows = _sphere_rows(x, eps)
    dim, no_anchors = rows.shape[-1], np.empty((0, rows.shape[-1]), rows.dtype)
    flat = rows.reshape(math.prod(rows.shape[:-1]), dim)
    return _array.sphere_normalize(flat, no_anchors, float(eps))[0].reshape(rows.shape)


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
    rows, others = _sphere_rows(x, eps), _as_array("tangent_projection", "anchors", anchors)
    if others.dtype != rows.dtype:
        raise TypeError(
            f"tangent_projection: expected anchors of dtype {rows.dtype} as x, got {others.dtype}"
        )
    dim = rows.shape[-1]
    if others.ndim != 2 or others.shape[0] == 0 or others.shape[1] != dim:
        raise ValueError(
            f"tangent_projection: expected anchors of shape [A, {dim}] with A >= 1, got {list(others.shape)}"
        )
    batch = rows.shape[:-1]
    y, nearest, cosine = _array.sphere_normalize(
        rows.reshape(math.prod(batch), dim), _row_major(others), float(eps)
    )
    return SphereNormalized(y.reshape(rows.shape), nearest.reshape(batch), cosine.reshape(batch))


def _sphere_rows(x: ArrayLike, eps: float) -> NDArray[Any]:
    """`x` in row-major memory; the conditions of the torch op, in its words."""
    values = _as_array("tangent_projection", "x", x)
    if not 1e-18 <= eps < math.inf:
        raise ValueError(f"tangent_projection: expected a finite eps >= 1e-18, got {eps}")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            f"tangent_projection: expected x of shape [..., D] with D >= 1, got {list(values.shape)}"
        )
    return _row_major(values)


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
        if form not in FORMS:
            raise ValueError(f"topk_lista: expected form to be one of {', '.join(FORMS)}, got {form!r}")
        inputs = _as_array("topk_lista", "x", x)
        named = zip(("encoder", "recurrent", "theta"), parameters, (4, 4, 3), strict=True)
        arrays = [(name, _as_array("topk_lista", name, value), ndim) for name, value, ndim in named]
        for name, array, _ in arrays:
            if array.dtype != inputs.dtype:
                raise TypeError(
                    f"topk_lista: expected {name} of dtype {inputs.dtype} as x, got {array.dtype}"
                )
        self.single = arrays[0][1].ndim == 2
        self.parameters = [_with_leading(name, array, ndim) for name, array, ndim in arrays]
        experts, _, dim = self.parameters[0].shape[1:]
        if (
            inputs.ndim < 1 + input_per_expert
            or inputs.shape[-1] != dim
            or (input_per_expert and inputs.shape[0] != experts)
        ):
            wanted = f"[{experts}, ..., {dim}]" if input_per_expert else f"[..., {dim}]"
            raise ValueError(
                f"topk_lista: expected x of shape {wanted} as encoder has it, got {list(inputs.shape)}"
            )
        self.batch = inputs.shape[int(input_per_expert) : -1]
        self.x = inputs.reshape(experts if input_per_expert else 1, math.prod(self.batch), dim)
        widths = [k] * experts if isinstance(k, int | np.integer) else k
        self.k = [operator.index(width) for width in widths]
        self.num_steps, self.form = operator.index(num_steps), form
        _check_shapes(self.parameters, self.k, form, self.num_steps)

    def run(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int32]]:
        arrays = [_row_major(array) for array in (self.x, *self.parameters)]
        return _array.topk_lista(*arrays, self.k, self.form, self.num_steps)

    def restore(self, code: NDArray[Any]) -> NDArray[Any]:
        """[E, B, n] -> [E, ..., n], or [..., n] for a single expert."""
        shape = (*self.batch, code.shape[-1])
        return code.reshape(shape if self.single else (code.shape[0], *shape))


def _as_array(op: str, name: str, value: Any) -> NDArray[Any]:
    """`value` as an array of a dtype that the kernels compute with, without a copy where that is possible."""
    if getattr(value, "requires_grad", False):
        raise ValueError(
            f"{op}: expected {name} without a gradient, got a tensor that requires grad: NumPy would lose the "
            "graph; call stratcore.ops, or detach it"
        )
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
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
    else:
        array = np.asarray(value)
    if array.dtype not in FLOATING:
        raise TypeError(f"{op}: expected {name} of dtype float64 or float32, got {array.dtype}")
    return array


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED"))


def _with_leading(name: str, array: NDArray[Any], ndim: int) -> NDArray[Any]:
    if not ndim - 2 <= array.ndim <= ndim:
        raise ValueError(
            f"topk_lista: expected {name} with {ndim - 2} to {ndim} dimensions, got {list(array.shape)}"
        )
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _check_shapes(parameters: Sequence[NDArray[Any]], k: Sequence[int], form: str, num_steps: int) -> None:
    """The conditions of the torch op, in its words; x has been checked."""
    encoder, recurrent, theta = parameters
    experts, atoms, dim = encoder.shape[1:]

    def require(condition: bool, text: str) -> None:
        if not condition:
            raise ValueError(f"topk_lista: expected {text}")

    require(num_steps >= 0, f"num_steps >= 0, got {num_steps}")
    counts = {"encoder": num_steps + 1, "recurrent": num_steps, "theta": num_steps + 1}
    for (name, count), array in zip(counts.items(), parameters, strict=True):
        require(
            array.shape[0] in (1, count),
            f"{name} with 1 (tied) or {count} (per step) leading entries, got {array.shape[0]}",
        )
    require(
        min(experts, atoms, dim) > 0,
        f"at least one expert, atom and input dimension, got {list(encoder.shape)}",
    )
    wanted = [experts, atoms if form == "classic" else dim, atoms]
    require(
        list(recurrent.shape[1:]) == wanted,
        f"recurrent of shape {[recurrent.shape[0], *wanted]}, got {list(recurrent.shape)}",
    )
    require(
        list(theta.shape[1:]) == [experts, atoms],
        f"theta of shape {[theta.shape[0], experts, atoms]}, got {list(theta.shape)}",
    )
    require(len(k) == experts, f"k with {experts} entries, got {len(k)}")
    require(all(1 <= width <= atoms for width in k), f"every k in [1, {atoms}], got {list(k)}")
