"""Keeps non-finite losses and gradients away from the weights, and names where they came from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("stratcore")

# Adam squares every gradient entry; beyond this norm the square may leave float32.
_LARGEST = 1e18


class NonFiniteError(RuntimeError):
    """Training stopped because too many steps in a row were not finite."""


class FiniteGuard:
    """Counts the steps whose loss or gradient is not finite, on the device.

    Args:
        device: Where the counters live.
        max_bad_steps: `exhausted` reports as soon as so many in a row were seen.

    Cost:
        A few scalar kernels a step. The counters are read on the host after every step on the CPU, where
        that is free, and every `max_bad_steps` steps on a GPU, where it waits for the device: there a run
        stops after at most 2 max_bad_steps - 1 bad steps in a row. The weights are safe in between, since
        the optimizer obeys the flag on the device.
    """

    def __init__(self, device: torch.device, max_bad_steps: int) -> None:
        counters = torch.zeros(2, device=device, dtype=torch.float64)
        self._counters, (self._in_a_row, self._skipped) = counters, counters.unbind()
        self._reported = 0
        self._limit = max_bad_steps
        self._read_every = 1 if device.type == "cpu" else max_bad_steps

    def check(self, totals: Tensor, gradient_norm: Tensor) -> Tensor:
        """Judge one step.

        Args:
            totals: Weight and loss of the step, summed over micro-steps and ranks; any shape.
            gradient_norm: Scalar: norm of the gradient of loss / weight; not finite if the weight is 0.

        Returns:
            Scalar bool on the device: whether the step must be skipped.
        """
        # A NaN in any of them is the maximum, and no comparison with it holds.
        bad = ~(torch.maximum(gradient_norm, totals.abs().amax()) <= _LARGEST)
        self._counters.add_(bad)
        self._in_a_row.mul_(bad)
        return bad

    def exhausted(self, step: int) -> bool:
        """Tell whether training must stop; looks only at the steps named under Cost."""
        return step % self._read_every == 0 and self._in_a_row.item() >= self._limit

    def skipped_steps(self) -> int:
        """Return how many steps were skipped so far; warns once for each time the number has grown."""
        skipped = int(self._skipped.item())
        if skipped > self._reported:
            new = skipped - self._reported
            logger.warning("%d step(s) skipped: loss or gradient not finite (%d in all)", new, skipped)
            self._reported = skipped
        return skipped

    def state_dict(self) -> dict[str, int]:
        """Return the counters."""
        return {"in_a_row": int(self._in_a_row.item()), "skipped": int(self._skipped.item())}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what `state_dict` returned."""
        self._in_a_row.fill_(state["in_a_row"])
        self._skipped.fill_(state["skipped"])
        self._reported = state["skipped"]


def find_non_finite(model: nn.Module, run: Callable[[], Tensor]) -> str:
    """Run a bad micro-batch once more and name the first culprit.

    Args:
        model: The unwrapped model.
        run: Computes the loss of that batch with `model`; its gradients are overwritten.

    Returns:
        A phrase: the first module (in the order of execution) with a non-finite output; or, if all outputs
        are finite, the loss; or the first parameter whose gradient is not finite.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter '{name}' holds a non-finite value"
    seen: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            if not seen and not all(torch.isfinite(t).all() for t in _tensors(output)):
                fed = all(torch.isfinite(t).all() for t in _tensors(inputs))
                seen.append(
                    f"module '{name}' gave a non-finite output for {'' if fed else 'non-'}finite input"
                )

        return hook

    model.zero_grad(set_to_none=True)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(watch(name or type(model).__name__)).remove)
        loss = run()
    if seen:
        return seen[0]
    if not torch.isfinite(loss).all():
        return "the loss is not finite, though every module's output is"
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of parameter '{name}' is not finite"
    return "this rank's last micro-batch alone is finite; look at the other micro-batches and ranks"


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from _tensors(getattr(value, key))
