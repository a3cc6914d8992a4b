"""Layers that learn to give what a host's attention gave. Legend: B rows of a batch, L tokens, C channels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from stratcore.models.graph_capture import unasked, with_own_caches
from stratcore.training.distributed import Runtime
from stratcore.training.task import StepResult
from stratcore.training.tasks.language_modeling import LanguageModelingTask


class AttentionTransferTask(LanguageModelingTask):
    """Mean squared error between the output of each replaced attention and that of the attention it replaced.

    Both see the host's own stream: behind every replaced layer the teacher's output goes on, so that no layer's error
    reaches another, and the backward pass stays within the replaced attentions.

    Args:
        model: a `ToroidalLM`, or whatever holds `students` and is called as `LanguageModelingTask` says.
        students: replaced attention modules of the model, by number of layer, with something trainable in each.
        teachers: those that they replaced, by the same numbers; frozen here.
        train: int64 [R, L], rows to learn from.
        validation: int64 [R, L], rows to evaluate.
        runtime: ranks and device.
        batch_size: rows a micro-batch over all ranks.
        seed: of the order of rows.
        branch_lr_scale: learning rate of all that is called `branches` over that of the rest.

    Raises:
        ValueError: other layers among the teachers than among the students, or rows that do not fit.

    Source: M. Zhang et al., LoLCATs, arXiv 2410.10254.
    """

    def __init__(
        self,
        model: nn.Module,
        students: Mapping[int, nn.Module],
        teachers: Mapping[int, nn.Module],
        train: np.ndarray,
        validation: np.ndarray,
        runtime: Runtime,
        *,
        batch_size: int,
        seed: int,
        branch_lr_scale: float = 1.0,
    ) -> None:
        if not students or sorted(students) != sorted(teachers):
            raise ValueError(f"teachers: expected layers {sorted(students)}, got {sorted(teachers)}")
        options = {"batch_size": batch_size, "seed": seed, "branch_lr_scale": branch_lr_scale}
        super().__init__(model, train, validation, runtime, **options)  # type: ignore[arg-type]
        self._students = dict(students)
        self._teachers = {
            number: each.requires_grad_(False).train(False).to(runtime.device)
            for number, each in teachers.items()
        }
        # Only the last token's logits are made, where the host lets one choose.
        host = getattr(model, "host", model)
        keeps = "logits_to_keep" in inspect.signature(host.forward).parameters
        self._call = {"use_cache": False} | ({"logits_to_keep": 1} if keeps else {})

    def step(self, model: nn.Module, batch: Tensor, micro: int) -> StepResult:
        """Squared errors of all layers, a mean over channels, summed over tokens."""
        with self._watched() as errors:
            model(input_ids=batch, **self._call, **unasked())
        total = torch.stack([squared for squared, _ in errors.values()]).sum()
        weight = total.new_full((), batch.numel())
        metrics = {
            f"relative_error/{number}": (squared / size).detach()
            for number, (squared, size) in errors.items()
        }
        return StepResult(loss_sum=total * weight, weight=weight, metrics={"loss": total.detach(), **metrics})

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Mean squared error, and of each layer the same over the mean square of the teacher's output."""
        rows = self._splits[split]
        sums: dict[str, float] = {}
        for first in range(0, len(rows), self._batch_size):
            numbers = np.arange(first, min(first + self._batch_size, len(rows)))
            with self._watched() as errors:
                model(input_ids=self.tokens(split, numbers), **self._call)
            share = len(numbers) / len(rows)
            found = {f"relative_error/{number}": float(e / size) for number, (e, size) in errors.items()}
            found["mse"] = float(sum(e for e, _ in errors.values()))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + share * value
        return sums

    @contextmanager
    def _watched(self) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
        """Error and mean square of the teacher's output by layer, filled while the model is called."""
        errors: dict[int, tuple[Tensor, Tensor]] = {}

        def compare(number: int) -> Any:
            def hook(module: nn.Module, arguments: tuple, named: dict[str, Any], output: Any) -> Any:
                with torch.no_grad():
                    wanted = self._teachers[number](*arguments, **with_own_caches(named))
                target = wanted[0].float()
                errors[number] = mse_loss(output[0].float(), target), target.square().mean()
                return wanted

            return hook

        handles = [
            student.register_forward_hook(compare(number), with_kwargs=True)
            for number, student in self._students.items()
        ]
        try:
            yield errors
        finally:
            for handle in handles:
                handle.remove()
