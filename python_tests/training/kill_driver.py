"""Runs the toy again and again in child processes that are killed at random moments, then once to the end.

    python -m python_tests.training.kill_driver FOLDER KILLS SEED

Forking from a process that never ran a torch op spares each child the import.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from python_tests.training.toy import toy_trainer


def run_child(folder: Path, fsyncs_before_death: int | None) -> int:
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    if fsyncs_before_death is not None:
        die_inside_a_save(fsyncs_before_death)
    code = 1
    try:
        toy_trainer(folder).fit(resume="auto")
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def die_inside_a_save(after: int) -> None:
    real, left = os.fsync, [after]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    killed = 0
    for turn in range(kills):
        inside_save = turn % 2 == 0
        child = run_child(folder, chance.randrange(40) if inside_save else None)
        if not inside_save:
            time.sleep(chance.uniform(0.05, 0.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(run_child(folder, None), 0)
    print(killed)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
