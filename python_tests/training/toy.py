"""A tiny task with every kind of state: dropout, a queue, a controller, and fixed data drawn from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stratcore.training import (
    AverageOptions,
    Intervals,
    OptimizerOptions,
    Retention,
    Runtime,
    Stage,
    StepResult,
    Trainer,
)

ROWS, WIDTH = 48, 6


class ToyTask:
    def __init__(self, runtime: Runtime, *, batch_size: int = 4, dropout: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x_ND = torch.randn(ROWS, WIDTH, generator=generator).to(runtime.device)
        self.y_N = (self.x_ND[:, 0] * 2 - self.x_ND[:, 1]).sin()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.model: nn.Module = nn.Sequential(
                nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)
            )
        self.runtime = runtime
        self.batch_size = batch_size
        self.queue: list[torch.Tensor] = [torch.zeros(3, device=runtime.device)]
        self.control_gain = 1.0
        self.after_steps: list[int] = []

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters())}]

    def batches(self, epoch: int, start: int):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        rank, size = self.runtime.rank, self.runtime.world_size
        rows = order.view(-1, size * self.batch_size)[
            :, rank * self.batch_size : (rank + 1) * self.batch_size
        ]
        for index in rows[start:]:
            yield self.x_ND[index], self.y_N[index]

    def step(self, model: nn.Module, batch, micro: int) -> StepResult:
        x_BD, y_B = batch
        error_B = (model(x_BD).squeeze(1) - y_B).square() * self.control_gain
        bias = self.queue[-1].mean()
        self.queue = [*self.queue[-2:], error_B.detach()[:3]]
        metrics = {"error": error_B.detach().mean(), "bias": bias}
        return StepResult(loss_sum=error_B.sum(), weight=torch.full_like(bias, len(y_B)), metrics=metrics)

    def after_step(self, step: int) -> None:
        self.after_steps.append(step)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        error_N = (model(self.x_ND).squeeze(1) - self.y_N).square()
        return {"error": error_N.mean().item(), "noise": torch.rand(()).item()}

    def after_control(self, metrics: dict[str, float]) -> None:
        self.control_gain *= 1.0 + 0.01 * metrics["error"]

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue, "control_gain": self.control_gain}

    def load_state_dict(self, state) -> None:
        self.queue = list(state["queue"])
        self.control_gain = state["control_gain"]


def toy_stage(**changes: Any) -> Stage:
    options: dict[str, Any] = {
        "steps": 40,
        "optimizer": OptimizerOptions(lr=0.01, clip_norm=1.0, schedule="cosine", warmup_steps=5),
        "accumulate": 2,
        "intervals": Intervals(log_every=3, eval_every=7, control_every=5, save_every=4),
        "retention": Retention(save_total_limit=3, best_metric="error"),
        "average": AverageOptions(decay=0.9),
    }
    return Stage(**{**options, **changes})


def toy_trainer(folder: Path, task: Any = None, **changes: Any) -> Trainer:
    runtime = Runtime.create("cpu")
    return Trainer(task or ToyTask(runtime), toy_stage(**changes), runtime, folder)


def finished_files(folder: Path) -> dict[str, Any]:
    """Hashes of the last checkpoint's files: equal hashes are equal bits of everything that is saved."""
    last = json.loads((folder / "checkpoint-last").read_text())["checkpoint"]
    return json.loads((folder / last / "manifest.json").read_text())["files"]


def timeless_records(folder: Path) -> list[dict[str, Any]]:
    """Metrics but for their times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in records]
