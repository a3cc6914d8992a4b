"""Rows of tokens to their experts and back, each in one pass over memory where Triton is at hand.

Legend: T tokens, K choices of a token, R = K T rows sorted by expert, E experts, D size of a row.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stratcore.layers._expert_rows import Assignment, combine, dispatch

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONES = 8  # columns that `dispatch_with_ones` adds: one of them is 1


def dispatch_with_ones(x_TD: Tensor, to: Assignment) -> Tensor:
    """Rows sorted by expert, [R, D + 8]: a column of ones, for a bias, and seven of zeros.

    Zeros, since strides have to be multiples of 16 bytes. Rows left out are 0. Gradient: of x; twice.
    """
    if _fused(x_TD):
        return _DispatchWithOnes.apply(x_TD, to)
    return dispatch(torch.cat((x_TD, pad(x_TD.new_ones(x_TD.shape[0], 1), (0, ONES - 1))), -1), to)


def weighted_combine(
    y_RD: Tensor, weights_TK: Tensor, selected_TK: Tensor, bias_ED: Tensor, to: Assignment
) -> Tensor:
    """sum_k w_tk (y_r(t,k) + bias_e(t,k)), [T, D], over the choices of a token that were kept.

    Args:
        y_RD: rows sorted by expert; what those left out hold does not count.
        weights_TK: of the choices.
        selected_TK: int64, expert of each choice.
        bias_ED: of each expert, of y's dtype.
        to: how rows were sorted.

    Gradient: of rows, weights and bias; twice. Determinism: bitwise.
    """
    if _fused(y_RD):
        return _WeightedCombine.apply(y_RD, weights_TK, bias_ED, selected_TK, to)
    return combine_in_passes(y_RD, weights_TK, bias_ED, to)


def combine_in_passes(y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, to: Assignment) -> Tensor:
    """`weighted_combine` in operations of torch."""
    tokens, experts_E = weights_TK.shape[0], torch.arange(bias_ED.shape[0], device=y_RD.device)
    weights_R1 = dispatch(weights_TK.mT.flatten()[:, None], to)
    mixed_TD = combine(y_RD * weights_R1.to(y_RD.dtype), to, tokens)
    one_hot_RE = (to.expert_R[:, None] == experts_E).to(weights_R1.dtype)
    return mixed_TD + combine(weights_R1 * one_hot_RE, to, tokens).to(y_RD.dtype) @ bias_ED


class _DispatchWithOnes(torch.autograd.Function):
    """One kernel each way."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, to: Assignment) -> Tensor:
        from stratcore.layers import _expert_kernels as kernels

        ctx.to, ctx.shape = to, x_TD.shape
        return kernels.gather_with_ones(x_TD, to.order_R, to.ends_E, ONES)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        tokens, dim = ctx.shape
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            return combine(grads[0][:, :dim], ctx.to, tokens), None
        from stratcore.layers import _expert_kernels as kernels

        return kernels.sum_of_choices(grads[0], ctx.to.inverse_R, ctx.to.ends_E, tokens, dim), None


class _WeightedCombine(torch.autograd.Function):
    """One kernel each way."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, selected_TK: Tensor, to: Assignment
    ) -> Tensor:
        from stratcore.layers import _expert_kernels as kernels

        ctx.save_for_backward(y_RD, weights_TK, bias_ED, selected_TK)
        ctx.to = to
        return kernels.weighted_sum(y_RD, weights_TK, bias_ED, selected_TK, to.inverse_R, to.ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_RD, weights_TK, bias_ED, selected_TK = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            mixed_TD = combine_in_passes(y_RD, weights_TK, bias_ED, ctx.to)
            inputs = [each for each in (y_RD, weights_TK, bias_ED) if each.requires_grad]
            found = iter(torch.autograd.grad(mixed_TD, inputs, grads[0], create_graph=True))
            wanted = (next(found) if each.requires_grad else None for each in (y_RD, weights_TK, bias_ED))
            return *wanted, None, None
        from stratcore.layers import _expert_kernels as kernels

        grad_TD = grads[0].contiguous()
        grad_y, grad_weights, shares_TE = kernels.weighted_sum_backward(
            grad_TD, y_RD, weights_TK, bias_ED, selected_TK, ctx.to.inverse_R, ctx.to.ends_E
        )
        return grad_y, grad_weights.to(weights_TK.dtype), shares_TE.mT @ grad_TD, None, None


def _fused(rows: Tensor) -> bool:
    return rows.is_cuda and rows.dtype in FUSED_DTYPES and not torch.compiler.is_compiling() and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
