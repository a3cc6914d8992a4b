"""Top-k LISTA with hard routing: each row is coded by its own expert alone.

Legend: B rows, D input size, E experts, M atoms, T steps, G groups of R rows that share an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import register_flop_formula

import stratcore.ops._library  # noqa: F401
from stratcore.ops._autograd import differentiable, transforms_active
from stratcore.ops._checks import check_choice, check_floating
from stratcore.ops._topk_lista_call import FORMS, Call, check_shapes
from stratcore.ops._topk_lista_replay import Replay


def topk_lista_routed(
    x: Tensor,
    expert: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    k: int | Sequence[int],
    *,
    num_steps: int,
    form: str = "classic",
    backward: str = "straight_through",
) -> Tensor:
    """Sparse codes of `x`, each row by the expert that a gate has chosen for it.

        z_b = topk_lista(x_b, W_e, S_e, theta_e, k_e),    e = expert_b

    Args:
        x: [..., D], float64, float32, bfloat16 or float16; any strides.
        expert: [...], int64 or int32, in [0, E): the expert of each row, in any order and as unevenly as may be.
        encoder: W [E, M, D], or [T + 1, E, M, D] for own weights a step.
        recurrent: classic S [E, M, M], coupled D [E, D, M]; or [T, E, ...].
        theta: threshold >= 0, [E, M]; or [T + 1, E, M].
        k: entries kept, one number or one an expert, in [1, M].
        num_steps: T >= 0, products with `recurrent`.
        form: 'classic' or 'coupled'.
        backward: 'straight_through' or 'masked'.

    Returns:
        Codes [..., M]; dtype and device of `x`.

    Raises:
        ValueError: a shape, k, form or backward that does not fit; on the CPU an expert outside [0, E). On a GPU
            such an expert stops the device, as any index out of range does.
        TypeError: not floating point, differing dtypes, or experts that are no integers.

    Gradient: that of `topk_lista`; an expert without rows gets zeros. Differentiable twice; no forward mode.
    Numerics: those of `topk_lista`. NaN stays in its row.
    Determinism: the same bits on every run. No look at the data from the host: fits a CUDA graph, and the shapes
    are those of the arguments.
    Cost: rows are sorted by expert and laid out in groups of R = 64 (1 + B // (256 E)) rows that share an expert, so
    at most E (R - 1) rows more than B are computed, and every group reads a copy of its expert's parameters.
    On a GPU at most 256 experts.
    """
    call = Call(x, (encoder, recurrent, theta), k, num_steps, form, backward, False, "auto")
    experts = call.parameters[0].shape[1]
    expert_B = _checked(expert, x, experts)
    slot_B, group_expert_G, rows = _layout(expert_B, experts)
    x_GRD = _to_slots(call.x[0], slot_B, group_expert_G.shape[0] * rows).unflatten(0, (-1, rows))
    inputs = (x_GRD, *call.parameters)
    learns = transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in inputs))
    save_support = learns and backward == "straight_through"
    codes_GRM = _call(*inputs, group_expert_G, call.k, form, num_steps, True, save_support)[0]
    return _from_slots(codes_GRM.flatten(0, 1), slot_B).reshape(*call.batch, codes_GRM.shape[-1])


def _checked(expert: Tensor, x: Tensor, experts: int) -> Tensor:
    if expert.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"topk_lista_routed: expected expert of dtype int64 or int32, got {expert.dtype}")
    if expert.shape != x.shape[:-1]:
        raise ValueError(
            f"topk_lista_routed: expected expert of shape {list(x.shape[:-1])}, one for each row of x, "
            f"got {list(expert.shape)}"
        )
    visible = expert.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_active()
    if visible and expert.numel() and not 0 <= int(expert.min()) <= int(expert.max()) < experts:
        raise ValueError(
            f"topk_lista_routed: expected experts in [0, {experts}), "
            f"got {int(expert.min())} to {int(expert.max())}"
        )
    return expert.reshape(-1).long()


# ---- rows in groups


def _layout(expert_B: Tensor, experts: int) -> tuple[Tensor, Tensor, int]:
    """Where each row goes: slots [B] in G groups of R slots, and the expert [G] of each group.

    Rows of one expert take consecutive slots, in their order, from the start of a group on. G is what the most
    uneven routing needs, so that it depends on B and E alone; groups that are left over hold no rows.
    """
    total, device = expert_B.shape[0], expert_B.device
    rows = 64 * (total // (256 * experts) + 1)
    groups = max(1, (total + experts * (rows - 1)) // rows)
    key_B = expert_B
    if experts < 2**15:  # a sort of few bits takes a quarter of the time
        key_B = expert_B.clamp(-1, experts).to(torch.int16)
    sorted_B, order_B = key_B.sort(stable=True)
    sorted_B = sorted_B.long()
    ends_E = torch.searchsorted(sorted_B, torch.arange(experts, device=device), right=True)
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    groups_E = (counts_E + rows - 1) // rows
    group_ends_E = groups_E.cumsum(0)
    shift_E = (group_ends_E - groups_E) * rows - (ends_E - counts_E)
    slots_B = torch.arange(total, device=device) + shift_E.index_select(0, sorted_B)
    expert_G = torch.searchsorted(
        group_ends_E, torch.arange(groups, device=device), right=True, out_int32=True
    )
    return torch.empty_like(slots_B).scatter(0, order_B, slots_B), expert_G.clamp_max(experts - 1), rows


def _to_slots(rows_BN: Tensor, slot_B: Tensor, slots: int) -> Tensor:
    """Rows at their slots, 0 elsewhere. Compile takes the plain operations: it knows no Function of ours."""
    function = _ToSlots.forward if torch.compiler.is_compiling() else _ToSlots.apply
    return function(rows_BN, slot_B, slots)


def _from_slots(slots_SN: Tensor, slot_B: Tensor) -> Tensor:
    function = _FromSlots.forward if torch.compiler.is_compiling() else _FromSlots.apply
    return function(slots_SN, slot_B)


class _ToSlots(Function):
    """Its gradient, as that of its transpose, is made by copying: slots are distinct, no atomic additions."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows_BN: Tensor, slot_B: Tensor, slots: int) -> Tensor:
        return rows_BN.new_zeros(slots, rows_BN.shape[1]).index_copy(0, slot_B, rows_BN)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _FromSlots.apply(grads[0], *ctx.saved_tensors), None, None


class _FromSlots(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(slots_SN: Tensor, slot_B: Tensor) -> Tensor:
        return slots_SN.index_select(0, slot_B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.slots = inputs[0].shape[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _ToSlots.apply(grads[0], *ctx.saved_tensors, ctx.slots), None


# ---- the op: groups of rows that share experts

_op = torch.ops.stratcore.topk_lista_grouped.default
_backward_op = torch.ops.stratcore.topk_lista_grouped_backward.default


def _check_groups(x: Tensor, group_expert: Tensor) -> None:
    if x.ndim != 3 or x.shape[0] < 1 or list(group_expert.shape) != [x.shape[0]]:
        raise RuntimeError(
            f"topk_lista: expected group_expert of shape [{x.shape[0]}] with at least one group, "
            f"got {list(group_expert.shape)}"
        )


@torch.library.register_fake("stratcore::topk_lista_grouped")
def _fake(
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    group_expert: Tensor,
    k: Sequence[int],
    form: str,
    num_steps: int,
    dense: bool,
    save_support: bool,
) -> tuple[Tensor, ...]:
    check_choice("topk_lista", "form", form, FORMS)
    check_floating("topk_lista", "x", x)
    _check_groups(x, group_expert)
    check_shapes(x[:1], encoder, recurrent, theta, k, form, num_steps, RuntimeError)
    code = (*x.shape[:2], encoder.shape[2])
    slots = (num_steps + 1, *code[:2], max(k))
    return (
        x.new_empty(code if dense else (0,)),
        x.new_empty(slots),
        x.new_empty(slots, dtype=torch.int32),
        x.new_empty((num_steps + 1, *code) if save_support else (0,), dtype=torch.int8),
    )


@torch.library.register_fake("stratcore::topk_lista_grouped_backward")
def _fake_backward(
    grad_codes: Tensor | None,
    grad_values: Tensor | None,
    x: Tensor,
    encoder: Tensor,
    recurrent: Tensor,
    theta: Tensor,
    group_expert: Tensor,
    values: Tensor,
    indices: Tensor,
    support: Tensor,
    k: Sequence[int],
    form: str,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return tuple(
        x.new_empty(t.shape if need else (0,))
        for t, need in zip((x, encoder, recurrent, theta), needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, values, indices, support = output
    ctx.mark_non_differentiable(indices, support)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], values, indices, support)
    ctx.k, ctx.form = list(inputs[5]), inputs[6]


def _gradient(ctx: Any, grad_codes: Tensor | None, grad_values: Tensor | None, *_: Any) -> tuple:
    """First order by the kernel; where a second may follow, by the same formulas in torch operations."""
    x, encoder, recurrent, theta, group_expert, values, indices, support = ctx.saved_tensors
    if grad_codes is None and grad_values is None:
        return (None,) * 10
    needs = ctx.needs_input_grad[:4]
    if grad_codes is not None and grad_codes.ndim == 1:  # the dense code was not asked for
        grad_codes = None
    if torch.is_grad_enabled():
        chosen_G = group_expert.long()
        parameters = (encoder, recurrent, theta)
        encoder_G, recurrent_G, theta_G = (p.index_select(1, chosen_G) for p in parameters)
        k_G = torch.tensor(ctx.k, device=x.device).index_select(0, chosen_G)
        replay = Replay(x, encoder_G, recurrent_G, theta_G, indices, support, k_G, ctx.form)
        grad_x, *by_group = replay.gradients(grad_codes, grad_values)
        folded = (
            torch.zeros_like(p).index_add(1, chosen_G, g) for p, g in zip(parameters, by_group, strict=True)
        )
        grads = (grad_x, *folded)
    else:
        grads = _backward_op(
            grad_codes,
            grad_values,
            x,
            encoder,
            recurrent,
            theta,
            group_expert,
            values,
            indices,
            support,
            ctx.k,
            ctx.form,
            *needs,
        )
    return (*(grad if need else None for grad, need in zip(grads, needs, strict=True)), *(None,) * 6)


_call = differentiable(_op, setup_context=_save, backward=_gradient)

torch.library.register_autocast("stratcore::topk_lista_grouped", "cpu", torch.float32)
torch.library.register_autocast("stratcore::topk_lista_grouped", "cuda", torch.float32)


def _product_flops(x: Sequence[int], encoder: Sequence[int], form: str, steps: int) -> int:
    rows, atoms, dim = x[0] * x[1], encoder[2], encoder[3]
    if form == "coupled":
        return 2 * rows * atoms * dim * (1 + 2 * steps)
    return 2 * rows * atoms * (dim * (steps + 1 if encoder[0] > 1 else 1) + atoms * steps)


@register_flop_formula(torch.ops.stratcore.topk_lista_grouped)
def _flops(
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    group_expert: Sequence[int],
    k: Sequence[int],
    form: str,
    num_steps: int,
    *args: Any,
    **kwargs: Any,
) -> int:
    return _product_flops(x, encoder, form, num_steps)


@register_flop_formula(torch.ops.stratcore.topk_lista_grouped_backward)
def _backward_flops(
    grad_codes: Any,
    grad_values: Any,
    x: Sequence[int],
    encoder: Sequence[int],
    recurrent: Sequence[int],
    theta: Sequence[int],
    group_expert: Sequence[int],
    values: Sequence[int],
    indices: Sequence[int],
    support: Sequence[int],
    k: Sequence[int],
    form: str,
    need_x: bool,
    need_encoder: bool,
    need_recurrent: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    return _product_flops(x, encoder, form, values[0] - 1) * (1 + int(need_encoder or need_recurrent))
