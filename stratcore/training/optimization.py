"""One optimizer step: micro-batches, gradient, guard, clipping, update, average."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stratcore.training.averaging import WeightAverage
from stratcore.training.batch_stream import BatchStream
from stratcore.training.distributed import Runtime
from stratcore.training.finite_guard import FiniteGuard, find_non_finite
from stratcore.training.metrics import MetricWindow
from stratcore.training.optimizer import build_optimizer, build_schedule, gradients_of
from stratcore.training.precision import Precision
from stratcore.training.step_graph import CapturedStep
from stratcore.training.task import Batch, Stage, StepResult, Task


class Optimization:
    """Applies optimizer steps to a task's model; holds all that such a step changes besides the task.

    A step minimizes sum(loss_sum) / sum(weight) over all micro-steps and ranks. If its loss or gradient is
    not finite, weights and moments stay as they were.

    Args:
        task: Gives the model, its parameter groups and the loss.
        stage: Gives the options.
        runtime: Ranks and device.

    Raises:
        ValueError: The model lacks what the stage asks for, or there is nothing to train.

    Cost:
        No host synchronization on a GPU in `run`.
    """

    def __init__(self, task: Task, stage: Stage, runtime: Runtime) -> None:
        self._task = task
        self._stage = stage
        self._runtime = runtime
        numerics = stage.numerics
        task.model.to(runtime.device)
        if numerics.gradient_checkpointing:
            _enable_gradient_checkpointing(task.model)
        self.model = runtime.wrap(task.model, find_unused_parameters=numerics.find_unused_parameters)
        if numerics.cuda_graph:
            _check_capturable(task, runtime)
        self.optimizer = build_optimizer(
            task.parameter_groups(), stage.optimizer, capturable=numerics.cuda_graph
        )
        self._base_rates = [
            float(group.get("initial_lr", group["lr"])) for group in self.optimizer.param_groups
        ]
        self._rate = self._base_rates[0]
        self._rate_factor = build_schedule(stage.optimizer, stage.steps)
        self.precision = Precision(numerics.precision, runtime.device)
        self.average = WeightAverage(task.model, stage.average) if stage.average is not None else None
        self.guard = FiniteGuard(runtime.device, numerics.max_bad_steps)
        self.window = MetricWindow(runtime.device)
        self._gradient_norm = torch.zeros(())
        self._last_batch: Batch = None
        self._step = (
            CapturedStep(self._whole_step, lambda: getattr(task, "capture_key", None))
            if numerics.cuda_graph
            else self._whole_step
        )

    def run(self, stream: BatchStream, index: int) -> None:
        """Make the step number `index` (from 0) of the stage."""
        self._set_learning_rate(index)
        reports, skipped = self._step([stream.next() for _ in range(self._stage.accumulate)])
        with torch.no_grad():
            for names, row in reports:
                self.window.add(names, row, skipped)
        self._task.after_step(index + 1)
        if self.average is not None:
            self.average.update()

    def _whole_step(self, batches: list[Batch]) -> tuple[list[tuple[tuple[str, ...], Tensor]], Tensor]:
        """Gradient of the micro-batches, guard, update.

        Returns:
            Of each micro-batch the names of its metrics and their row for the window; whether the step was skipped.
        """
        self.optimizer.zero_grad(set_to_none=True)
        results = [self._micro_step(batch, micro) for micro, batch in enumerate(batches)]
        with torch.no_grad():
            rows = [torch.stack([r.weight, r.loss_sum, *r.metrics.values()]) for r in results]
            totals = rows[0][:2] if len(rows) == 1 else torch.stack([row[:2] for row in rows]).sum(0)
            skipped = self._update(self._runtime.reduce_sum(totals))
        return [(tuple(r.metrics), row) for r, row in zip(results, rows, strict=True)], skipped

    def read_metrics(self) -> dict[str, float]:
        """Return the means since the last reading, and what the step itself knows. Every rank calls it."""
        values = self.window.read(self._runtime)
        values["lr"] = self._rate
        values["gradient_norm"] = self._gradient_norm.item()
        values["skipped_steps"] = self.guard.skipped_steps()
        return values

    def diagnose(self) -> str:
        """Name what made the last micro-batch non-finite. The gradients are lost."""

        def loss() -> Tensor:
            with self.precision.autocast():
                result = self._task.step(self._task.model, self._last_batch, 0)
            return result.loss_sum / result.weight

        return find_non_finite(self._task.model, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return what is equal on all ranks: model, optimizer moments, average, counters."""
        state = {
            "model": self._task.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "numerics": {"guard": self.guard.state_dict(), "precision": self.precision.state_dict()},
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; learning rate and decay stay those of the present options."""
        self._task.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.guard.load_state_dict(state["numerics"]["guard"])
        self.precision.load_state_dict(state["numerics"]["precision"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _set_learning_rate(self, index: int) -> None:
        factor = self._rate_factor(index)
        self._rate = self._base_rates[0] * factor
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:  # rounded as the tensor is, so that a step in a CUDA graph computes the same bits
                group["lr"] = float(np.float32(base * factor))

    def _micro_step(self, batch: Batch, micro: int) -> StepResult:
        self._last_batch = batch
        with self._runtime.gradient_sync(self.model, final=micro == self._stage.accumulate - 1):
            with self.precision.autocast():
                result = self._task.step(self.model, batch, micro)
            if self.precision.loss_unit is None:
                self.precision.loss_unit = self._mean_weight(result)
            self.precision.backward(result.loss_sum)
        return result

    def _mean_weight(self, result: StepResult) -> float:
        weight = self._runtime.reduce_sum(result.weight.detach().double().clone()).item()
        return max(1.0, weight / self._runtime.world_size)

    def _update(self, totals: Tensor) -> Tensor:
        """Apply the accumulated gradient; return the flag that says whether the step was skipped.

        Args:
            totals: Weight and loss of the step, shape [2], summed over micro-steps and ranks.
        """
        gradients = gradients_of(self.optimizer)
        if not gradients:
            raise ValueError(f"{type(self._task).__name__}.step: the loss reaches no trainable parameter")
        self.precision.unscale(self.optimizer)
        weight = totals[0]
        # The gradient in hand is that of the summed loss, per loss unit and averaged over the ranks.
        unit = self._runtime.world_size * (self.precision.loss_unit or 1.0)
        divisor = weight if unit == 1.0 else weight / unit
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) / divisor
        if self._stage.optimizer.clip_norm is not None:
            divisor = divisor * (norm / self._stage.optimizer.clip_norm).clamp(min=1.0)
        skipped = self.guard.check(totals, norm)
        self._gradient_norm = norm
        # Fused optimizers divide by `grad_scale` and obey `found_inf` on the device. On the CPU the flag costs
        # nothing to read, and the optimizer's own check much.
        self.optimizer.grad_scale = divisor.float()  # type: ignore[attr-defined]
        if self._runtime.device.type != "cpu":
            self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not skipped.item():
            self.optimizer.step()
        return skipped


def _check_capturable(task: Task, runtime: Runtime) -> None:
    if runtime.device.type != "cuda" or runtime.world_size > 1:
        raise ValueError(
            f"numerics.cuda_graph: expected one process on a GPU, got {runtime.world_size} on {runtime.device.type}"
        )
    if not getattr(task, "capturable", False):
        raise ValueError(
            "numerics.cuda_graph: expected a task that is capturable as it is set up, got "
            f"{type(task).__name__}"
        )


def _enable_gradient_checkpointing(model: nn.Module) -> None:
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ValueError(
            "numerics.gradient_checkpointing: expected a model with gradient_checkpointing_enable(), "
            f"got {type(model).__name__}"
        )
    enable()
