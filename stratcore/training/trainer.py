"""The training loop: steps, evaluations, checkpoints, resuming. It knows no family."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from stratcore.training.batch_stream import BatchStream
from stratcore.training.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from stratcore.training.checkpoint_store import CheckpointStore, resolve_checkpoint
from stratcore.training.console import Console
from stratcore.training.distributed import Runtime
from stratcore.training.finite_guard import NonFiniteError
from stratcore.training.interruption import StopSignals, TrainingInterrupted
from stratcore.training.metrics import MetricWriter
from stratcore.training.optimization import Optimization
from stratcore.training.random_state import (
    capture_random_state,
    deterministic_algorithms,
    preserved_random_state,
    restore_random_state,
    seed_everything,
)
from stratcore.training.task import Stage, Task

logger = logging.getLogger("stratcore")


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a stage ended.

    Args:
        step: Optimizer steps done, skipped ones included.
        metrics: The last evaluation of the split `validation`.
        best_value: Best value of `Retention.best_metric`, or None if none is tracked.
        best_step: Its step.
        checkpoint: The last checkpoint.
        skipped_steps: Steps left out because loss or gradient was not finite.
    """

    step: int
    metrics: dict[str, float]
    best_value: float | None
    best_step: int | None
    checkpoint: Path
    skipped_steps: int


@dataclass
class _Progress:
    step: int = 0
    saved_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best_value: float | None = None
    best_step: int | None = None


