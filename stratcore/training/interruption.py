"""A polite stop: signals become a flag that the Trainer reads between two steps."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(SystemExit):
    """Training was asked to stop; left uncaught, the process ends with exit code 128 + signal number.

    Args:
        signal_number: What was received.
        step: Steps done.
        checkpoint: Where a later run resumes.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: Path) -> None:
        super().__init__(128 + signal_number)
        self.step = step
        self.checkpoint = checkpoint


class StopSignals:
    """Turns SIGTERM and the first Ctrl-C into `received`; the second Ctrl-C interrupts at once.

    As a context manager it installs its handlers (in the main thread only, where Python allows it) and
    puts the former ones back.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number
