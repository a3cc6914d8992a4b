"""Normalization onto the sphere with a surrogate gradient: tangential, and away from the nearest anchor.

Legend: N rows, D dimension, A anchors, V a batch of vmap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, forward_mode_active, transforms_active
from stratcore.ops._checks import FLOATING, check_choice, check_floating
from stratcore.ops._vmap import batch_in_front, one_by_one

SIGNS = ("repel", "reference")
JACOBIANS = ("tangent", "normalize", "identity")
LEAST_EPS = 1e-18  # below it, squares leave the range of float32


class SphereNormalized(NamedTuple):
    """Rows on the sphere and what lies next to them.

    y: [..., D], dtype of x. nearest: int32 [...], the anchor of largest cosine. cosine: [...] with it, float64 for
    float64 x, else float32. `nearest` and `cosine` carry no gradient.
    """

    y: Tensor
    nearest: Tensor
    cosine: Tensor


def sphere_normalize(
    x: Tensor,
    anchors: Tensor | None = None,
    *,
    tangential: float = 1.0,
    separation: float = 0.0,
    separation_sign: str = "repel",
    jacobian: str = "tangent",
    eps: float = 1e-12,
) -> Tensor:
    """Rows of `x` scaled to length 1, with a gradient that stays on the sphere and can leave the nearest anchor.

        y = x / max(|x|, eps)
        g' = dL/dy - tangential <dL/dy, y> y
        repel:      g'' = g' + separation (n - <n, y> y)             n: nearest anchor, of length 1
        reference:  g'' = g' - separation max(<g', n>, 0) n
        dL/dx = g'' / |x|  or  (g'' - <g'', y> y) / |x|  or  g''     for 'tangent', 'normalize', 'identity'

    Args:
        x: [..., D], float64, float32, bfloat16 or float16; any strides.
        anchors: [A, D] of any lengths, dtype of `x` (under autocast any); used as directions, without a gradient.
            A zero anchor has cosine 0.
        tangential: strength with which the radial part of dL/dy is taken out; 1 takes out all of it.
        separation: strength of the term that `separation_sign` chooses; 0 for none, as without anchors.
        separation_sign: 'repel' or 'reference', see Gradient.
        jacobian: 'tangent', 'normalize' or 'identity', see Gradient.
        eps: least length that a row is divided by, >= 1e-18.

    Returns:
        [..., D], dtype and device of `x`.

    Raises:
        ValueError: a shape, strength, eps, sign or Jacobian that does not fit, named with what was expected.
        TypeError: not floating point, or anchors of another dtype.

    Gradient: a surrogate, not the derivative of y, but for separation 0 with jacobian 'normalize', which is that of
        `torch.nn.functional.normalize` for any `tangential`. So the tangential term alone changes nothing where
        normalize's own Jacobian applies, here as in front of F.normalize. 'repel' (ours) adds the direction on the
        sphere towards the nearest anchor, so that a descent step moves away from it, whatever dL/dy is.
        'reference' is the published sign: it takes out of the gradient the part with which a step would leave the
        anchor, so it holds rows near their anchor although it is called separation; its result is tangential only
        where 'normalize' projects it again. 'identity' is for a tensor that lies on the sphere already. Rows below
        eps: the Jacobian is that of x / eps. No gradient to the anchors; the nearest one is that of the forward.
        Differentiable twice, the surrogate with respect to dL/dy and x; forward mode for separation 0.
    Numerics: computed in float32 or better (float64 for float64 input), whatever the input. NaN stays in its row; a
        NaN in an anchor counts as nearest to all rows. Autocast changes nothing: half-precision rows stay so.
    Determinism: the same bits on every run; of equal cosines the lowest index.
    Cost: 2 N D numbers forward, 3 N D backward, and 2 N D A operations where separation needs the nearest anchor and
        a gradient may be asked for; else the anchors are not read.
    Source: csrc/tangent_projection/README.md.
    """
    options = (tangential, separation, separation_sign, jacobian, eps)
    anchors = _checked(x, anchors, *options)
    if separation == 0 or not (transforms_active() or (torch.is_grad_enabled() and x.requires_grad)):
        anchors = None
    if x.ndim == 2:
        return _call(x, anchors, *options)[0]
    return _call(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), anchors, *options)[0].reshape(x.shape)


def sphere_normalize_nearest(
    x: Tensor,
    anchors: Tensor,
    *,
    tangential: float = 1.0,
    separation: float = 0.0,
    separation_sign: str = "repel",
    jacobian: str = "tangent",
    eps: float = 1e-12,
) -> SphereNormalized:
    """`sphere_normalize` with the nearest anchor of each row and its cosine.

    Returns:
        SphereNormalized. The cosine is <y, n>, for rows below eps shorter than a cosine; 0 for a row of zeros.

    Arguments and errors: those of `sphere_normalize`; the anchors are needed.
    Gradient: of y, as in `sphere_normalize`; `nearest` and `cosine` have none.
    """
    if anchors is None:
        raise ValueError("tangent_projection: expected anchors of shape [A, D], got None")
    options = (tangential, separation, separation_sign, jacobian, eps)
    anchors = _checked(x, anchors, *options)
    if anchors.requires_grad and not x.requires_grad:
        anchors = anchors.detach()  # or y would claim to depend on them
    batch = x.shape[:-1]
    y, _, nearest, cosine = _call(x.reshape(math.prod(batch), x.shape[-1]), anchors, *options)
    return SphereNormalized(y.reshape(x.shape), nearest.reshape(batch), cosine.reshape(batch))


def _checked(x: Tensor, anchors: Tensor | None, *options: Any) -> Any:
    """The conditions of the op, as errors of the public functions; returns the anchors in the dtype of x."""
    if x.dtype not in FLOATING:
        check_floating("tangent_projection", "x", x)
    _check_options(ValueError, *options)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"tangent_projection: expected x of shape [..., D] with D >= 1, got {list(x.shape)}")
    if anchors is None:
        return None
    if anchors.dtype != x.dtype:
        if not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"tangent_projection: expected anchors of dtype {x.dtype} as x, got {anchors.dtype}"
            )
        check_floating("tangent_projection", "anchors", anchors)
        anchors = anchors.detach().to(x.dtype)
    if anchors.ndim != 2 or anchors.shape[0] == 0 or anchors.shape[1] != x.shape[-1]:
        raise ValueError(_anchor_shape(x, anchors))
    return anchors


def _anchor_shape(x: Tensor, anchors: Tensor) -> str:
    wanted = f"[A, {x.shape[-1]}] with A >= 1"
    return f"tangent_projection: expected anchors of shape {wanted}, got {list(anchors.shape)}"


def _check_options(
    error: type[Exception], tangential: float, separation: float, sign: str, jacobian: str, eps: float
) -> None:
    if sign not in SIGNS:
        check_choice("tangent_projection", "separation_sign", sign, SIGNS)
    if jacobian not in JACOBIANS:
        check_choice("tangent_projection", "jacobian", jacobian, JACOBIANS)
    if not LEAST_EPS <= eps < math.inf:
        raise error(f"tangent_projection: expected a finite eps >= {LEAST_EPS}, got {eps}")
    if not (-math.inf < tangential < math.inf and -math.inf < separation < math.inf):
        got = f"{tangential} and {separation}"
        raise error(f"tangent_projection: expected finite tangential and separation, got {got}")


_op = torch.ops.stratcore.tangent_projection.default
_backward_op = torch.ops.stratcore.tangent_projection_backward.default


@torch.library.register_fake("stratcore::tangent_projection")
def _fake(x: Tensor, anchors: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    check_floating("tangent_projection", "x", x)
    if x.ndim != 2:
        raise RuntimeError(f"tangent_projection: expected x with 2 dimensions, got {list(x.shape)}")
    if x.shape[1] == 0:
        raise RuntimeError(
            f"tangent_projection: expected x with at least one dimension a row, got {list(x.shape)}"
        )
    _check_options(RuntimeError, *options)
    if anchors is not None and (anchors.ndim != 2 or anchors.shape[1] != x.shape[1] or anchors.shape[0] == 0):
        raise RuntimeError(_anchor_shape(x, anchors))
    rows, compute = x.shape[0], torch.float64 if x.dtype == torch.float64 else torch.float32
    compared = 0 if anchors is None else rows
    return (
        x.new_empty(x.shape),
        x.new_empty((rows,), dtype=compute),
        x.new_empty((compared,), dtype=torch.int32),
        x.new_empty((compared,), dtype=compute),
    )


@torch.library.register_fake("stratcore::tangent_projection_backward")
def _fake_backward(grad_y: Tensor, x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, anchors, *options = inputs
    _, norm, nearest, cosine = output
    ctx.mark_non_differentiable(norm, nearest, cosine)
    ctx.set_materialize_grads(False)
    # The gradient is that of the anchors of the forward: saved, so that a change in place is an error.
    saved = (x, norm, nearest) if anchors is None or options[1] == 0 else (x, norm, nearest, anchors)
    ctx.save_for_backward(*saved)
    if forward_mode_active():
        ctx.save_for_forward(*saved)
    ctx.options = options


def _linear(ctx: Any, grad: Tensor) -> Tensor:
    """By the kernel; where a derivative of it may follow, by the same formulas in torch operations."""
    x, norm, nearest, *rest = ctx.saved_tensors
    anchors = rest[0] if rest else None
    if torch.is_grad_enabled():
        return _surrogate(grad, x, anchors, nearest, *ctx.options)
    return _backward_op(grad, x, anchors, norm, nearest, *ctx.options)


def _gradient(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple:
    if grad_y is None or not ctx.needs_input_grad[0]:
        return (None,) * 7
    return _linear(ctx, grad_y), None, None, None, None, None, None


def _tangent(ctx: Any, tangent: Tensor | None, *_: Any) -> tuple:
    """Without separation the map from dL/dy to dL/dx is linear and symmetric: it is its own transpose."""
    if tangent is None:
        return (None,) * 4
    if len(ctx.saved_tensors) > 3:
        raise RuntimeError("tangent_projection: expected separation 0 in forward mode")
    return _linear(ctx, tangent), None, None, None


_call = differentiable(_op, setup_context=_save, backward=_gradient, jvp=_tangent)


def _surrogate(
    grad_y: Tensor,
    x: Tensor,
    anchors: Tensor | None,
    nearest: Tensor,
    tangential: float,
    separation: float,
    separation_sign: str,
    jacobian: str,
    eps: float,
) -> Tensor:
    """The backward in differentiable operations, with the nearest anchors that the kernel found."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    g, wide = grad_y.to(dtype), x.to(dtype)
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    radius = norm.clamp_min(eps)
    y = wide / radius
    g = g - tangential * (g * y).sum(-1, keepdim=True) * y
    if anchors is not None and separation != 0:
        chosen = anchors.detach()[nearest.long()].to(dtype)
        length = torch.linalg.vector_norm(chosen, dim=-1, keepdim=True)
        n = chosen / torch.where(length == 0, 1.0, length)
        if separation_sign == "repel":
            g = g + separation * (n - (n * y).sum(-1, keepdim=True) * y)
        else:
            g = g - separation * (g * n).sum(-1, keepdim=True).relu() * n
    if jacobian == "normalize":
        g = torch.where(norm > eps, g - (g * y).sum(-1, keepdim=True) * y, g)
    return (g if jacobian == "identity" else g / radius).to(x.dtype)


