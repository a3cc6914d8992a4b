"""Trains the toy under torchrun, through and interrupted; started by test_distributed.py with two processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from python_tests.training.toy import ToyTask, toy_stage
from stratcore.training import Runtime, Trainer, TrainingInterrupted


class InterruptedTask(ToyTask):
    def after_step(self, step: int) -> None:
        if step == 9 and self.runtime.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    folder = Path(sys.argv[1])
    with Runtime.create("cpu", timeout_seconds=60) as runtime:
        Trainer(ToyTask(runtime, dropout=0.0), toy_stage(), runtime, folder / "through").fit()
        broken = folder / "broken"
        try:
            Trainer(InterruptedTask(runtime, dropout=0.0), toy_stage(), runtime, broken).fit()
        except TrainingInterrupted as interruption:
            assert interruption.step == 9
            Trainer(ToyTask(runtime, dropout=0.0), toy_stage(), runtime, broken).fit("auto")


if __name__ == "__main__":
    main()
