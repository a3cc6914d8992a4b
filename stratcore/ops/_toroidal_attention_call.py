"""Arguments of `toroidal_attention` in the layout of the op, checked with one wording on every route.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, S slopes a head.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratcore.ops._checks import check_choice, check_floating

OP = "toroidal_attention"
METRICS = ("l1", "l2", "linf", "chordal", "chordal_sq")
PER_AXIS = ("l1", "chordal_sq")
MOST_PERIOD, MOST_DIM, MOST_POSITION = 1 << 24, 256, 1 << 60


class Options(NamedTuple):
    """What the op takes beside tensors, in the order of its schema."""

    lattice: Sequence[int]
    block: Sequence[int]
    metric: str
    scale: float
    causal: bool
    causal_group: int
    query_offset: int
    key_offset: int
    eps: float
    deterministic: bool


def arguments(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, mask: Tensor | None, given: tuple) -> tuple:
    """All arguments of the op from those of the public functions; `given`: Options, with defaults to be filled in."""
    check_floating(OP, "q", q)
    if q.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(q.device.type):
        low = torch.get_autocast_dtype(q.device.type)
        q, k, v = (t if t.dtype == torch.float64 else t.to(low) for t in (q, k, v))
    check_floating(OP, "slopes", slopes)
    slopes = slopes.to(compute_dtype(q))
    if slopes.ndim == 1:
        slopes = slopes[:, None]
    options = _complete(q, *given)
    if mask is not None:
        mask = _broadcast_mask(q, k, mask)
    check(q, k, v, slopes, mask, options, ValueError)
    return (q, k, v, slopes, mask, *options)


def compute_dtype(q: Tensor) -> torch.dtype:
    """Of scores, lse and slopes."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def as_periods(name: str, value: int | Sequence[int]) -> list[int]:
    """One number or several as a list of int."""
    values = [value] if isinstance(value, int) else list(value)
    try:
        return [operator.index(number) for number in values]
    except TypeError:
        raise TypeError(f"{OP}: expected {name} of whole numbers, got {values}") from None


def _complete(
    q: Tensor,
    lattice: int | Sequence[int],
    block: int | Sequence[int] | None,
    metric: str,
    scale: float | None,
    causal: bool,
    *rest: Any,
) -> Options:
    causal_group, query_offset, key_offset, eps, deterministic = rest
    periods = as_periods("lattice", lattice)
    blocks = periods if block is None else as_periods("block", block)
    if scale is None:
        scale = max(1, q.shape[-1] if q.ndim else 1) ** -0.5
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return Options(
        periods, blocks, metric, scale, causal, causal_group, query_offset, key_offset, eps, deterministic
    )


