"""The order of tokens on a torus, and slopes for its heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stratcore.ops._toroidal_attention_call import as_periods, check_periods


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of ALiBi, a geometric sequence: slopes[h] = 2^(-8 (h + 1) / heads).

    Args:
        heads: number of query heads, >= 1.

    Returns:
        float32 [heads] on the CPU, from 2^(-8 / heads) down to 2^-8.

    Raises:
        ValueError: no heads.

    Source: O. Press, N. Smith, M. Lewis, arXiv 2108.12409; there only for a power of two.
    """
    if heads < 1:
        raise ValueError(f"alibi_slopes: expected heads >= 1, got {heads}")
    exponents = -8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads
    return torch.exp2(exponents).float()


def lattice_order(
    lattice: int | Sequence[int], block: int | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """How tokens in block order stand in a row-major lattice, for compact tiles of scores on 2 and 3 axes.

    Args:
        lattice: 1 to 3 periods.
        block: sizes that divide them; None: row-major, the identity.

    Returns:
        order and inverse, int64 [sites] on the CPU. order[t] is the row-major site of token t, so that
        x[..., order, :] brings a row-major sequence into the order that `toroidal_attention` takes with this
        `block`, and y[..., inverse, :] brings its result back. One axis has row-major order whatever the block.

    Raises:
        ValueError: a lattice or block that does not fit.
    """
    periods = as_periods("lattice", lattice)
    sizes = periods if block is None else as_periods("block", block)
    check_periods("lattice_order", periods, sizes, ValueError)
    split = [part for period, size in zip(periods, sizes, strict=True) for part in (period // size, size)]
    axes = len(periods)
    outer_then_inner = [2 * axis for axis in range(axes)] + [2 * axis + 1 for axis in range(axes)]
    sites = torch.arange(math.prod(periods)).reshape(split).permute(outer_then_inner)
    order = sites.reshape(-1)
    return order, torch.argsort(order)