@torch.library.register_vmap("stratcore::tangent_projection")
def _vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
    """Batched rows are rows; anchors of their own need a call each."""
    x, anchors, *options = args
    if in_dims[1] is not None:
        return one_by_one(_op)(info, in_dims, *args)
    x_VND = x.movedim(in_dims[0], 0)
    y, norm, nearest, cosine = _op(x_VND.flatten(0, 1), anchors, *options)
    split = [
        t.unflatten(0, x_VND.shape[:2])
        for t in ((y, norm) if anchors is None else (y, norm, nearest, cosine))
    ]
    if anchors is None:
        return (*split, nearest, cosine), (0, 0, None, None)
    return tuple(split), (0,) * 4


@torch.library.register_vmap("stratcore::tangent_projection_backward")
def _vmap_backward(info: Any, in_dims: tuple, *args: Any) -> tuple:
    grad_y, x, anchors, norm, nearest, *options = args
    if in_dims[2] is not None:
        return one_by_one(_backward_op)(info, in_dims, *args)
    g_VND, x_VND, norm_VN = (
        batch_in_front(t, d, info.batch_size)
        for t, d in ((grad_y, in_dims[0]), (x, in_dims[1]), (norm, in_dims[3]))
    )
    if anchors is not None:
        nearest = batch_in_front(nearest, in_dims[4], info.batch_size).flatten()
    rows = (t.flatten(0, 1) for t in (g_VND, x_VND))
    grad_x = _backward_op(*rows, anchors, norm_VN.flatten(), nearest, *options)
    return grad_x.unflatten(0, x_VND.shape[:2]), 0


@register_flop_formula(torch.ops.stratcore.tangent_projection)
def _flops(x: Sequence[int], anchors: Sequence[int] | None, *args: Any, **kwargs: Any) -> int:
    """Of the product of rows and anchors."""
    return 0 if anchors is None else 2 * x[0] * x[1] * anchors[0]


@register_flop_formula(torch.ops.stratcore.tangent_projection_backward)
def _backward_flops(*args: Any, **kwargs: Any) -> int:
    """No product: the nearest anchors are those of the forward."""
    return 0
