"""The one accuracy rule: as good as eager torch in the same dtype, both against float64."""

from __future__ import annotations

import torch
from torch import Tensor

# What one rounding of the result costs, per dtype; the floor for results that eager torch gets exactly.
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def relative_error(result: Tensor, exact: Tensor) -> float:
    difference = (result.double() - exact).norm()
    return float(difference / exact.norm().clamp_min(1e-300)) if exact.numel() else 0.0


def assert_as_accurate(result: Tensor, eager: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """error(result) <= factor * error(eager) + floor, as relative norms against `exact` in float64."""
    assert result.shape == exact.shape and result.dtype == eager.dtype
    assert torch.isfinite(result).all()
    error, bound = relative_error(result, exact), factor * relative_error(eager, exact) + FLOOR[result.dtype]
    assert error <= bound, f"relative error {error:.3g} > {bound:.3g}"
