"""Who goes to which expert, there and back.

Legend: T tokens, K choices of a token, R = K T rows (choice-major: all first choices come first), E experts,
D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Rows sorted by expert; those that are left out (pads, overflow) come last.

    order, inverse: int64 [R], the sorting permutation of choice-major rows and its inverse. token: int64 [R], whose
    row it is. expert: int64 [R], sorted, E for rows left out. ends: int32 [E], where each expert's segment ends.
    kept: bool [R], false for rows left out, or None when there are none. longest: an upper bound of a segment's
    length that needs no look at the data.
    """

    order_R: Tensor
    token_R: Tensor
    inverse_R: Tensor
    expert_R: Tensor
    ends_E: Tensor
    kept_R: Tensor | None
    longest: int


def assign(
    selected_TK: Tensor, num_experts: int, mask_T: Tensor | None, capacity_factor: float | None
) -> Assignment:
    """Sorts the choices of tokens by expert.

    With a capacity factor c an expert takes at most ceil(c K T / E) rows, T the real tokens: first choices before
    second ones, earlier tokens before later ones. The sort is stable, so the result is unique.
    """
    tokens, choices = selected_TK.shape
    expert_R = selected_TK.mT.flatten()
    if mask_T is not None:
        expert_R = torch.where(mask_T.repeat(choices), expert_R, num_experts)
    expert_R, order_R = _sort(expert_R, num_experts)
    positions_R = torch.arange(order_R.numel(), device=order_R.device)
    longest = tokens
    if capacity_factor is not None:
        rate = capacity_factor * choices / num_experts
        longest = min(tokens, math.ceil(rate * tokens))
        capacity = longest if mask_T is None else (rate * mask_T.sum().double()).ceil()
        experts = torch.arange(num_experts + 1, device=order_R.device)
        starts_R = torch.searchsorted(expert_R, experts).index_select(0, expert_R)
        expert_R = torch.where(positions_R - starts_R < capacity, expert_R, num_experts)
        expert_R, again_R = _sort(expert_R, num_experts)
        order_R = order_R.index_select(0, again_R)
    everybody = mask_T is None and capacity_factor is None
    return Assignment(
        order_R=order_R,
        token_R=order_R if choices == 1 else order_R % tokens,
        inverse_R=torch.empty_like(order_R).scatter_(0, order_R, positions_R),
        expert_R=expert_R,
        ends_E=torch.searchsorted(
            expert_R, torch.arange(num_experts, device=order_R.device), right=True, out_int32=True
        ),
        kept_R=None if everybody else expert_R < num_experts,
        longest=longest,
    )


def within_capacity(
    selected_TK: Tensor, num_experts: int, mask_T: Tensor | None, capacity_factor: float
) -> Tensor:
    """Which choices of real tokens `assign` keeps, bool [T, K], by counting instead of sorting: R E operations."""
    tokens, choices = selected_TK.shape
    chosen_RE = selected_TK.mT.flatten()[:, None] == torch.arange(num_experts, device=selected_TK.device)
    rate = capacity_factor * choices / num_experts
    capacity: float | Tensor = math.ceil(rate * tokens)
    if mask_T is not None:
        chosen_RE = chosen_RE & mask_T.repeat(choices)[:, None]
        # ONNX would round a Python number to float32.
        capacity = (torch.tensor(rate, dtype=torch.float64, device=mask_T.device) * mask_T.sum()).ceil()
    kept_RE = chosen_RE & (chosen_RE.long().cumsum(0) <= capacity)
    return kept_RE.any(-1).unflatten(0, (choices, tokens)).mT


def _sort(expert_R: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Sorted experts and the permutation, stable. On GPUs a radix sort takes a pass for every byte of a key."""
    key = next(k for k in (torch.uint8, torch.int16, torch.int64) if num_experts <= torch.iinfo(k).max)
    sorted_R, order_R = expert_R.to(key).sort(stable=True)
    return sorted_R.long(), order_R


# ---- there and back: each is the transpose of the other


class _Dispatch(torch.autograd.Function):
    """Rows of x in the order of experts, sorted_r = x[source_r], 0 for rows left out."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, source_R: Tensor, inverse_R: Tensor, kept_R: Tensor | None) -> Tensor:
        ctx.save_for_backward(source_R, inverse_R, kept_R)
        ctx.tokens = x_TD.shape[0]
        return blank(_take_rows(x_TD, source_R), kept_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Combine.apply(grads[0], *ctx.saved_tensors, ctx.tokens), None, None, None


class _Combine(torch.autograd.Function):
    """Sum of a token's rows over its choices. By gathering, not by atomic additions: fast and deterministic."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, source_R: Tensor, inverse_R: Tensor, kept_R: Tensor | None, tokens: int
    ) -> Tensor:
        ctx.save_for_backward(source_R, inverse_R, kept_R)
        rows_RD = _take_rows(blank(y_RD, kept_R), inverse_R)
        return rows_RD if rows_RD.shape[0] == tokens else rows_RD.unflatten(0, (-1, tokens)).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _Dispatch.apply(grads[0], *ctx.saved_tensors), None, None, None, None


def _take_rows(x_RD: Tensor, source_R: Tensor) -> Tensor:
    """Rows x[source], on GPUs copied in pieces of 16 bytes, whatever the size of an element."""
    wide = torch.complex128
    if x_RD.is_cuda and not torch.compiler.is_compiling() and _has_pieces(x_RD, wide.itemsize):
        return x_RD.view(wide).index_select(0, source_R).view(x_RD.dtype)
    return x_RD.index_select(0, source_R)


def _has_pieces(x_RD: Tensor, size: int) -> bool:
    bytes_of_row, start = x_RD.shape[-1] * x_RD.itemsize, x_RD.storage_offset() * x_RD.itemsize
    return x_RD.is_contiguous() and bytes_of_row % size == 0 and start % size == 0


def blank(rows_RD: Tensor, kept_R: Tensor | None) -> Tensor:
    """Rows left out as 0, whatever stands there."""
    return rows_RD if kept_R is None else rows_RD.masked_fill(~kept_R[:, None], 0.0)


def dispatch(x_TD: Tensor, to: Assignment) -> Tensor:
    """Rows [R, D] sorted by expert, from tokens [T, D]."""
    return _Dispatch.apply(x_TD, to.token_R, to.inverse_R, to.kept_R)


def dispatch_choices(x_TK: Tensor, to: Assignment) -> Tensor:
    """One number a choice, [T, K], as a column [R, 1] sorted by expert."""
    return _Dispatch.apply(x_TK.mT.flatten()[:, None], to.order_R, to.inverse_R, to.kept_R)


def combine(y_RD: Tensor, to: Assignment, tokens: int) -> Tensor:
    """Sums [T, D] over the choices of each token, from rows sorted by expert."""
    return _Combine.apply(y_RD, to.token_R, to.inverse_R, to.kept_R, tokens)
