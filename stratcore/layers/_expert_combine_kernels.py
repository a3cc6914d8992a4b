"""Triton kernels of `weighted_combine`; imported where a GPU is used and Triton is installed.

One program a token: its K rows are read once, sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST_BLOCK = 1024


@triton.jit
def _forward(
    y, weights, bias, selected, inverse, ends, out, tokens, dim, experts, K: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < dim
    end = tl.load(ends + experts - 1)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        row = tl.load(inverse + k * tokens + token)
        expert = tl.load(selected + token * K + k)
        weight = tl.load(weights + token * K + k).to(tl.float32)
        kept = inside & (row < end)
        value = tl.load(y + row * dim + column, mask=kept, other=0.0).to(tl.float32)
        offset = tl.load(bias + expert * dim + column, mask=kept, other=0.0).to(tl.float32)
        total += weight * (value + offset)
    tl.store(out + token * dim + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad,
    y,
    weights,
    bias,
    selected,
    inverse,
    ends,
    grad_y,
    grad_weights,
    shares,
    tokens,
    dim,
    experts,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + experts - 1)
    for k in tl.static_range(K):
        row = tl.load(inverse + k * tokens + token)
        expert = tl.load(selected + token * K + k)
        weight = tl.where(row < end, tl.load(weights + token * K + k).to(tl.float32), 0.0)
        product = tl.zeros([BLOCK], tl.float32)
        for start in range(0, dim, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < dim
            kept = inside & (row < end)
            g = tl.load(grad + token * dim + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(y + row * dim + column, mask=kept, other=0.0).to(tl.float32)
            offset = tl.load(bias + expert * dim + column, mask=kept, other=0.0).to(tl.float32)
            product += tl.where(kept, g * (value + offset), 0.0)
            tl.store(grad_y + row * dim + column, (weight * g).to(grad_y.dtype.element_ty), mask=inside)
        tl.store(grad_weights + token * K + k, tl.sum(product, 0))
        tl.store(shares + token * experts + expert, weight.to(shares.dtype.element_ty))


def weighted_sum(
    y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, selected_TK: Tensor, inverse_R: Tensor, ends_E: Tensor
) -> Tensor:
    """sum_k w_tk (y + bias), [T, D], of y's dtype."""
    (tokens, choices), (experts, dim) = weights_TK.shape, bias_ED.shape
    out_TD = torch.empty(tokens, dim, dtype=y_RD.dtype, device=y_RD.device)
    block = min(triton.next_power_of_2(dim), WIDEST_BLOCK)
    with torch.cuda.device(y_RD.device):
        _forward[tokens, triton.cdiv(dim, block)](
            y_RD.contiguous(), weights_TK.contiguous(), bias_ED.contiguous(), selected_TK.contiguous(), inverse_R,
            ends_E, out_TD, tokens, dim, experts, K=choices, BLOCK=block,
        )  # fmt: skip
    return out_TD


def weighted_sum_backward(
    grad_TD: Tensor, y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, selected_TK: Tensor, inverse_R: Tensor,
    ends_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of rows [R, D], 0 for those left out, and of weights [T, K] in float32; shares [T, E] of experts."""
    (tokens, choices), (experts, dim) = weights_TK.shape, bias_ED.shape
    grad_y_RD = torch.empty_like(y_RD, memory_format=torch.contiguous_format)
    grad_weights_TK = torch.empty(tokens, choices, dtype=torch.float32, device=y_RD.device)
    shares_TE = torch.zeros(tokens, experts, dtype=y_RD.dtype, device=y_RD.device)
    block = min(triton.next_power_of_2(dim), WIDEST_BLOCK)
    with torch.cuda.device(y_RD.device):
        _backward[(tokens,)](
            grad_TD, y_RD.contiguous(), weights_TK.contiguous(), bias_ED.contiguous(), selected_TK.contiguous(),
            inverse_R, ends_E, grad_y_RD, grad_weights_TK, shares_TE, tokens, dim, experts, K=choices, BLOCK=block,
        )  # fmt: skip
    return grad_y_RD, grad_weights_TK, shares_TE
