"""What a person sees of a training run: a progress bar on a terminal, short lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

_SHOWN = 6
_REFRESH_SECONDS = 0.1


class Console:
    """Progress of one stage, on stderr. A rank that is not the main one stays silent.

    Args:
        stage: Name of the stage.
        steps: Its length.
        active: Whether this rank shows anything.
        start: Steps already done.
    """

    def __init__(self, stage: str, steps: int, *, active: bool, start: int = 0) -> None:
        self._stage = stage
        self._steps = steps
        self._active = active
        self._next_refresh = 0.0
        self._progress: Any = None
        if active and sys.stderr.isatty():
            self._progress, self._bar = _open_progress(stage, steps, start)

    def advance(self, step: int) -> None:
        """Move the bar; redraws at most ten times a second."""
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._next_refresh or step == self._steps:
            self._progress.update(self._bar, completed=step)
            self._next_refresh = now + _REFRESH_SECONDS

    def report(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Show the first few values of one record."""
        if not self._active:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN])
        if self._progress is not None and split == "train":
            self._progress.update(self._bar, completed=step, description=f"{self._stage}  {shown}")
        else:
            self.say(f"{self._stage} {step}/{self._steps} {split}  {shown}")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        elif self._active:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _open_progress(stage: str, steps: int, start: int) -> tuple[Any, Any]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Terminal(stderr=True),
        transient=False,
    )
    bar = progress.add_task(stage, total=steps, completed=start)
    progress.start()
    return progress, bar
