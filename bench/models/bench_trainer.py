"""Overhead of the Trainer: microseconds a step at batch 8 against a bare loop, on a small MLP.

    python -m bench.models.bench_trainer [--device cpu|cuda] [--steps 500] [--repeats 15] [--json FILE]

Four arms run interleaved: the loop a user would write with torch's default AdamW, the same with the fused one
that the Trainer uses, that one with clip_grad_norm_, and the Trainer, which makes the same clipped update and
guards it, averages metrics and writes them. The overhead is counted from the third. A table is printed and,
after it, one JSON line an arm. Before anything is timed, the arms must end in equal weights. One CPU thread is
used: at this size a second one only waits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stratcore.training import Intervals, OptimizerOptions, Runtime, Stage, StepResult, Trainer

ROWS, WIDTH, CLASSES, BATCH = 4096, 64, 10, 8


class MLPTask:
    """Classification of random rows; nothing but the model and its loss."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x_ND = torch.randn(ROWS, WIDTH, generator=generator).to(device)
        self.y_N = torch.randint(CLASSES, (ROWS,), generator=generator).to(device)
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, CLASSES)
        ).to(device)
        self.weight = torch.tensor(float(BATCH), device=device)
        self.warm_up = 0
        self.started = 0.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group."""
        return [{"params": list(self.model.parameters())}]

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled rows by direct indexing."""
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch)).to(self.x_ND.device)
        for index in order.view(-1, BATCH)[start:]:
            yield self.x_ND[index], self.y_N[index]

    def step(self, model: nn.Module, batch: tuple[Tensor, Tensor], micro: int) -> StepResult:
        """Return the summed cross-entropy."""
        loss = functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return StepResult(loss_sum=loss, weight=self.weight)

    def after_step(self, step: int) -> None:
        """Start the clock after the warm-up."""
        if step == self.warm_up:
            _synchronize(self.x_ND.device)
            self.started = time.perf_counter()

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Stop the clock."""
        _synchronize(self.x_ND.device)
        return {"microseconds": (time.perf_counter() - self.started) * 1e6}

    def after_control(self, metrics: dict[str, float]) -> None:
        """Control nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the task has no state."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Take nothing over."""


def run_bare(
    device: torch.device, steps: int, warm_up: int, *, fused: bool, clip: bool = False
) -> tuple[float, nn.Module]:
    """Train as a user would without a trainer.

    Returns:
        Microseconds a step after the warm-up, and the model.
    """
    task = MLPTask(device)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3, weight_decay=0.0, fused=fused or None)
    task.warm_up = warm_up
    step, epoch = 0, 0
    while step < steps:
        for x_BD, y_B in task.batches(epoch, 0):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(task.model(x_BD), y_B).backward()
            if clip:
                nn.utils.clip_grad_norm_(task.model.parameters(), 1e6)
            optimizer.step()
            step += 1
            task.after_step(step)
            if step == steps:
                break
        epoch += 1
    return task.evaluate(task.model, "")["microseconds"] / (steps - warm_up), task.model


def run_trainer(device: torch.device, steps: int, warm_up: int) -> tuple[float, nn.Module]:
    """Train with the Trainer.

    Returns:
        Microseconds a step after the warm-up, and the model.
    """
    runtime = Runtime.create(device.type)
    task = MLPTask(runtime.device)
    task.warm_up = warm_up
    stage = Stage(
        steps=steps, optimizer=OptimizerOptions(lr=1e-3, clip_norm=1e6), intervals=Intervals(log_every=100)
    )
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(task, stage, runtime, Path(folder)).fit()
    return result.metrics["microseconds"] / (steps - warm_up), task.model


def benchmark_trainer(device: str = "cpu", steps: int = 500, repeats: int = 15) -> list[dict[str, Any]]:
    """Time the four arms, interleaved.

    Args:
        device: `cpu` or `cuda`.
        steps: Steps of one measurement; a fifth of them warms up.
        repeats: Measurements of each arm.

    Returns:
        One record an arm: median and least microseconds a step, and the overhead of the least over that of
        the fused and clipped bare loop (the least is what other load on the machine disturbs least).

    Raises:
        RuntimeError: The arms do not end in equal weights; nothing is timed.
    """
    place = torch.device(device)
    arms: dict[str, Callable[[], tuple[float, nn.Module]]] = {
        "bare loop, AdamW": lambda: run_bare(place, steps, steps // 5, fused=False),
        "bare loop, fused AdamW": lambda: run_bare(place, steps, steps // 5, fused=True),
        "bare loop, fused, clipped": lambda: run_bare(place, steps, steps // 5, fused=True, clip=True),
        "Trainer": lambda: run_trainer(place, steps, steps // 5),
    }
    _, expected = run_bare(place, 50, 10, fused=True)
    _, actual = run_trainer(place, 50, 10)
    for own, other in zip(actual.parameters(), expected.parameters(), strict=True):
        if not torch.allclose(own, other, rtol=0, atol=1e-4):
            raise RuntimeError("the Trainer and the bare loop end in different weights")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, run in arms.items():
            times[name].append(run()[0])
    base = min(times["bare loop, fused, clipped"])
    return [
        {
            "benchmark": "trainer_step",
            "arm": name,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "batch": BATCH,
            "median_us": round(statistics.median(values), 1),
            "least_us": round(min(values), 1),
            "overhead_us": round(min(values) - base, 1),
            "overhead_percent": round(100 * (min(values) / base - 1), 1),
        }
        for name, values in times.items()
    ]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Microseconds a step: the Trainer against bare loops.")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="append the records to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = benchmark_trainer(options.device, options.steps, options.repeats)
    print(f"{'arm':<28}{'median us':>12}{'least us':>12}{'overhead us':>14}{'overhead %':>12}")
    for record in records:
        print(
            f"{record['arm']:<28}{record['median_us']:>12}{record['least_us']:>12}"
            f"{record['overhead_us']:>14}{record['overhead_percent']:>12}"
        )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    print(lines, end="")
    if options.json is not None:
        with open(options.json, "a", encoding="utf-8") as stream:
            stream.write(lines)


if __name__ == "__main__":
    main()
