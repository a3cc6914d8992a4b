"""Optimizers and learning-rate schedules.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stratcore.training.riemannian_adam import RiemannianAdam

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """What steps the weights, and with which learning rate.

    Args:
        name: Update rule. `adam` adds `weight_decay` to the gradient, `adamw` decays the weights; `riemannian_adam`
            is `adamw` but for parameters which the task says lie on a sphere (anchors): these it turns along it.
        lr: Peak learning rate; a parameter group may carry its own `lr`.
        betas: Decay of Adam's first and second moment.
        weight_decay: Coefficient of the decay; a parameter group may carry its own.
        eps: Added to Adam's denominator.
        momentum: Momentum of `sgd`.
        warmup_steps: Steps of the linear rise: step t (from 0) has the factor (t + 1) / warmup_steps.
        schedule: Shape after the warm-up.
        final_lr_fraction: Where `cosine` and `linear` end, as a fraction of `lr`.
        step_size: Steps between two drops of the `step` schedule.
        gamma: Factor of each drop of the `step` schedule.
        clip_norm: Largest L2 norm of the whole gradient; None leaves it alone.

    Raises:
        ValueError: A value is out of its range.
    """

    name: Literal["adam", "adamw", "riemannian_adam", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    momentum: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "step", "linear"] = "constant"
    final_lr_fraction: float = 0.0
    step_size: int = 0
    gamma: float = 0.1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        names = ("adam", "adamw", "riemannian_adam", "sgd")
        schedules = ("constant", "cosine", "step", "linear")
        checks = [
            ("name", self.name in names, f"one of {', '.join(names)}"),
            ("lr", self.lr > 0 and math.isfinite(self.lr), "a finite number > 0"),
            ("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number >= 0"),
            ("eps", 0 < self.eps < math.inf, "a finite number > 0"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("warmup_steps", self.warmup_steps >= 0, "an integer >= 0"),
            ("schedule", self.schedule in schedules, f"one of {', '.join(schedules)}"),
            ("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "a number in [0, 1]"),
            (
                "step_size",
                self.step_size >= (1 if self.schedule == "step" else 0),
                "an integer >= 1 for schedule 'step'",
            ),
            ("gamma", 0 < self.gamma <= 1, "a number in (0, 1]"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "a number > 0 or None"),
        ]
        for key, holds, expected in checks:
            if not holds:
                raise ValueError(f"optimizer.{key}: expected {expected}, got {getattr(self, key)!r}")


def build_optimizer(
    groups: ParameterGroups, options: OptimizerOptions, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Build a fused optimizer over `groups`.

    Args:
        groups: Dictionaries with `params` and, where a group differs, `lr`, `weight_decay` or `lr_scale`, a
            factor on `options.lr`; `manifold` 'sphere' where rows are points on the unit sphere.
        options: The defaults of every group.
        capturable: Its step goes into a CUDA graph; learning rates are then tensors, and `initial_lr` of a group
            holds the number.

    Returns:
        The optimizer. It is always a fused one: only these can leave weights, moments and step counts
        untouched on a flag that stays on the device (`optimizer.found_inf`), and divide the gradient by a
        device scalar (`optimizer.grad_scale`), both without a host synchronization.

    Raises:
        ValueError: There is nothing to train, a trainable parameter is kept in half precision, or a rule other than
            Adam's is to be captured.
    """
    kept = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    kept = [group for group in kept if group["params"]]
    for group in kept:
        if "lr_scale" in group:
            group["lr"] = group.pop("lr_scale") * options.lr
    if not kept:
        raise ValueError("the task's parameter groups hold no parameter that requires a gradient")
    for group in kept:
        for parameter in group["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    "expected trainable parameters in float32 or float64 (`precision` sets the arithmetic), "
                    f"got {parameter.dtype} of shape {tuple(parameter.shape)}"
                )
    if options.name == "sgd":
        if capturable:
            raise ValueError("numerics.cuda_graph: expected False with optimizer.name 'sgd'")
        return _build_sgd(kept, options)
    if capturable:
        for group in kept:
            group["initial_lr"] = group.get("lr", options.lr)
            device = group["params"][0].device
            group["lr"] = torch.tensor(group["initial_lr"], dtype=torch.float32, device=device)
    settings: dict[str, Any] = {
        "lr": options.lr,
        "betas": options.betas,
        "eps": options.eps,
        "weight_decay": options.weight_decay,
        "capturable": capturable,
    }
    if options.name == "riemannian_adam":
        return RiemannianAdam(kept, **settings)
    rule = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return rule(kept, fused=True, **settings)


def _build_sgd(groups: ParameterGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
    )
    if options.momentum > 0:
        # The fused rule allocates its buffers uninitialized in the first step and fills them there; were that
        # step skipped, the next one would read garbage. From zeros, the first step gives the same values.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(options: OptimizerOptions, steps: int) -> Callable[[int], float]:
    """Build the learning-rate factor as a function of the step.

    With w = warmup_steps, T = steps, f = final_lr_fraction and p = (t - w) / (T - w):
    warm-up (t + 1) / w; cosine f + (1 - f) (1 + cos(pi p)) / 2; linear f + (1 - f) (1 - p);
    step gamma^floor((t - w) / step_size); constant 1.

    Args:
        options: Shape and its constants.
        steps: Length T of the stage; T itself, one past the last step, has the factor f.

    Returns:
        A function from the step t in 0..T-1 to a factor in [0, 1], to be multiplied with the group's `lr`.
    """
    warmup = options.warmup_steps
    floor = options.final_lr_fraction

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        if options.schedule == "cosine":
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
        if options.schedule == "linear":
            return floor + (1 - floor) * (1 - progress)
        if options.schedule == "step":
            return options.gamma ** ((step - warmup) // options.step_size)
        return 1.0

    return factor


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the gradients that the optimizer will read, in the order of its groups."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
