"""Triton kernels of `_expert_epilogues`; only imported for tensors on a GPU.

Rows are sorted by expert, so a program that works on rows of one expert holds that expert's bias in registers, and
the sums for its gradient too. Rows left out form one more segment behind the last expert's. Sums run over parts of a
segment in a fixed order: bitwise the same each time.

Legend: T tokens, K choices of a token, R = K T rows sorted by expert, E experts, D channels, P parts of a segment,
C blocks of channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS, BLOCK_COLUMNS = 16, 256
PART_ROWS = 128  # of a part when all segments are equally long


@triton.jit
def _part_of_segment(ends, expert, part, rows, experts, parts, BLOCK_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """First row of a part of an expert's segment, and the row behind its last one."""
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert, mask=expert < experts, other=rows)
    length = tl.cdiv(tl.cdiv(end - start, parts), BLOCK_ROWS) * BLOCK_ROWS
    low = tl.minimum(start + part * length, end)
    return low, tl.minimum(low + length, end)


@triton.jit
def _activate(  # type: ignore[no-untyped-def]
    y, bias, ends, result, rows, columns, experts, parts,
    GELU: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    segment, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert, part = segment // parts, segment % parts
    low, high = _part_of_segment(ends, expert, part, rows, experts, parts, BLOCK_ROWS)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    kept = expert < experts
    shift = tl.load(bias + expert * columns + column, mask=(column < columns) & kept, other=0).to(COMPUTE)
    for first in range(low, high, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        place = row.to(tl.int64)[:, None] * columns + column[None, :]
        inside = (row < high)[:, None] & (column < columns)[None, :]
        x = tl.load(y + place, mask=inside & kept, other=0).to(COMPUTE) + shift[None, :]
        if GELU:
            x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            x = tl.where(x <= 0, 0.0, x)
        tl.store(result + place, x.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _activate_backward(  # type: ignore[no-untyped-def]
    grad, saved, bias, ends, grad_y, grad_bias, rows, columns, experts, parts,
    GELU: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    segment, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert, part = segment // parts, segment % parts
    low, high = _part_of_segment(ends, expert, part, rows, experts, parts, BLOCK_ROWS)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    kept = expert < experts
    shift = tl.load(bias + expert * columns + column, mask=(column < columns) & kept, other=0).to(COMPUTE)
    total = tl.zeros([BLOCK_COLUMNS], COMPUTE)
    for first in range(low, high, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        place = row.to(tl.int64)[:, None] * columns + column[None, :]
        inside = (row < high)[:, None] & (column < columns)[None, :]
        g = tl.load(grad + place, mask=inside & kept, other=0).to(COMPUTE)
        x = tl.load(saved + place, mask=inside & kept, other=0).to(COMPUTE)
        if GELU:
            x += shift[None, :]
            density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
            g *= 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
        else:
            g = tl.where(x <= 0, 0.0, g)
        total += tl.sum(g, axis=0)
        tl.store(grad_y + place, g.to(grad_y.dtype.element_ty), mask=inside)
    tl.store(grad_bias + segment.to(tl.int64) * columns + column, total, mask=(column < columns) & kept)


@triton.jit
def _mix(  # type: ignore[no-untyped-def]
    y, bias, weights, inverse, experts_of_rows, result, tokens, columns, experts, choices,
    COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    token = (tl.program_id(0) // blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    real = token < tokens
    token = token.to(tl.int64)
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], COMPUTE)
    for choice in range(choices):
        row = tl.load(inverse + choice * tokens + token, mask=real, other=0)
        expert = tl.load(experts_of_rows + row, mask=real, other=experts)
        kept = expert < experts
        inside = kept[:, None] & (column < columns)[None, :]
        weight = tl.load(weights + token * choices + choice, mask=kept, other=0).to(COMPUTE)
        x = tl.load(y + row[:, None] * columns + column[None, :], mask=inside, other=0).to(COMPUTE)
        x += tl.load(bias + expert[:, None] * columns + column[None, :], mask=inside, other=0).to(COMPUTE)
        total += weight[:, None] * x
    place = token[:, None] * columns + column[None, :]
    tl.store(
        result + place, total.to(result.dtype.element_ty), mask=real[:, None] & (column < columns)[None, :]
    )


@triton.jit
def _mix_backward(  # type: ignore[no-untyped-def]
    grad, y, bias, weights, order, ends, grad_y, grad_bias, grad_weights,
    tokens, columns, experts, parts, choices,
    COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_COLUMNS)
    segment, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    expert, part = segment // parts, segment % parts
    rows = tokens * choices
    low, high = _part_of_segment(ends, expert, part, rows, experts, parts, BLOCK_ROWS)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    kept = expert < experts
    shift = tl.load(bias + expert * columns + column, mask=(column < columns) & kept, other=0).to(COMPUTE)
    total = tl.zeros([BLOCK_COLUMNS], COMPUTE)
    for first in range(low, high, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < high)[:, None] & (column < columns)[None, :]
        source = tl.load(order + row, mask=row < high, other=0)
        token, choice = source % tokens, source // tokens
        weight = tl.load(weights + token * choices + choice, mask=(row < high) & kept, other=0).to(COMPUTE)
        from_token = token[:, None] * columns + column[None, :]
        place = row.to(tl.int64)[:, None] * columns + column[None, :]
        g = tl.load(grad + from_token, mask=inside & kept, other=0).to(COMPUTE)
        x = tl.load(y + place, mask=inside & kept, other=0).to(COMPUTE) + shift[None, :]
        tl.store(grad_weights + block.to(tl.int64) * rows + source, tl.sum(g * x, axis=1), mask=row < high)
        g *= weight[:, None]
        total += tl.sum(g, axis=0)
        tl.store(grad_y + place, g.to(grad_y.dtype.element_ty), mask=inside)
    tl.store(grad_bias + segment.to(tl.int64) * columns + column, total, mask=(column < columns) & kept)


# ---- launchers


class _Launch:
    """Grid and types of a kernel over segments of rows [R, D]."""

    def __init__(self, y_RD: Tensor, experts: int) -> None:
        self.rows, self.columns = y_RD.shape
        self.experts = experts
        self.parts = max(1, self.rows // (experts * PART_ROWS))
        self.blocks = triton.cdiv(self.columns, BLOCK_COLUMNS)
        self.grid = ((experts + 1) * self.parts * self.blocks,)
        self.wide = y_RD.dtype == torch.float64
        self.sizes = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "COMPUTE": self.compute}

    @property
    def compute(self) -> Any:
        return tl.float64 if self.wide else tl.float32

    def sums(self, *shape: int, device: torch.device) -> Tensor:
        return torch.empty(shape, dtype=torch.float64 if self.wide else torch.float32, device=device)


def activate(y_RD: Tensor, bias_ED: Tensor, ends_E: Tensor, activation: str) -> Tensor:
    """act(y + b_e), 0 for rows left out."""
    y_RD, bias_ED = y_RD.contiguous(), bias_ED.contiguous()
    launch, result_RD = _Launch(y_RD, bias_ED.shape[0]), torch.empty_like(y_RD)
    with torch.cuda.device_of(y_RD):
        _activate[launch.grid](
            y_RD, bias_ED, ends_E, result_RD, *y_RD.shape, launch.experts, launch.parts,
            GELU=activation == "gelu", **launch.sizes,
        )  # fmt: skip
    return result_RD


def activate_backward(
    grad_RD: Tensor, saved_RD: Tensor, bias_ED: Tensor, ends_E: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of y and of the bias; saved is the result of 'relu', and y of 'gelu'."""
    grad_RD, saved_RD, bias_ED = grad_RD.contiguous(), saved_RD.contiguous(), bias_ED.contiguous()
    launch, grad_y_RD = _Launch(grad_RD, bias_ED.shape[0]), torch.empty_like(grad_RD)
    grad_bias_EPD = launch.sums(launch.experts, launch.parts, launch.columns, device=grad_RD.device)
    with torch.cuda.device_of(grad_RD):
        _activate_backward[launch.grid](
            grad_RD, saved_RD, bias_ED, ends_E, grad_y_RD, grad_bias_EPD, *grad_RD.shape, launch.experts,
            launch.parts, GELU=activation == "gelu", **launch.sizes,
        )  # fmt: skip
    return grad_y_RD, grad_bias_EPD.sum(1).to(bias_ED.dtype)


def mix(y_RD: Tensor, bias_ED: Tensor, weights_TK: Tensor, inverse_R: Tensor, expert_R: Tensor) -> Tensor:
    """sum_k w_tk (y + b_e), [T, D]."""
    y_RD, bias_ED, weights_TK = y_RD.contiguous(), bias_ED.contiguous(), weights_TK.contiguous()
    (tokens, choices), launch = weights_TK.shape, _Launch(y_RD, bias_ED.shape[0])
    result_TD = y_RD.new_empty(tokens, launch.columns)
    with torch.cuda.device_of(y_RD):
        _mix[(triton.cdiv(tokens, BLOCK_ROWS) * launch.blocks,)](
            y_RD, bias_ED, weights_TK, inverse_R, expert_R, result_TD, tokens, launch.columns, launch.experts,
            choices, **launch.sizes,
        )  # fmt: skip
    return result_TD


def mix_backward(
    grad_TD: Tensor, y_RD: Tensor, bias_ED: Tensor, weights_TK: Tensor, order_R: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, of the bias and of the weights."""
    grad_TD, y_RD = grad_TD.contiguous(), y_RD.contiguous()
    bias_ED, weights_TK = bias_ED.contiguous(), weights_TK.contiguous()
    (tokens, choices), launch = weights_TK.shape, _Launch(y_RD, bias_ED.shape[0])
    grad_y_RD, device = torch.empty_like(y_RD), y_RD.device
    grad_bias_EPD = launch.sums(launch.experts, launch.parts, launch.columns, device=device)
    grad_weights_CKT = launch.sums(launch.blocks, choices, tokens, device=device)
    with torch.cuda.device_of(y_RD):
        _mix_backward[launch.grid](
            grad_TD, y_RD, bias_ED, weights_TK, order_R, ends_E, grad_y_RD, grad_bias_EPD, grad_weights_CKT,
            tokens, launch.columns, launch.experts, launch.parts, choices, **launch.sizes,
        )  # fmt: skip
    grad_weights_TK = grad_weights_CKT.sum(0).mT.to(weights_TK.dtype)
    return grad_y_RD, grad_bias_EPD.sum(1).to(bias_ED.dtype), grad_weights_TK
