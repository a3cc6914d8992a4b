"""Training a model that answers every token of drawn sequences. Legend: B sequences, N tokens, O outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from stratcore.data.sequences import Sequences, SequenceSource, seeded_generator
from stratcore.training.distributed import Runtime
from stratcore.training.optimizer import ParameterGroups
from stratcore.training.task import StepResult

_UNDECAYED = ("bias", "norm", "raw_slopes", "tables_AKH")
_TRAIN_KEY, _EVALUATION_KEY = 0, 1


def sequence_loss(outputs_BNO: Tensor, sequences: Sequences, *, labels: bool) -> Tensor:
    """Mean over all tokens: cross-entropy in nats where targets are labels, else squared error."""
    if labels:
        return cross_entropy(outputs_BNO.flatten(0, 1).float(), sequences.targets.flatten())
    return mse_loss(outputs_BNO.float(), sequences.targets)


class SequencePredictionTask:
    """Loss of a model on sequences drawn anew for every step, on the device.

    Args:
        model: inputs of `Sequences` to outputs [B, N, O].
        source: draws sequences.
        runtime: ranks and device; the global batch is split evenly over ranks.
        batch_size: sequences a step over all ranks.
        seed: of all draws.
        evaluation_sequences: how many are drawn of a part to evaluate, the same ones every time; a multiple of
            `batch_size`.
    """

    capturable = True

    def __init__(
        self,
        model: nn.Module,
        source: SequenceSource,
        runtime: Runtime,
        *,
        batch_size: int,
        seed: int,
        evaluation_sequences: int,
    ) -> None:
        if batch_size < 1 or batch_size % runtime.world_size:
            raise ValueError(
                f"batch_size: expected a multiple of {runtime.world_size} ranks, got {batch_size}"
            )
        if evaluation_sequences < 1 or evaluation_sequences % batch_size:
            raise ValueError(
                f"evaluation_sequences: expected a multiple of batch_size = {batch_size}, got {evaluation_sequences}"
            )
        self.model, self.source = model, source
        self._runtime, self._batch_size, self._seed = runtime, batch_size, seed
        self._evaluation_batches = evaluation_sequences // batch_size

    def parameter_groups(self) -> ParameterGroups:
        """Weights of matrices, and the rest without weight decay."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        kept = [p for name, p in named if p.ndim < 2 or any(part in name for part in _UNDECAYED)]
        chosen = {id(p) for p in kept}
        return [
            {"params": [p for _, p in named if id(p) not in chosen]},
            {"params": kept, "weight_decay": 0.0},
        ]

    def batches(self, epoch: int, start: int) -> Iterator[Sequences]:
        """This rank's draws, without an end."""
        size = self._batch_size // self._runtime.world_size
        for index in count(start):
            number = index * self._runtime.world_size + self._runtime.rank
            generator = seeded_generator(self._runtime.device, self._seed, _TRAIN_KEY, number)
            yield self.source.draw(size, generator)

    def step(self, model: nn.Module, batch: Sequences, micro: int) -> StepResult:
        """Loss of a draw."""
        loss = sequence_loss(model(batch.inputs), batch, labels=self.source.shape.labels)
        weight = loss.new_full((), len(batch.inputs))
        return StepResult(loss_sum=loss * weight, weight=weight, metrics={"loss": loss.detach()})

    def after_step(self, step: int) -> None:
        """Nothing."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Mean loss over the sequences of a part."""
        losses = [
            sequence_loss(model(drawn.inputs), drawn, labels=self.source.shape.labels).double()
            for drawn in self.evaluation_draws(split)
        ]
        return {"loss": float(torch.stack(losses).mean())}

    def evaluation_draws(self, part: str) -> Iterator[Sequences]:
        """The sequences of a part that are evaluated, batch by batch; every part has draws of its own."""
        key = ("validation", *self.source.parts).index(part)
        for index in range(self._evaluation_batches):
            generator = seeded_generator(self._runtime.device, self._seed, _EVALUATION_KEY, key, index)
            yield self.source.draw(self._batch_size, generator, part)

    def after_control(self, metrics: dict[str, float]) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing besides the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
