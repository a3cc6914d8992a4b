"""Rows of experts back to their tokens, weighted and summed, in one pass over memory.

Legend: T tokens, K choices of a token, R = K T rows sorted by expert, E experts, D output size.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stratcore.layers._expert_rows import combine, dispatch

if TYPE_CHECKING:
    from stratcore.layers._expert_rows import Assignment

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    fused = y_RD.is_cuda and y_RD.dtype in FUSED_DTYPES and not torch.compiler.is_compiling()
    if fused and _has_triton():
        return _WeightedCombine.apply(y_RD, weights_TK, bias_ED, selected_TK, to)
    return _in_passes(y_RD, weights_TK, selected_TK, bias_ED, to)


def _in_passes(
    y_RD: Tensor, weights_TK: Tensor, selected_TK: Tensor, bias_ED: Tensor, to: Assignment
) -> Tensor:
    tokens, experts_E = weights_TK.shape[0], torch.arange(bias_ED.shape[0], device=y_RD.device)
    weights_R1 = dispatch(weights_TK.mT.flatten()[:, None], to)
    mixed_TD = combine(y_RD * weights_R1.to(y_RD.dtype), to, tokens)
    one_hot_RE = (to.expert_R[:, None] == experts_E).to(weights_R1.dtype)
    return mixed_TD + combine(weights_R1 * one_hot_RE, to, tokens).to(y_RD.dtype) @ bias_ED


class _WeightedCombine(torch.autograd.Function):
    """The same, in one kernel each way."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, selected_TK: Tensor, to: Assignment
    ) -> Tensor:
        from stratcore.layers import _expert_combine_kernels as kernels

        ctx.save_for_backward(y_RD, weights_TK, bias_ED, selected_TK)
        ctx.to = to
        return kernels.weighted_sum(y_RD, weights_TK, bias_ED, selected_TK, to.inverse_R, to.ends_E)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y_RD, weights_TK, bias_ED, selected_TK = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            mixed_TD = _in_passes(y_RD, weights_TK, selected_TK, bias_ED, ctx.to)
            inputs = [each for each in (y_RD, weights_TK, bias_ED) if each.requires_grad]
            found = iter(torch.autograd.grad(mixed_TD, inputs, grads[0], create_graph=True))
            wanted = (next(found) if each.requires_grad else None for each in (y_RD, weights_TK, bias_ED))
            return *wanted, None, None
        from stratcore.layers import _expert_combine_kernels as kernels

        grad_TD = grads[0].contiguous()
        grad_y, grad_weights, shares_TE = kernels.weighted_sum_backward(
            grad_TD, y_RD, weights_TK, bias_ED, selected_TK, ctx.to.inverse_R, ctx.to.ends_E
        )
        return grad_y, grad_weights.to(weights_TK.dtype), shares_TE.mT @ grad_TD, None, None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
