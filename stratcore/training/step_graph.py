"""An optimizer step as one CUDA graph: the host launches it once instead of hundreds of kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from stratcore.training.task import Batch

WARM_UP = 3
Outputs = TypeVar("Outputs")


class CapturedStep:
    """Runs a step a few times as it is, then captures it, and from there on replays it.

    The step has to be a function of its batches and of memory that stays where it is: no look at the device from the
    host, no random number of the host's, shapes that never change. What it returns is overwritten by the next call.

    Args:
        step: from the micro-batches of a step to whatever it returns.
        key: what the step depends on beside memory that stays; when its value changes, the step is captured anew.

    Raises:
        ValueError: micro-batches of another shape or type than those that were captured.

    Determinism: a replay computes the bits that the step itself would, random numbers of the device included.
    """

    def __init__(
        self, step: Callable[[list[Batch]], Outputs], key: Callable[[], Hashable] = lambda: None
    ) -> None:
        self._step, self._key = step, key
        self._captured: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Batch] = []
        self._outputs: Any = None

    def __call__(self, batches: list[Batch]) -> Any:
        """What the step returns for these micro-batches."""
        if self._calls < WARM_UP:
            self._calls += 1
            return self._aside(batches)
        if self._graph is None or self._captured != self._key():
            self._capture(batches)
        assert self._graph is not None
        _fill(self._inputs, batches)
        self._graph.replay()
        return self._outputs

    def _aside(self, batches: list[Batch]) -> Any:
        """On a stream of its own, as what is captured later must not meet the default stream's state."""
        aside, present = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(present)
        with torch.cuda.stream(aside):
            outputs = self._step(batches)
        present.wait_stream(aside)
        return outputs

    def _capture(self, batches: list[Batch]) -> None:
        self._graph = self._outputs = None  # their memory is free for the next ones
        self._inputs = [_map(torch.clone, batch) for batch in batches]
        self._captured, self._graph = self._key(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._step(self._inputs)


def _map(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with another tensor for each of its tensors."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {name: _map(function, value) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [_map(function, value) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        own = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **{name: _map(function, value) for name, value in own.items()})
    return batch


def _tensors(batches: Sequence[Batch]) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for batch in batches:
        _map(note, batch)
    return found


def _fill(inputs: Sequence[Batch], batches: Sequence[Batch]) -> None:
    for own, given in zip(_tensors(inputs), _tensors(batches), strict=True):
        if (own.shape, own.dtype) != (given.shape, given.dtype):
            raise ValueError(
                f"numerics.cuda_graph: expected micro-batches that are all alike, {own.dtype} {list(own.shape)}, got "
                f"{given.dtype} {list(given.shape)}"
            )
        own.copy_(given)
