"""Parts of the vmap rules of several ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def batch_in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The batch of vmap as first axis, repeated where there is none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def one_by_one(op: Any) -> Any:
    """A vmap rule that calls the op for every element of the batch, where no larger call computes the same."""

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        results = [
            op(
                *(
                    a.select(dim, i) if isinstance(dim, int) else a
                    for a, dim in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule
