"""Top-k LISTA with hard routing: each row is coded by its own expert alone.

Legend: B rows, D input size, E experts, M atoms, T steps, G groups of R rows that share an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from stratcore.ops._autograd import transforms_active
from stratcore.ops._topk_lista_call import Call
from stratcore.ops._topk_lista_op import run


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
    codes_GRM = run(*call.arguments(dense=True, groups=(x_GRD, group_expert_G)))[0]
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
