"""Checks that all ops share, with one wording: the op, the argument, what was expected, what was got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{op}: expected {name} to be one of {', '.join(choices)}, got {value!r}")


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raises TypeError unless the ops compute with the tensor's dtype."""
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: expected {name} of dtype float64, float32, bfloat16 or float16, got {tensor.dtype}"
        )
