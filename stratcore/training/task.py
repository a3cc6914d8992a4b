"""What a family gives to the Trainer (`Task`, `StepResult`) and how long and how to train it (`Stage`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from stratcore.training.averaging import AverageOptions
from stratcore.training.optimizer import OptimizerOptions, ParameterGroups

Batch = Any


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one micro-step returns; every tensor stays on the device.

    Args:
        loss_sum: Scalar with a graph: the loss summed over the micro-batch's tokens or samples.
        weight: Scalar: how many tokens or samples were summed. The Trainer minimizes the sum of all
            `loss_sum` over the sum of all `weight`, over micro-steps and ranks.
        metrics: Scalars, each a mean over the micro-batch; read at log steps only, averaged by `weight`. An
            empty micro-batch (weight 0) gives finite ones, such as 0.
    """

    loss_sum: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """One family: its loss, metrics and state. A task places its batches on the runtime's device itself.

    A task may say `capturable = True`: its `step` is a function of the batch and of memory that stays where it is,
    without a look at the device and without random numbers of the host, so that a CUDA graph can hold it. Where sizes
    in it change between steps, `capture_key`, of any type, tells them: another key, another graph.
    """

    @property
    def model(self) -> nn.Module:
        """The module to train."""
        ...

    def parameter_groups(self) -> ParameterGroups:
        """Return the groups to train: dicts with `params`, and `lr` or `weight_decay` where they differ."""
        ...

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        """Return this rank's micro-batches of `epoch`, from index `start` on.

        The order is a pure function of the epoch and the task's own seed: it draws nothing from the global
        generators, or a resumed run differs. Starting at `start` costs O(1). Every rank yields equally many.
        """
        ...

    def step(self, model: nn.Module, batch: Batch, micro: int) -> StepResult:
        """Compute the loss of one micro-batch with `model`, which may be a wrapped form of `self.model`."""
        ...

    def after_step(self, step: int) -> None:
        """Run after optimizer step number `step` (from 1), skipped or not: unit atoms, queues, anchors."""
        ...

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Return metrics of a split, `validation` or `control`, without gradients, the same on every rank."""
        ...

    def after_control(self, metrics: dict[str, float]) -> None:
        """Let controllers act on a slice of the training data (the split `control`), never on validation."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all mutable state besides the model: nested dicts, lists, tuples of tensors and scalars."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; tensors come back on the kind of device they left."""
        ...


def _check(owner: str, options: object, checks: Mapping[str, tuple[bool, str]]) -> None:
    for key, (holds, expected) in checks.items():
        if not holds:
            raise ValueError(f"{owner}.{key}: expected {expected}, got {getattr(options, key)!r}")


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Every how many steps; 0 means only after the last step (for `control_every`: never).

    Args:
        log_every: Training metrics are read from the device and written.
        eval_every: The split `validation` is evaluated.
        control_every: The split `control` is evaluated and handed to `Task.after_control`.
        save_every: A checkpoint is written.
    """

    log_every: int = 50
    eval_every: int = 0
    control_every: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        _check("intervals", self, {key: (value >= 0, "an integer >= 0") for key, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """Arithmetic and its guards.

    Args:
        precision: `bf16` and `fp16` run the model under autocast (`fp16` with loss scaling); the weights and
            the optimizer's moments stay in float32.
        deterministic: Only deterministic kernels are used; an op without one raises.
        gradient_checkpointing: Call the model's `gradient_checkpointing_enable()`.
        find_unused_parameters: Under several ranks, allow parameters that get no gradient in a step.
        max_bad_steps: After so many steps in a row with a non-finite loss or gradient, training stops.
        cuda_graph: Capture an optimizer step as one CUDA graph and replay it: for models whose kernels take less time
            than launching them. Needs one process, a GPU, Adam or AdamW, no `fp16`, no `gradient_checkpointing`,
            and a task that is `capturable`.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = True
    gradient_checkpointing: bool = False
    find_unused_parameters: bool = False
    max_bad_steps: int = 10
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        known = self.precision in ("fp32", "bf16", "fp16")
        _check(
            "numerics",
            self,
            {
                "precision": (known, "one of fp32, bf16, fp16"),
                "cuda_graph": (
                    not self.cuda_graph or not (self.precision == "fp16" or self.gradient_checkpointing),
                    "False with precision fp16 or gradient_checkpointing",
                ),
                "max_bad_steps": (self.max_bad_steps >= 1, "an integer >= 1"),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay.

    Args:
        save_total_limit: So many of the newest stay, and the best one besides; None keeps all.
        best_metric: Key of the validation metrics that decides which checkpoint is best; None tracks none.
        best_mode: Whether a smaller (`min`) or a larger (`max`) value is better.
    """

    save_total_limit: int | None = 2
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        limit = self.save_total_limit
        _check(
            "retention",
            self,
            {
                "save_total_limit": (limit is None or limit >= 1, "an integer >= 1 or None"),
                "best_metric": (self.best_metric != "", "a metric's name or None"),
                "best_mode": (self.best_mode in ("min", "max"), "min or max"),
            },
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One named stretch of training with one optimizer.

    Args:
        name: Stands in every metrics record and checkpoint.
        steps: Optimizer steps.
        optimizer: Update rule, learning rate, clipping.
        accumulate: Micro-batches summed into one optimizer step.
        seed: Seeds what is drawn during training (dropout, sampling); the start weights are the task's.
        intervals: When to log, evaluate, control, save.
        numerics: Precision, determinism, guards.
        retention: Which checkpoints stay, and which is the best.
        average: Averaging of the weights; None means none.
    """

    name: str = "train"
    steps: int
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    accumulate: int = 1
    seed: int = 0
    intervals: Intervals = field(default_factory=Intervals)
    numerics: Numerics = field(default_factory=Numerics)
    retention: Retention = field(default_factory=Retention)
    average: AverageOptions | None = None

    def __post_init__(self) -> None:
        _check(
            "stage",
            self,
            {
                "name": (bool(self.name), "a name"),
                "steps": (self.steps >= 1, "an integer >= 1"),
                "accumulate": (self.accumulate >= 1, "an integer >= 1"),
                "seed": (0 <= self.seed < 2**32, "an integer in [0, 2^32)"),
            },
        )
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(
                f"optimizer.warmup_steps: expected at most stage.steps = {self.steps}, "
                f"got {self.optimizer.warmup_steps}"
            )
