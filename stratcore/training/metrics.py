"""Metrics: averaged on the device between two log steps, then written as JSON lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratcore.training.checkpoint import replace_text
from stratcore.training.distributed import Runtime


class MetricWindow:
    """Weighted means of losses and metrics since the last reading; nothing is read from the device before.

    Metrics may come and go between steps: each is averaged over the micro-batches that reported it.

    Args:
        device: Where the results live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._zero = torch.zeros((), device=device)
        self._totals: dict[tuple[str, ...], Tensor] = {}

    def add(self, names: tuple[str, ...], row: Tensor, skipped: Tensor) -> None:
        """Add one micro-step; that of a skipped step counts nothing.

        Args:
            names: The metrics in `row`.
            row: Weight, summed loss, then the metrics' means; shape [2 + number of names]. It is overwritten.
            skipped: Scalar bool: whether the step was skipped.
        """
        if names:
            row[2:] *= row[0]
        row = torch.where(skipped, self._zero, row)
        total = self._totals.get(names)
        if total is None:
            self._totals[names] = row.double()
        else:
            total.add_(row)

    def read(self, runtime: Runtime) -> dict[str, float]:
        """Return the means over all ranks and start anew. Every rank calls it."""
        sums: dict[str, list[float]] = {}
        own = [(names, total.tolist()) for names, total in self._totals.items()]
        for names, (weight, *values) in [row for rows in runtime.gather(own) for row in rows]:
            for name, value in zip(("loss", *names), values, strict=True):
                entry = sums.setdefault(name, [0.0, 0.0])
                entry[0] += value
                entry[1] += weight
        self._totals = {}
        return {name: value / weight if weight else math.nan for name, (value, weight) in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last reading."""
        return {"names": [list(names) for names in self._totals], "totals": list(self._totals.values())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        rows = zip(state["names"], state["totals"], strict=True)
        self._totals = {tuple(names): total.to(self._device) for names, total in rows}


class MetricWriter:
    """Appends records to a JSONL file and, on request, to TensorBoard; silent on all ranks but the main one.

    A record is one line: `{"step", "stage", "split", "time", "values"}`, where time is in seconds since 1970
    and a value that is not finite is null.

    Args:
        path: The file; its folder is made.
        stage: Name of the stage.
        runtime: Tells which rank writes.
        tensorboard: Whether to write event files beside `path`, in `tensorboard/<stage>`.

    Raises:
        ValueError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, path: Path, stage: str, runtime: Runtime, *, tensorboard: bool = False) -> None:
        self._path = path
        self._stage = stage
        self._active = runtime.is_main
        self._board: Any = None
        if self._active:
            path.parent.mkdir(parents=True, exist_ok=True)
            if tensorboard:
                self._board = _open_tensorboard(path.parent / "tensorboard" / stage)

    def has_records(self) -> bool:
        """Tell whether the file holds records of this stage."""
        if not self._path.is_file():
            return False
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return any(record is not None and record["stage"] == self._stage for record in map(_parse, lines))

    def rewind(self, step: int) -> None:
        """Drop this stage's records beyond `step` and whatever follows them, at once.

        What is left is what an uninterrupted run had written at `step` (but for the times); a line cut short
        by a crash goes too.
        """
        if not self._active or not self._path.is_file():
            return
        kept = []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines:
            record = _parse(line) if line.endswith("\n") else None
            if record is None or (record["stage"] == self._stage and record["step"] > step):
                break
            kept.append(line)
        if len(kept) < len(lines):
            replace_text(self._path, "".join(kept))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one record."""
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = {"step": step, "stage": self._stage, "split": split, "time": time.time(), "values": finite}
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in finite.items():
                if value is not None:
                    self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint that counts on it."""
        if self._active and self._path.is_file():
            with open(self._path, "rb") as stream:
                os.fsync(stream.fileno())

    def close(self) -> None:
        """Close the event files."""
        if self._board is not None:
            self._board.close()


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if {"step", "stage", "split", "values"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None


def _open_tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard was asked for but is not installed: pip install tensorboard") from error
    return SummaryWriter(str(folder))
