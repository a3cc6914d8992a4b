"""The trainer and what stands around it: options, checkpoints, metrics, ranks."""

from stratcore.training.averaging import AverageOptions, WeightAverage
from stratcore.training.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from stratcore.training.checkpoint_store import CheckpointStore, resolve_checkpoint
from stratcore.training.distributed import Runtime
from stratcore.training.finite_guard import NonFiniteError
from stratcore.training.interruption import TrainingInterrupted
from stratcore.training.metrics import MetricWriter
from stratcore.training.optimizer import OptimizerOptions, build_optimizer, build_schedule
from stratcore.training.random_state import (
    capture_random_state,
    deterministic_algorithms,
    restore_random_state,
    seed_everything,
)
from stratcore.training.riemannian_adam import RiemannianAdam
from stratcore.training.task import Batch, Intervals, Numerics, Retention, Stage, StepResult, Task
from stratcore.training.trainer import Result, Trainer

__all__ = [
    "AverageOptions",
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "Intervals",
    "MetricWriter",
    "NonFiniteError",
    "Numerics",
    "OptimizerOptions",
    "Result",
    "Retention",
    "RiemannianAdam",
    "Runtime",
    "Stage",
    "StepResult",
    "Task",
    "Trainer",
    "TrainingInterrupted",
    "WeightAverage",
    "build_optimizer",
    "build_schedule",
    "capture_random_state",
    "deterministic_algorithms",
    "open_checkpoint",
    "resolve_checkpoint",
    "restore_random_state",
    "seed_everything",
]
