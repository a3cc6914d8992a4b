"""An endless stream of micro-batches that can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stratcore.training.task import Batch, Task

_END = object()


class BatchStream:
    """Runs through a task's epochs, one after the other.

    Args:
        task: Its `batches(epoch, start)` are read; a resumed stream starts inside the epoch, with no replay.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._iterator: Iterator[Batch] | None = None
        self.epoch = 0
        self._position = 0

    def next(self) -> Batch:
        """Return the next micro-batch.

        Raises:
            ValueError: An epoch holds none.
        """
        while True:
            if self._iterator is None:
                self._iterator = iter(self._task.batches(self.epoch, self._position))
            batch = next(self._iterator, _END)
            if batch is not _END:
                self._position += 1
                return batch
            if self._position == 0:
                raise ValueError(f"{type(self._task).__name__}.batches: epoch {self.epoch} holds no batch")
            self.epoch += 1
            self._position = 0
            self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and how many of its micro-batches are spent."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken."""
        self.epoch, self._position = state["epoch"], state["position"]
        self._iterator = None