def _broadcast_mask(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Expanded to [B, H, N, M] without a copy, of a dtype that the op takes."""
    if mask.requires_grad:
        raise ValueError(f"{OP}: expected a mask without a gradient, got one that requires grad")
    if mask.dtype != torch.bool:
        check_mask_dtype(mask)
        if mask.dtype not in (torch.float32, q.dtype):
            mask = mask.float()
    if q.ndim != 4 or k.ndim != 4:
        return mask  # `check` says so
    shape = (*q.shape[:3], k.shape[2])
    fits = mask.ndim <= 4 and all(
        size == 1 or size == full for size, full in zip(mask.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"{OP}: expected mask that broadcasts to {list(shape)}, got {list(mask.shape)}")
    return mask.expand(shape)


def check_mask_dtype(mask: Tensor) -> None:
    """Raises TypeError for a mask that neither selects nor adds."""
    if not mask.dtype.is_floating_point:
        raise TypeError(f"{OP}: expected mask of dtype bool or floating point, got {mask.dtype}")


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    mask: Tensor | None,
    options: Options,
    error: type[Exception],
) -> None:
    """Holds the arguments to the conditions of toroidal_attention_op.cpp, in its words."""
    _check_tensors(q, k, v, error)
    _check_lattice(options.lattice, options.block, error)
    check_choice(OP, "metric", options.metric, METRICS)
    heads, axes = q.shape[1], len(options.lattice)
    if slopes.dtype != compute_dtype(q):
        raise error(f"{OP}: expected slopes of dtype float32 (float64 for float64 q)")
    count = axes if slopes.ndim == 2 and slopes.shape[1] != 1 else 1
    if tuple(slopes.shape) != (heads, count) or (count > 1 and options.metric not in PER_AXIS):
        raise error(
            f"{OP}: expected slopes of shape [{heads}, 1], or [{heads}, {axes}] with metric l1 or chordal_sq, got "
            f"{list(slopes.shape)}"
        )
    tensors = [("slopes", slopes)]
    if mask is not None:
        if mask.dtype not in (torch.bool, torch.float32, q.dtype):
            raise error(f"{OP}: expected mask of dtype bool, float32 or that of q")
        shape = [*q.shape[:3], k.shape[2]]
        if list(mask.shape) != shape:
            raise error(f"{OP}: expected mask of shape {shape}, got {list(mask.shape)}")
        tensors.append(("mask", mask))
    for name, tensor in tensors:
        if tensor.device != q.device:
            raise error(f"{OP}: expected {name} on the device of the first argument")
    _check_numbers(options, error)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, error: type[Exception]) -> None:
    for name, tensor in (("q", q), ("k", k)):
        if tensor.ndim != 4:
            raise error(f"{OP}: expected {name} with 4 dimensions, got {list(tensor.shape)}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            kind = TypeError if error is ValueError else error
            raise kind(f"{OP}: expected {name} of the dtype of the first argument")
        if tensor.device != q.device:
            raise error(f"{OP}: expected {name} on the device of the first argument")
    batch, heads, _, dim = q.shape
    if heads < 1 or not 1 <= dim <= MOST_DIM:
        got = list(q.shape)
        raise error(f"{OP}: expected q with at least one head, of dimension 1 to {MOST_DIM}, got {got}")
    shared = k.shape[1]
    if k.shape[0] != batch or k.shape[3] != dim or shared < 1 or heads % shared != 0:
        wanted = f"[{batch}, G, M, {dim}] with G a divisor of {heads}"
        raise error(f"{OP}: expected k of shape {wanted}, got {list(k.shape)}")
    if v.shape != k.shape:
        raise error(f"{OP}: expected v of shape {list(k.shape)}, got {list(v.shape)}")


def check_periods(op: str, lattice: Sequence[int], block: Sequence[int], error: type[Exception]) -> None:
    """Raises `error` unless `lattice` names a torus that `block` divides."""
    fits = 1 <= len(lattice) <= 3 and all(1 <= period <= MOST_PERIOD for period in lattice)
    if not fits or math.prod(lattice) > MOST_POSITION:
        wanted = "lattice of 1 to 3 periods from 1 to 2^24, at most 2^60 sites"
        raise error(f"{op}: expected {wanted}, got {list(lattice)}")
    divides = len(block) == len(lattice) and all(
        1 <= size and period % size == 0 for size, period in zip(block, lattice, strict=True)
    )
    if not divides:
        raise error(f"{op}: expected block of sizes that divide lattice {list(lattice)}, got {list(block)}")


def _check_lattice(lattice: Sequence[int], block: Sequence[int], error: type[Exception]) -> None:
    check_periods(OP, lattice, block, error)


def _check_numbers(options: Options, error: type[Exception]) -> None:
    if not -math.inf < options.scale < math.inf:
        raise error(f"{OP}: expected a finite scale, got {options.scale}")
    if not 0 <= options.eps < 1:
        raise error(f"{OP}: expected eps in [0, 1), got {options.eps}")
    for name, least in (("causal_group", 1), ("query_offset", 0), ("key_offset", 0)):
        value = getattr(options, name)
        if not least <= value <= MOST_POSITION:
            raise error(f"{OP}: expected {name} from {least} to 2^60, got {value}")
