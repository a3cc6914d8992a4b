"""AdamW whose steps stay on the sphere where a group asks for it. Legend: A rows, O channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stratcore.layers.sphere import exponential_map, parallel_transport, project_tangent

SPHERE = "sphere"


class RiemannianAdam(torch.optim.AdamW):
    """AdamW, but for groups with `manifold` 'sphere': there Adam on the unit sphere, row by row.

    For a row x with gradient g: r = g - <x, g> x;  m' = b1 m + (1 - b1) r;  v' = b2 v + (1 - b2) |r|^2, one number;
    u = -lr m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + eps);  x goes along the geodesic of velocity u, and m' with it.
    A row turns by about lr radians a step at most, where Adam would move each of its coordinates by lr.

    Args:
        parameters: groups; `manifold`: 'sphere' or absent. Tensors of spheres are [..., O], rows of another
            length are scaled to 1; `weight_decay` has no meaning there and is left out.
        settings: those of `torch.optim.AdamW` with `fused`. `grad_scale` and `found_inf`, if set, are obeyed as
            there, without a look at the device: a skipped step leaves rows, moments and step counts as they were.

    Source: Becigneul and Ganea 2019, without their maximum over v.
    """

    def __init__(self, parameters: Any, **settings: Any) -> None:
        super().__init__(parameters, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps all groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group.get("manifold") != SPHERE]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("manifold") == SPHERE:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._turn(parameter, parameter.grad, group)
        return loss

    def _turn(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter[..., :1])
        scale: Tensor | None = getattr(self, "grad_scale", None)
        start = normalize(parameter, dim=-1)
        tangent = project_tangent(start, gradient if scale is None else gradient / scale)
        step = state["step"] + 1
        mean = beta1 * state["exp_avg"] + (1 - beta1) * tangent
        square = beta2 * state["exp_avg_sq"] + (1 - beta2) * tangent.square().sum(-1, keepdim=True)
        count = step.to(parameter.dtype)
        spread = (square / (1 - beta2**count)).sqrt() + group["eps"]
        velocity = -group["lr"] * (
            mean / ((1 - beta1**count) * spread)
        )  # the same bits for a tensor of that rate
        end = normalize(
            exponential_map(start, velocity), dim=-1
        )  # against the drift of rounding, as the next one
        mean = project_tangent(end, parallel_transport(start, end, mean))
        found: Tensor | None = getattr(self, "found_inf", None)
        for old, new in (
            (parameter, end),
            (state["step"], step),
            (state["exp_avg"], mean),
            (state["exp_avg_sq"], square),
        ):
            old.copy_(new if found is None else torch.where(found > 0, old, new))
