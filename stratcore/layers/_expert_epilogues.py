"""What follows the two products of an expert: bias and activation; bias, weights and the sum over choices.

Each is defined in torch operations. On GPUs a kernel does it in one pass over memory, where those take four or more;
under torch.compile, which fuses them itself, and in second derivatives the definition is what runs.

Legend: T tokens, K choices of a token, R = K T rows sorted by expert, E experts, D channels.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

from stratcore.layers._expert_assignment import Assignment, blank, combine, dispatch, dispatch_choices

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def add_bias_and_activate(y_RD: Tensor, bias_ED: Tensor, to: Assignment, activation: str) -> Tensor:
    """act(y + b_e) of rows sorted by expert, [R, D], 0 for rows left out."""
    if _has_kernels(y_RD):
        return _BiasedActivation.apply(y_RD, bias_ED, to, activation)
    return ACTIVATIONS[activation](add_bias(y_RD, bias_ED, to))


def add_bias_and_mix(y_RD: Tensor, bias_ED: Tensor, weights_TK: Tensor, to: Assignment) -> Tensor:
    """sum_k w_tk (y + b_e) over the choices of each token, [T, D], without rows left out."""
    if _has_kernels(y_RD):
        return _BiasedMixture.apply(y_RD, bias_ED, weights_TK, to)
    weights_R1 = dispatch_choices(weights_TK, to).to(y_RD.dtype)
    return combine(add_bias(y_RD, bias_ED, to) * weights_R1, to, weights_TK.shape[0])


def add_bias(y_RD: Tensor, bias_ED: Tensor, to: Assignment) -> Tensor:
    """Rows y + b_e in the order of experts, 0 for rows left out, which a grouped product leaves uninitialized."""
    # As a product the bias has a gradient without atomic additions.
    y_RD = torch.addmm(y_RD, _one_hot(to, bias_ED), bias_ED)
    return blank(y_RD, to.kept_R)


def _one_hot(to: Assignment, bias_ED: Tensor) -> Tensor:
    experts_E = torch.arange(bias_ED.shape[0], device=bias_ED.device)
    return (to.expert_R[:, None] == experts_E).to(bias_ED.dtype)


def _has_kernels(y_RD: Tensor) -> bool:
    return y_RD.is_cuda and not torch.compiler.is_compiling() and _HAS_TRITON and _kernels_run(y_RD.device)


@cache
def _kernels_run(device: torch.device) -> bool:
    """One small launch: Triton needs a C compiler, which not every machine has, and knows not every GPU."""
    try:
        from stratcore.layers import _expert_kernels as kernels

        rows_RD, end_E = torch.ones(1, 8, device=device), torch.ones(1, dtype=torch.int32, device=device)
        kernels.activate(rows_RD, rows_RD, end_E, "relu")
    except Exception as reason:  # whatever it is, the definition gives the same result
        warnings.warn(
            f"layers with experts run without their kernels on {device}, slower: {reason}", stacklevel=2
        )
        return False
    return True


class _BiasedActivation(torch.autograd.Function):
    """Saves what the activation's own gradient needs: of 'relu' the result, of 'gelu' its argument less the bias."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, bias_ED: Tensor, to: Assignment, activation: str) -> Tensor:
        from stratcore.layers import _expert_kernels as kernels

        result_RD = kernels.activate(y_RD, bias_ED, to.ends_E, activation)
        ctx.save_for_backward(result_RD if activation == "relu" else y_RD, bias_ED)
        ctx.to, ctx.activation = to, activation
        return result_RD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        saved_RD, bias_ED = ctx.saved_tensors
        to, grad_RD = ctx.to, grads[0]
        if torch.is_grad_enabled():
            if ctx.activation == "relu":
                grad_RD = torch.ops.aten.threshold_backward(grad_RD, saved_RD, 0)
            else:
                grad_RD = torch.ops.aten.gelu_backward(grad_RD, add_bias(saved_RD, bias_ED, to))
            grad_RD = blank(grad_RD, to.kept_R)
            return grad_RD, _one_hot(to, bias_ED).mT @ grad_RD, None, None
        from stratcore.layers import _expert_kernels as kernels

        return (*kernels.activate_backward(grad_RD, saved_RD, bias_ED, to.ends_E, ctx.activation), None, None)


class _BiasedMixture(torch.autograd.Function):
    """The gradient of a row is its weight times its token's gradient: one gathering pass."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, bias_ED: Tensor, weights_TK: Tensor, to: Assignment) -> Tensor:
        from stratcore.layers import _expert_kernels as kernels

        ctx.save_for_backward(y_RD, bias_ED, weights_TK)
        ctx.to = to
        return kernels.mix(y_RD, bias_ED, weights_TK, to.inverse_R, to.expert_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        y_RD, bias_ED, weights_TK = ctx.saved_tensors
        to, grad_TD = ctx.to, grads[0]
        if torch.is_grad_enabled():
            grad_RD = dispatch(grad_TD, to)
            share_R = (grad_RD * add_bias(y_RD, bias_ED, to)).sum(-1)
            share_TK = share_R.index_select(0, to.inverse_R).view(weights_TK.mT.shape).mT
            grad_RD = grad_RD * dispatch_choices(weights_TK, to).to(y_RD.dtype)
            return grad_RD, _one_hot(to, bias_ED).mT @ grad_RD, share_TK.to(weights_TK.dtype), None
        from stratcore.layers import _expert_kernels as kernels

        return (*kernels.mix_backward(grad_TD, y_RD, bias_ED, weights_TK, to.order_R, to.ends_E), None)
