"""The op behind `topk_lista` and `topk_lista_routed`: fakes, gradient, vmap, autocast, FLOPs.

Rows of several experts come in one of two layouts: all of them to every expert, or, with `group_expert`, in groups
that have an expert each. Legend: E experts, B rows, D input size, M atoms, T steps, G groups of R rows, V vmapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable
from stratcore.ops._checks import check_choice, check_floating
from stratcore.ops._topk_lista_call import FORMS, REGIMES, check_shapes
from stratcore.ops._topk_lista_replay import Replay

_op = torch.ops.stratcore.topk_lista.default
_backward_op = torch.ops.stratcore.topk_lista_backward.default


def _check_groups(x: Tensor, group_expert: Tensor) -> None:
    if x.ndim != 3 or x.shape[0] < 1 or list(group_expert.shape) != [x.shape[0]]:
        raise RuntimeError(
            f"topk_lista: expected group_expert of shape [{x.shape[0]}] with at least one group, "
            f"got {list(group_expert.shape)}"
        )


@torch.library.register_fake("stratcore::topk_lista")
def _fake(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: Sequence[int],
    form: str,
    num_steps: int,
    dense: bool,
    save_support: bool,
    regime: str = "auto",
    group_expert: Tensor | None = None,
) -> tuple[Tensor, ...]:
    check_choice("topk_lista", "form", form, FORMS)
    check_choice("topk_lista", "regime", regime, REGIMES)
    check_floating("topk_lista", "x", x)
    if group_expert is not None:
        _check_groups(x, group_expert)
    shared = x if group_expert is None else x[:1]
    check_shapes(shared, encoder, recurrent, theta, k, form, num_steps, RuntimeError)
    leading = encoder.shape[1] if group_expert is None else x.shape[0]
    code = (leading, x.shape[1], encoder.shape[2])
    slots = (num_steps + 1, *code[:2], max(k))
    return (
        x.new_empty(code if dense else (0,)),
        x.new_empty(slots),
        x.new_empty(slots, dtype=torch.int32),
        x.new_empty((num_steps + 1, *code) if save_support else (0,), dtype=torch.int8),
    )


@torch.library.register_fake("stratcore::topk_lista_backward")
def _fake_backward(
    grad_codes: Tensor | None,
    grad_values: Tensor | None,
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    values: Tensor,
    indices: Tensor,
    support: Tensor,
    k: Sequence[int],
    form: str,
    need_x: bool,
    need_encoder: bool,
    need_recurrent: bool,
    need_theta: bool,
    regime: str = "auto",
    group_expert: Tensor | None = None,
) -> tuple[Tensor, ...]:
    needs = need_x, need_encoder, need_recurrent, need_theta
    return tuple(
        x.new_empty(t.shape if need else (0,))
        for t, need in zip((x, encoder, recurrent, theta), needs, strict=True)
    )


# ---- gradient


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, encoder, recurrent, theta, k, form, _, _, _, regime, group_expert = inputs
    _, values, indices, support = output
    ctx.mark_non_differentiable(indices, support)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, encoder, recurrent, theta, values, indices, support, group_expert)
    ctx.k, ctx.form, ctx.regime = list(k), form, regime


def _gradient(ctx: Any, grad_codes: Tensor | None, grad_values: Tensor | None, *_: Any) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    *tensors, group_expert = ctx.saved_tensors
    if grad_codes is None and grad_values is None:
        return (None,) * 11
    needs = ctx.needs_input_grad[:4]
    if grad_codes is not None and grad_codes.ndim == 1:  # the dense code was not asked for
        grad_codes = None
    if torch.is_grad_enabled():
        grads = _replayed(tensors, group_expert, ctx.k, ctx.form, (grad_codes, grad_values))
    else:
        grads = _backward_op(
            grad_codes, grad_values, *tensors, ctx.k, ctx.form, *needs, ctx.regime, group_expert
        )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 7)


def _replayed(
    tensors: Sequence[Tensor], group_expert: Tensor | None, k: list[int], form: str, grads: tuple
) -> tuple[Tensor, ...]:
    """Gradients in differentiable operations; those of the groups of an expert are added up."""
    x, encoder, recurrent, theta, _, indices, support = tensors
    parameters = (encoder, recurrent, theta)
    if group_expert is None:
        return Replay(x, *parameters, indices, support, k, form).gradients(*grads)
    chosen_G = group_expert.long()
    k_G = torch.tensor(k, device=x.device).index_select(0, chosen_G)
    encoder_G, recurrent_G, theta_G = (p.index_select(1, chosen_G) for p in parameters)
    replay = Replay(x, encoder_G, recurrent_G, theta_G, indices, support, k_G, form)
    grad_x, *grads_by_group = replay.gradients(*grads)
    folded = (
        torch.zeros_like(p).index_add(1, chosen_G, g) for p, g in zip(parameters, grads_by_group, strict=True)
    )
    return (grad_x, *folded)


run = differentiable(_op, setup_context=_save, backward=_gradient)


# ---- vmap and autocast


@torch.library.register_vmap("stratcore::topk_lista")
def _vmap(
    info: Any,
    in_dims: tuple,
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: Sequence[int],
    form: str,
    num_steps: int,
    dense: bool,
    save_support: bool,
    regime: str = "auto",
    group_expert: Tensor | None = None,
) -> tuple:
    """Batched inputs become rows, or groups of rows; batched parameters become experts."""
    size, experts = info.batch_size, len(k)
    parameters, widths = [encoder, recurrent, theta], list(k)
    options = form, num_steps, dense, save_support, regime
    own_parameters = any(dim is not None for dim in in_dims[1:4])
    if group_expert is None and not own_parameters:
        x_XVBD = x.movedim(in_dims[0], 1)
        outputs = _op(x_XVBD.flatten(1, 2), *parameters, widths, *options)
        return _split(outputs, -2, x_XVBD.shape[1:3], -3)
    if own_parameters:
        parameters = [_fold(t, d, 1, size) for t, d in zip(parameters, in_dims[1:4], strict=True)]
        widths = widths * size
    x_VXBD = _in_front(x, in_dims[0], 0, size)
    if group_expert is None:
        x_VXBD = x_VXBD.expand(-1, experts, -1, -1)
    else:
        group_expert_VG = _in_front(group_expert, in_dims[10], 0, size)
        if own_parameters:
            first_V = torch.arange(size, dtype=torch.int32, device=x.device) * experts
            group_expert_VG = group_expert_VG + first_V[:, None]
        group_expert = group_expert_VG.flatten()
    outputs = _op(x_VXBD.flatten(0, 1), *parameters, widths, *options, group_expert)
    return _split(outputs, -3, x_VXBD.shape[:2], -4)


def _in_front(tensor: Tensor, dim: int | None, axis: int, size: int) -> Tensor:
    """Batch axis (repeated where there is none) in front of `axis`."""
    if dim is not None:
        return tensor.movedim(dim, axis)
    return tensor.unsqueeze(axis).expand(*tensor.shape[:axis], size, *tensor.shape[axis:])


def _fold(tensor: Tensor, dim: int | None, axis: int, size: int) -> Tensor:
    """Batch axis and `axis` as one axis."""
    return _in_front(tensor, dim, axis, size).flatten(axis, axis + 1)


def _split(outputs: tuple, axis: int, shape: Sequence[int], batch_dim: int) -> tuple[tuple, tuple]:
    """Undoes the folding; outputs that were not asked for (one axis of size 0) have no batch."""
    split = tuple(t.unflatten(axis, shape) if t.ndim > 1 else t for t in outputs)
    return split, tuple(t.ndim + batch_dim if t.ndim > 1 else None for t in split)


torch.library.register_autocast("stratcore::topk_lista", "cpu", torch.float32)
torch.library.register_autocast("stratcore::topk_lista", "cuda", torch.float32)


# ---- FLOPs


def _product_flops(
    x: Sequence[int], encoder: Sequence[int], form: str, steps: int, group_expert: Sequence[int] | None
) -> int:
    """FLOPs of all matrix products of the forward; shapes in the op's layout."""
    _, experts, atoms, dim = encoder
    rows = x[1] * (experts if group_expert is None else x[0])
    if form == "coupled":
        return 2 * rows * atoms * dim * (1 + 2 * steps)
    encodes = steps + 1 if encoder[0] > 1 else 1
    return 2 * rows * atoms * (dim * encodes + atoms * steps)


@register_flop_formula(torch.ops.stratcore.topk_lista)
def _flops(
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    k: Sequence[int],
    form: str,
    num_steps: int,
    dense: bool,
    save_support: bool,
    regime: str = "auto",
    group_expert: Sequence[int] | None = None,
    **kwargs: Any,
) -> int:
    return _product_flops(x, encoder, form, num_steps, group_expert)


@register_flop_formula(torch.ops.stratcore.topk_lista_backward)
def _backward_flops(
    grad_codes: Any,
    grad_values: Any,
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    values: Sequence[int],
    indices: Sequence[int],
    support: Sequence[int],
    k: Sequence[int],
    form: str,
    need_x: bool,
    need_encoder: bool,
    need_recurrent: bool,
    need_theta: bool,
    regime: str = "auto",
    group_expert: Sequence[int] | None = None,
    **kwargs: Any,
) -> int:
    forward = _product_flops(x, encoder, form, values[0] - 1, group_expert)
    return forward * (1 + int(need_encoder or need_recurrent))