class Trainer:
    """Trains a task for one stage.

    Args:
        task: The family: model, loss, batches, state. Its model is moved to the runtime's device.
        stage: How long and how.
        runtime: Ranks and device.
        folder: Receives `metrics.jsonl` and `checkpoint-*`. One folder belongs to one stage.
        metrics_path: Another place for the metrics, so that the stages of one run share a file.
        tensorboard: Whether to write TensorBoard event files too.

    Raises:
        ValueError: The model lacks what the stage asks for, nothing is trainable, or TensorBoard is absent.

    Determinism:
        On one machine with one build, equal seeds give equal bits, and a run that was killed and resumed ends
        in the same bits (weights, moments, average, generators, metrics but for their times) as one that ran
        through.
    """

    def __init__(
        self,
        task: Task,
        stage: Stage,
        runtime: Runtime,
        folder: Path,
        *,
        metrics_path: Path | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.task = task
        self.stage = stage
        self.runtime = runtime
        self.folder = Path(folder)
        self._optimization = Optimization(task, stage, runtime)
        self._stream = BatchStream(task)
        self._store = CheckpointStore(self.folder, runtime)
        self._metrics_path = metrics_path or self.folder / "metrics.jsonl"
        self._writer = MetricWriter(self._metrics_path, stage.name, runtime, tensorboard=tensorboard)
        self._progress = _Progress()

    def fit(self, resume: Path | Literal["auto"] | None = None) -> Result:
        """Train to the end of the stage.

        Args:
            resume: None starts anew and refuses a folder that holds an earlier run. `auto` goes on from the
                newest whole checkpoint in the folder, and starts anew if there is none. A path (a checkpoint
                folder, or `checkpoint-best`, `checkpoint-last`) goes on from exactly that one.

        Returns:
            How it ended; a stage that was complete already is restored and returned at once.

        Raises:
            FileExistsError: `resume` is None and the folder holds an earlier run.
            CheckpointError: A checkpoint cannot be written, or the one to resume from is damaged.
            NonFiniteError: Too many steps in a row were not finite.
            TrainingInterrupted: SIGTERM or Ctrl-C came; a checkpoint was written first.
        """
        with ExitStack() as stack:
            stack.enter_context(deterministic_algorithms(self.stage.numerics.deterministic))
            stack.callback(self._writer.close)
            self._begin(resume)
            progress, steps = self._progress, self.stage.steps
            console = Console(self.stage.name, steps, active=self.runtime.is_main, start=progress.step)
            stack.callback(console.close)
            signals = stack.enter_context(StopSignals())
            self.task.model.train()
            while progress.step < steps:
                self._optimization.run(self._stream, progress.step)
                progress.step += 1
                console.advance(progress.step)
                self._after_step(console)
                if self.runtime.any(signals.received is not None):
                    self._interrupt(console, signals.received)
        return Result(
            step=progress.step,
            metrics=progress.metrics,
            best_value=progress.best_value,
            best_step=progress.best_step,
            checkpoint=self._store.path(progress.saved_step),
            skipped_steps=self._optimization.guard.skipped_steps(),
        )

    def _after_step(self, console: Console) -> None:
        step, every = self._progress.step, self.stage.intervals
        if self._optimization.guard.exhausted(step):
            self._stop_non_finite()
        if self._due(every.log_every):
            self._record("train", {**self._optimization.read_metrics(), "epoch": self._stream.epoch}, console)
        if every.control_every and step % every.control_every == 0:
            control = self._evaluate("control")
            self._record("control", control, console)
            self.task.after_control(control)
        improved = False
        if self._due(every.eval_every):
            self._progress.metrics = self._evaluate("validation")
            self._record("validation", self._progress.metrics, console)
            improved = self._note_best()
        if improved or self._due(every.save_every):
            self._save()

    def _due(self, every: int) -> bool:
        step = self._progress.step
        return step == self.stage.steps or (every > 0 and step % every == 0)

    def _record(self, split: str, values: dict[str, float], console: Console) -> None:
        self._writer.write(self._progress.step, split, values)
        console.report(self._progress.step, split, values)

    def _evaluate(self, split: str) -> dict[str, float]:
        model, average = self.task.model, self._optimization.average
        model.eval()
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            # Evaluating more often must not change the training.
            stack.enter_context(preserved_random_state(self.runtime.device))
            if average is not None:
                stack.enter_context(average.applied())
            stack.enter_context(self._optimization.precision.autocast())
            metrics = {name: float(value) for name, value in self.task.evaluate(model, split).items()}
        model.train()
        # The main process decides for all, lest the ranks disagree about what is best by a rounding.
        return self.runtime.broadcast(metrics)

    def _note_best(self) -> bool:
        key, progress = self.stage.retention.best_metric, self._progress
        if key is None:
            return False
        if key not in progress.metrics:
            known = ", ".join(progress.metrics) or "none"
            raise ValueError(
                f"retention.best_metric: expected a metric of the evaluation ({known}), got '{key}'"
            )
        sign = 1.0 if self.stage.retention.best_mode == "min" else -1.0
        value = progress.metrics[key]
        best = math.inf if progress.best_value is None else sign * progress.best_value
        if not sign * value < best:
            return False
        progress.best_value, progress.best_step = value, progress.step
        return True

    def _save(self) -> None:
        progress = self._progress
        progress.saved_step = progress.step
        self._writer.sync()
        shared = {
            **self._optimization.state_dict(),
            "trainer": {"progress": dataclasses.asdict(progress), "stage": dataclasses.asdict(self.stage)},
        }
        own = {
            "task": self.task.state_dict(),
            "stream": self._stream.state_dict(),
            "window": self._optimization.window.state_dict(),
            "random": capture_random_state(self.runtime.device),
        }
        info = {"stage": self.stage.name, "torch": torch.__version__, "device": self.runtime.device.type}
        self._store.save(progress.step, shared, own, info)
        if progress.best_step == progress.step:
            self._store.point("best", progress.step)
        self._store.prune(self.stage.retention.save_total_limit, progress.best_step)

    def _begin(self, resume: Path | Literal["auto"] | None) -> None:
        self._store.remove_orphans()
        checkpoint = self._find(resume)
        if checkpoint is not None:
            self._check_fit(checkpoint)
        step = 0 if checkpoint is None else checkpoint.step
        self._store.set_aside_after(step)
        self._writer.rewind(step)
        seed_everything(self.stage.seed, self.runtime.rank)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _find(self, resume: Path | Literal["auto"] | None) -> Checkpoint | None:
        """Let the main process search and verify, and every rank take its answer."""
        found: Checkpoint | Exception | None = None
        if self.runtime.is_main:
            try:
                found = self._search(resume)
            except (OSError, ValueError) as error:
                found = error
        found = self.runtime.broadcast(found)
        if isinstance(found, Exception):
            raise found
        return found

    def _search(self, resume: Path | Literal["auto"] | None) -> Checkpoint | None:
        if resume == "auto":
            return self._store.newest()
        earlier = self._store.steps()
        if resume is None:
            if earlier or self._writer.has_records():
                raise FileExistsError(
                    f"{self.folder}: holds an earlier run; resume='auto' goes on with it, "
                    "another folder starts anew"
                )
            return None
        path = resolve_checkpoint(Path(resume))
        if earlier and path.parent.resolve() != self.folder.resolve():
            raise ValueError(f"resume: expected a checkpoint in {self.folder}, which holds some, got {path}")
        return open_checkpoint(path)

    def _check_fit(self, checkpoint: Checkpoint) -> None:
        info, limit = checkpoint.info, self.stage.steps
        for key, present in (("stage", self.stage.name), ("world_size", self.runtime.world_size)):
            if info[key] != present:
                raise ValueError(f"{checkpoint.path}: expected {key} {present!r}, got {info[key]!r}")
        if checkpoint.step > limit:
            raise ValueError(f"{checkpoint.path}: expected at most {limit} steps, got {checkpoint.step}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        device = self.runtime.device
        parts = ["model", "optimizer", "numerics"] + (["average"] if self.stage.average is not None else [])
        try:
            self._optimization.load_state_dict({part: checkpoint.read(part, device) for part in parts})
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{checkpoint.path}: does not fit this model or optimizer: {reason}"
            ) from error
        trainer = checkpoint.read("trainer", device)
        self._progress = _Progress(**trainer["progress"])
        own = checkpoint.read(f"rank-{self.runtime.rank}", device)
        self.task.load_state_dict(own["task"])
        self._stream.load_state_dict(own["stream"])
        self._optimization.window.load_state_dict(own["window"])
        present = dataclasses.asdict(self.stage)
        changed = sorted(key for key in present if present[key] != trainer["stage"].get(key))
        if changed:
            logger.warning("resuming with other options than before: stage.%s", ", stage.".join(changed))
        if self._progress.best_step in self._store.steps():
            self._store.point("best", self._progress.best_step)
        restore_random_state(own["random"], device)

    def _interrupt(self, console: Console, received: int | None) -> None:
        progress = self._progress
        if progress.saved_step != progress.step:
            self._save()
        number = signal.SIGTERM if received is None else signal.Signals(received)
        path = self._store.path(progress.step)
        console.say(f"stopped by {number.name} at step {progress.step}; resume='auto' goes on from {path}")
        raise TrainingInterrupted(number, progress.step, path)

    def _stop_non_finite(self) -> None:
        bad_steps = self._optimization.guard.state_dict()["in_a_row"]
        raise NonFiniteError(
            f"stage '{self.stage.name}' stopped at step {self._progress.step}: loss or gradient not finite "
            f"in {bad_steps} steps in a row; {self._optimization.diagnose()}"
        )
