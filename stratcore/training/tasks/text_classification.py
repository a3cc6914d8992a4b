"""Training a classifier of texts. Legend: N rows, B rows of a batch, C labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stratcore.data.token_rows import TokenBatch, TokenRows
from stratcore.training.distributed import Runtime
from stratcore.training.optimizer import ParameterGroups
from stratcore.training.task import StepResult

EVALUATION_BATCH = 256
_UNDECAYED = ("bias", "norm")  # parts of names of parameters that weight decay leaves alone


class TextClassificationTask:
    """Loss and accuracy of a model of transformers that takes labels and returns `loss` and `logits`.

    Args:
        model: called with input_ids, attention_mask and labels; its loss may hold further terms.
        train: rows to learn from.
        validation: rows to evaluate.
        runtime: ranks and device; the global batch is split evenly over ranks.
        batch_size: rows a step over all ranks.
        seed: of the order of rows.
        head_lr_scale: learning rate of all that is not the model's `encoder` over that of the encoder.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TokenRows,
        validation: TokenRows,
        runtime: Runtime,
        *,
        batch_size: int,
        seed: int,
        head_lr_scale: float = 1.0,
    ) -> None:
        if not 1 <= batch_size <= train.num_rows or batch_size % runtime.world_size:
            raise ValueError(
                f"batch_size: expected a multiple of {runtime.world_size} ranks in [1, {train.num_rows}] "
                f"training rows, got {batch_size}"
            )
        self.model = model
        self._splits = {"train": train, "validation": validation}
        self._runtime, self._batch_size, self._seed = runtime, batch_size, seed
        self._head_lr_scale = head_lr_scale

    def parameter_groups(self) -> ParameterGroups:
        """Encoder and the rest, each with and without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                decayed = parameter.ndim > 1 and not any(part in name.lower() for part in _UNDECAYED)
                groups.setdefault((name.startswith("encoder."), decayed), []).append(parameter)
        return [
            {"params": own}
            | ({} if decayed else {"weight_decay": 0.0})
            | ({} if of_encoder else {"lr_scale": self._head_lr_scale})
            for (of_encoder, decayed), own in groups.items()
        ]

    def batches(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        """Row numbers of this rank's micro-batches; the last, smaller batch of an epoch is left out."""
        rows = self._splits["train"].num_rows
        order = np.random.default_rng([self._seed, epoch]).permutation(rows)
        size = self._batch_size // self._runtime.world_size
        for index in range(start, rows // self._batch_size):
            first = index * self._batch_size + self._runtime.rank * size
            yield order[first : first + size]

    def step(self, model: nn.Module, batch: np.ndarray, micro: int) -> StepResult:
        """Loss of the rows with these numbers."""
        rows = self._splits["train"].batch(batch, self._runtime.device)
        output = model(**rows.inputs(), labels=rows.label)
        weight = torch.tensor(float(len(batch)), device=rows.label.device)
        metrics = {"loss": output.loss.detach(), "accuracy": _correct(output.logits, rows).mean()}
        return StepResult(loss_sum=output.loss * weight, weight=weight, metrics=metrics)

    def after_step(self, step: int) -> None:
        """Nothing."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Accuracy and mean negative log-likelihood of a split."""
        rows = self._splits[split]
        logits_NC = predict_logits(model, rows, self._runtime.device)
        label_N = torch.from_numpy(rows.label).to(logits_NC.device)
        return {
            "accuracy": float((logits_NC.argmax(-1) == label_N).double().mean()),
            "nll": float(nn.functional.cross_entropy(logits_NC, label_N)),
        }

    def after_control(self, metrics: dict[str, float]) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing besides the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def predict_logits(
    model: nn.Module,
    rows: TokenRows,
    device: torch.device,
    look: Callable[[np.ndarray, TokenBatch, Any], None] = lambda numbers, batch, output: None,
) -> Tensor:
    """Logits [N, C] in float32 of all rows, in their order; the model is called in batches of like length.

    Args:
        model: in evaluation mode.
        rows: N rows.
        device: of the model.
        look: called with the row numbers, the batch and the output of each call.
    """
    found: Tensor | None = None
    for numbers in rows.by_length(EVALUATION_BATCH):
        batch = rows.batch(numbers, device)
        output = model(**batch.inputs())
        look(numbers, batch, output)
        if found is None:
            found = torch.empty(rows.num_rows, output.logits.shape[-1], device=output.logits.device)
        found[torch.from_numpy(numbers).to(found.device)] = output.logits.float()
    assert found is not None
    return found


def _correct(logits_BC: Tensor, rows: TokenBatch) -> Tensor:
    return (logits_BC.detach().argmax(-1) == rows.label).float()
