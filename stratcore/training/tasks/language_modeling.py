"""Training a causal language model on rows of tokens. Legend: R rows, B rows of a batch, L tokens, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stratcore.models.graph_capture import unasked
from stratcore.training.distributed import Runtime
from stratcore.training.optimizer import ParameterGroups
from stratcore.training.task import StepResult


class LanguageModelingTask:
    """Cross-entropy of the next token; labels are the inputs shifted by one, once, and no row has pads.

    Trainable parameters in half precision become float32, the masters that the optimizer steps; frozen ones keep
    their dtype. `stage.numerics.precision` sets the arithmetic, bf16 or fp16 where a host's frozen part is kept so.

    Args:
        model: called with input_ids and use_cache=False; returns `logits` [B, L, V].
        train: int64 [R, L], rows to learn from.
        validation: int64 [R, L], rows to evaluate.
        runtime: ranks and device; the global batch is split evenly over ranks.
        batch_size: rows a micro-batch over all ranks.
        seed: of the order of rows.
        branch_lr_scale: learning rate of all that is called `branches` over that of the rest.

    Raises:
        ValueError: rows of another shape, or a batch that does not fit.
    """

    capturable = True

    def __init__(
        self,
        model: nn.Module,
        train: np.ndarray,
        validation: np.ndarray,
        runtime: Runtime,
        *,
        batch_size: int,
        seed: int,
        branch_lr_scale: float = 1.0,
    ) -> None:
        for name, rows in (("train", train), ("validation", validation)):
            if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] < 2:
                raise ValueError(
                    f"{name}: expected token ids [R, L] with L at least 2, got {list(rows.shape)}"
                )
        if not 1 <= batch_size <= len(train) or batch_size % runtime.world_size:
            raise ValueError(
                f"batch_size: expected a multiple of {runtime.world_size} ranks in [1, {len(train)}] training "
                f"rows, got {batch_size}"
            )
        self.model = model
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        self._splits = {"train": train, "validation": validation}
        self._runtime, self._batch_size, self._seed = runtime, batch_size, seed
        self._branch_lr_scale = branch_lr_scale

    def parameter_groups(self) -> ParameterGroups:
        """Matrices, which decay, and all else, such as gates, lambdas, biases and norms, which does not."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                of_branch = name.startswith("branches.")
                groups.setdefault((of_branch, parameter.ndim > 1), []).append(parameter)
        return [
            {"params": own}
            | ({} if decayed else {"weight_decay": 0.0})
            | ({"lr_scale": self._branch_lr_scale} if of_branch else {})
            for (of_branch, decayed), own in groups.items()
        ]

    def batches(self, epoch: int, start: int) -> Iterator[Tensor]:
        """Rows of this rank's micro-batches, int64 [B, L]; the last, smaller batch of an epoch is left out."""
        rows = len(self._splits["train"])
        order = np.random.default_rng([self._seed, epoch]).permutation(rows)
        size = self._batch_size // self._runtime.world_size
        for index in range(start, rows // self._batch_size):
            first = index * self._batch_size + self._runtime.rank * size
            yield self.tokens("train", order[first : first + size])

    def tokens(self, split: str, numbers: np.ndarray) -> Tensor:
        """Rows with these numbers, int64 [B, L], on the device."""
        return torch.from_numpy(self._splits[split][numbers]).to(self._runtime.device, non_blocking=True)

    def step(self, model: nn.Module, batch: Tensor, micro: int) -> StepResult:
        """Summed loss of rows; its weight is the number of foreseen tokens."""
        total, count = next_token_loss(model, batch)
        weight = total.new_full((), count)
        return StepResult(loss_sum=total, weight=weight, metrics={"loss": total.detach() / count})

    def after_step(self, step: int) -> None:
        """Nothing."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Mean negative log-likelihood a token and its perplexity, every token with the same weight."""
        rows = self._splits[split]
        size = max(1, self._batch_size // self._runtime.world_size)
        total, count = 0.0, 0
        for first in range(0, len(rows), size):
            numbers = np.arange(first, min(first + size, len(rows)))
            loss, scored = next_token_loss(model, self.tokens(split, numbers))
            total, count = total + float(loss), count + scored
        return {"nll": total / count, "perplexity": math.exp(min(total / count, 700.0))}

    def after_control(self, metrics: dict[str, float]) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing besides the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def next_token_loss(model: nn.Module, ids_BL: Tensor) -> tuple[Tensor, int]:
    """Negative log-likelihood of all tokens but the first of each row, summed in float32 or better; their number."""
    logits_BLV = model(input_ids=ids_BL, use_cache=False, **unasked()).logits[:, :-1]
    wide = torch.promote_types(logits_BLV.dtype, torch.float32)
    labels_BL = ids_BL[:, 1:]
    total = cross_entropy(logits_BLV.to(wide).flatten(0, 1), labels_BL.flatten(), reduction="sum")
    return total, labels_BL.numel()
