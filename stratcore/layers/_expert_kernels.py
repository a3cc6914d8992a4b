"""Triton kernels of `_expert_exchange`; imported where a GPU is used and Triton is installed.

One program a row or a token, which it reads once; sums are in float32. Rows from ends[E - 1] on are left out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST_BLOCK = 1024


@triton.jit
def _gather_with_ones(
    x,
    order,
    ends,
    out,
    tokens,
    dim,
    width,
    experts,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = row < tl.load(ends + experts - 1)
    token = tl.load(order + row) % tokens
    value = tl.load(x + token * dim + column, mask=(column < dim) & kept, other=0.0)
    value = tl.where((column == dim) & kept, 1.0, value)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _sum_of_choices(
    rows, inverse, ends, out, tokens, dim, width, experts,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(ends + experts - 1)
    total = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        row = tl.load(inverse + k * tokens + token)
        total += tl.load(rows + row * width + column, mask=(column < dim) & (row < end), other=0.0).to(
            tl.float32
        )
    tl.store(out + token * dim + column, total.to(out.dtype.element_ty), mask=column < dim)


@triton.jit
def _weighted_sum(
    y, weights, bias, selected, inverse, ends, out, tokens, dim,
    experts, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
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
def _weighted_sum_backward(
    grad, y, weights, bias, selected, inverse, ends, grad_y,
    grad_weights, shares, tokens, dim, experts, K: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    end = tl.load(ends + experts - 1)
    for k in tl.static_range(K):
        row = tl.load(inverse + k * tokens + token)
        expert = tl.load(selected + token * K + k)
        weight = tl.where(row < end, tl.load(weights + token * K + k).to(tl.float32), 0.0)
        product = tl.zeros([BLOCK], tl.float32)
        for block in tl.static_range(BLOCKS):
            column = block * BLOCK + tl.arange(0, BLOCK)
            inside = column < dim
            kept = inside & (row < end)
            g = tl.load(grad + token * dim + column, mask=inside, other=0.0).to(tl.float32)
            value = tl.load(y + row * dim + column, mask=kept, other=0.0).to(tl.float32)
            offset = tl.load(bias + expert * dim + column, mask=kept, other=0.0).to(tl.float32)
            product += tl.where(kept, g * (value + offset), 0.0)
            tl.store(grad_y + row * dim + column, (weight * g).to(grad_y.dtype.element_ty), mask=inside)
        tl.store(grad_weights + token * K + k, tl.sum(product, 0))
        tl.store(shares + token * experts + expert, weight.to(shares.dtype.element_ty))


def gather_with_ones(x_TD: Tensor, order_R: Tensor, ends_E: Tensor, more: int) -> Tensor:
    """x[order mod T] with `more` columns, the first of them 1, the others 0; rows left out are 0."""
    (tokens, dim), rows = x_TD.shape, order_R.shape[0]
    out_RD = torch.empty(rows, dim + more, dtype=x_TD.dtype, device=x_TD.device)
    grid, block = _grid(rows, dim + more)
    with torch.cuda.device(x_TD.device):
        _gather_with_ones[grid](
            x_TD.contiguous(), order_R, ends_E, out_RD, tokens, dim, dim + more, ends_E.shape[0], BLOCK=block
        )
    return out_RD


def sum_of_choices(rows_RD: Tensor, inverse_R: Tensor, ends_E: Tensor, tokens: int, dim: int) -> Tensor:
    """sum_k of the first `dim` columns of a token's rows, [T, dim]."""
    out_TD = torch.empty(tokens, dim, dtype=rows_RD.dtype, device=rows_RD.device)
    (grid, block), rows_RD = _grid(tokens, dim), rows_RD.contiguous()
    with torch.cuda.device(rows_RD.device):
        _sum_of_choices[grid](
            rows_RD, inverse_R, ends_E, out_TD, tokens, dim, rows_RD.shape[1], ends_E.shape[0],
            K=inverse_R.shape[0] // tokens, BLOCK=block,
        )  # fmt: skip
    return out_TD


def weighted_sum(
    y_RD: Tensor, weights_TK: Tensor, bias_ED: Tensor, selected_TK: Tensor, inverse_R: Tensor, ends_E: Tensor
) -> Tensor:
    """sum_k w_tk (y + bias), [T, D], of y's dtype."""
    (tokens, choices), (experts, dim) = weights_TK.shape, bias_ED.shape
    out_TD = torch.empty(tokens, dim, dtype=y_RD.dtype, device=y_RD.device)
    grid, block = _grid(tokens, dim)
    with torch.cuda.device(y_RD.device):
        _weighted_sum[grid](
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
    (_, blocks), block = _grid(tokens, dim)
    with torch.cuda.device(y_RD.device):
        _weighted_sum_backward[(tokens,)](
            grad_TD, y_RD.contiguous(), weights_TK.contiguous(), bias_ED.contiguous(), selected_TK.contiguous(),
            inverse_R, ends_E, grad_y_RD, grad_weights_TK, shares_TE, tokens, dim, experts, K=choices, BLOCKS=blocks,
            BLOCK=block,
        )  # fmt: skip
    return grad_y_RD, grad_weights_TK, shares_TE


def _grid(rows: int, width: int) -> tuple[tuple[int, int], int]:
    """Programs, and columns of each: a power of two."""
    block = min(triton.next_power_of_2(width), WIDEST_BLOCK)
    return (rows, triton.cdiv(width, block)), block
