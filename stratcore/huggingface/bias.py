"""The slopes of one attention's toroidal bias, as a small module that lives on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from stratcore import ops
from stratcore.huggingface.settings import Torus


def initial_slopes(slopes: float | str | Sequence | Tensor, heads: int, torus: Torus) -> Tensor:
    """Slopes to start from.

    Args:
        slopes: what a step takes off a score: one number, one a head [H], one a head and axis [H, axes] where `torus`
            has `per_axis`, or 'alibi', a geometric sequence over the heads.
        heads: H, query heads.
        torus: whose slopes.

    Returns:
        float32 [H], or [H, axes] with `per_axis`.

    Raises:
        ValueError: another shape or name, a number that is not finite, or one that softplus does not reach.
    """
    if isinstance(slopes, str):
        if slopes != "alibi":
            raise ValueError(f"slopes: expected numbers or 'alibi', got {slopes!r}")
        slopes = ops.alibi_slopes(heads)
    values = torch.as_tensor(slopes).detach().to(torch.float32)
    shape = (heads, torus.axes) if torus.per_axis else (heads,)
    if torus.per_axis and values.shape == (heads,):
        values = values[:, None]
    elif values.ndim > 0 and values.shape != shape:
        raise ValueError(f"slopes: expected one number or shape {list(shape)}, got {list(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError("slopes: expected finite numbers")
    if torus.parameterization == "softplus" and not bool((values > 0).all()):
        raise ValueError(
            "slopes: parameterization 'softplus' expects positive slopes; 'linear' may start at 0, as the host"
        )
    return values.expand(shape).clone()


class ToroidalBias(nn.Module):
    """Slopes of one attention module, learnable unless the torus says 'fixed'.

        linear, fixed: slopes = raw_slopes        softplus: slopes = log(1 + exp(raw_slopes))

    Args:
        torus: the distance they multiply.
        slopes: to start from, [H] or [H, axes], in the unit of a score a step.

    Called without arguments it returns the slopes, [H] or [H, axes], in float32 or better. `raw_slopes` is a
    parameter of float32, or a buffer of the same name with 'fixed': host and adapter save it under one name.
    """

    raw_slopes: Tensor

    def __init__(self, torus: Torus, slopes: Tensor) -> None:
        super().__init__()
        self.torus = torus
        if torus.parameterization == "softplus":
            exact = slopes.double()
            slopes = (exact + torch.log(-torch.expm1(-exact))).to(slopes.dtype)
        if torus.parameterization == "fixed":
            self.register_buffer("raw_slopes", slopes)
        else:
            self.raw_slopes = nn.Parameter(slopes)

    def forward(self) -> Tensor:
        """Slopes, [H] or [H, axes]."""
        raw = self.raw_slopes.to(torch.promote_types(self.raw_slopes.dtype, torch.float32))
        return softplus(raw) if self.torus.parameterization == "softplus" else raw

    def extra_repr(self) -> str:
        """The torus and the number of heads."""
        return f"{self.torus}, heads={self.raw_slopes.shape[0]}"
