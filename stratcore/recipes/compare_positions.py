"""Encodings of position against each other on tasks with a period, over paired seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from stratcore.data.periodic_fields import AdvectionDiffusionOptions
from stratcore.data.periodic_series import DayWeekOptions
from stratcore.models.sequence_transformer import POSITIONS
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.task import Intervals, Numerics, Retention, Stage

TASKS = {
    "ring_copy": "copy around a ring",
    "ring_copy_seam": "copy around a ring, seam avoided in training",
    "next_mark": "next mark on a ring",
    "next_mark_seam": "next mark on a ring, seam avoided in training",
    "advection_diffusion": "advection and diffusion on a torus",
    "day_week": "series with a day and a week",
    "bytes": "bytes of text",
}
TORUS = "torus"
DEFAULT_ROPE_BASE = 10_000.0
ROPE, WITH_SLOPES = ("rope", "rope_axial"), ("open", "torus")
RIVALS = ("rope", "alibi", "t5", "rope_axial", "alibi_axial", "t5_axial")
DEFAULT_TASKS = ("ring_copy", "ring_copy_seam", "next_mark_seam", "advection_diffusion", "day_week")
TWO_AXES = ("advection_diffusion", "day_week")


@dataclass(frozen=True, kw_only=True)
class PeriodicTaskOptions:
    """Sizes of the tasks.

    Args:
        sites: of the rings.
        symbols: labels on the rings.
        reach: most steps of an instruction to copy.
        density: share of sites with a mark.
        advection: advection and diffusion of fields.
        series: those with a day and a week.
        text: file or folder that task 'bytes' reads; 'python': the sources of Python's standard library.
        text_bytes: most of it; None: all.
        window: bytes of a sequence.
    """

    sites: int = 32
    symbols: int = 8
    reach: int = 8
    density: float = 0.25
    advection: AdvectionDiffusionOptions = field(default_factory=AdvectionDiffusionOptions)
    series: DayWeekOptions = field(default_factory=DayWeekOptions)
    text: Path = Path("python")
    text_bytes: int | None = None
    window: int = 512


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Size of the models of a task, and how they are trained.

    Args:
        dim: channels of a token.
        num_layers: blocks.
        num_heads: of every attention.
        batch_size: sequences a step.
        evaluation_sequences: of each evaluation, a multiple of `batch_size`.
        learning_rates: every arm is trained with all of them on the tuning seeds, and takes the one with the least
            mean validation loss.
        stage: steps, optimizer and arithmetic of every arm.
    """

    dim: int
    num_layers: int
    num_heads: int
    batch_size: int
    evaluation_sequences: int
    learning_rates: tuple[float, ...]
    stage: Stage

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "num_heads", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        if self.evaluation_sequences < 1 or self.evaluation_sequences % self.batch_size:
            raise ValueError(
                f"evaluation_sequences: expected a multiple of batch_size = {self.batch_size}, "
                f"got {self.evaluation_sequences}"
            )
        if not self.learning_rates or not all(0 < rate < 1 for rate in self.learning_rates):
            raise ValueError(f"learning_rates: expected numbers in (0, 1), got {self.learning_rates}")
        if self.stage.seed:
            raise ValueError(f"stage.seed: expected 0, the key seeds is used; got {self.stage.seed}")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tuned: the learning rate, the base of RoPE and the start of slopes; other arms ignore these."""

    learning_rate: float
    rope_base: float
    slope: float | None

    def words(self, arm: str) -> str:
        """The setting, as far as it has a meaning for an arm."""
        if arm in ROPE:
            return f"{self.learning_rate:g}, base {self.rope_base:g}"
        if arm in WITH_SLOPES:
            return f"{self.learning_rate:g}, slopes {'ALiBi' if self.slope is None else f'{self.slope:g}'}"
        return f"{self.learning_rate:g}"


@dataclass(frozen=True, kw_only=True)
class ComparePositionsRun:
    """Train the same transformer with every encoding of position on every task for the same steps; compare by pairs.

    Args:
        recipe: name of the recipe that this run is derived from.
        tasks: of the known ones.
        arms: encodings of position; axial ones only take part in tasks on two axes. The torus, which is compared with
            the others, is always among them.
        seeds: each starts the weights, alike for all arms, and draws all sequences. Fewer than eight cannot show a
            difference after the correction for five tasks.
        tuning_seeds: so many of the first seeds are trained with every learning rate.
        rope_bases: of the rotary frequencies of RoPE; its arms are tuned over these too, as a short axis wants faster
            ones than a text.
        slope_starts: what the learned slopes of the torus start from, also cut open; these arms are tuned over them,
            so that they have as many settings as RoPE. None: the slopes of ALiBi.
        margin: share of the best rival's loss by which the torus is to be below it.
        data: sizes of the tasks.
        small: models of all tasks but 'bytes'.
        bytes: models of task 'bytes'.
        rollout: steps for which fields are carried on by the model's own answers.
        workers: trials at a time, each in a process of its own on the same device.
        device: 'auto' (a GPU if there is one), 'cpu' or 'cuda'.
    """

    recipe: str = "compare_positions"
    tasks: tuple[str, ...] = DEFAULT_TASKS
    arms: tuple[str, ...] = tuple(POSITIONS)
    seeds: tuple[int, ...] = tuple(range(8))
    tuning_seeds: int = 1
    rope_bases: tuple[float, ...] = (10_000.0, 100.0, 10.0)
    slope_starts: tuple[float | None, ...] = (None, 0.1, 0.01)
    margin: float = 0.2
    data: PeriodicTaskOptions = field(default_factory=PeriodicTaskOptions)
    small: ArmOptions
    bytes: ArmOptions
    rollout: int = 8
    workers: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, known in (("tasks", TASKS), ("arms", POSITIONS)):
            given = getattr(self, name)
            unknown = [each for each in given if each not in known]
            if unknown or not given or len(set(given)) != len(given):
                wrong = repr(unknown[0]) if unknown else given
                raise ValueError(f"{name}: expected different ones of {', '.join(known)}, got {wrong}")
        if TORUS not in self.arms or not set(RIVALS[:3]) & set(self.arms):
            raise ValueError(f"arms: expected 'torus' and one of rope, alibi and t5, got {self.arms}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers >= 0, got {self.seeds}")
        if not 1 <= self.tuning_seeds <= len(self.seeds):
            raise ValueError(
                f"tuning_seeds: expected a number in [1, {len(self.seeds)}], got {self.tuning_seeds}"
            )
        if not self.rope_bases or not all(base > 1 for base in self.rope_bases):
            raise ValueError(f"rope_bases: expected numbers > 1, got {self.rope_bases}")
        if not self.slope_starts or not all(start is None or start > 0 for start in self.slope_starts):
            raise ValueError(f"slope_starts: expected numbers > 0 or None, got {self.slope_starts}")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin: expected a share in (0, 1), got {self.margin}")
        for name in ("rollout", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")

    def arms_of(self, task: str) -> tuple[str, ...]:
        """Arms that take part in a task, in the order of `POSITIONS`."""
        axial = task in TWO_AXES
        return tuple(arm for arm in POSITIONS if arm in self.arms and (axial or not arm.endswith("_axial")))

    def settings_of(self, task: str, arm: str) -> tuple[Setting, ...]:
        """What an arm is tuned over."""
        bases = self.rope_bases if arm in ROPE else (DEFAULT_ROPE_BASE,)
        slopes = self.slope_starts if arm in WITH_SLOPES else (None,)
        return tuple(
            Setting(learning_rate=rate, rope_base=base, slope=slope)
            for rate in self.size_of(task).learning_rates
            for base in bases
            for slope in slopes
        )

    def size_of(self, task: str) -> ArmOptions:
        """Models and training of a task."""
        return self.bytes if task == "bytes" else self.small


def _stage(steps: int, warmup_steps: int, precision: str) -> Stage:
    return Stage(
        steps=steps,
        optimizer=OptimizerOptions(
            betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=warmup_steps, schedule="cosine", clip_norm=1.0
        ),
        intervals=Intervals(log_every=steps // 10, eval_every=steps // 10),
        numerics=Numerics(precision=precision),  # type: ignore[arg-type]
        retention=Retention(save_total_limit=1),
    )


def compare_positions() -> ComparePositionsRun:
    """Torus against RoPE, ALiBi and T5 bias on rings, periodic fields, series with a day and a week, and bytes."""
    return ComparePositionsRun(
        small=ArmOptions(
            dim=128,
            num_layers=2,
            num_heads=4,
            batch_size=32,
            evaluation_sequences=512,
            learning_rates=(1e-3, 3e-3),
            stage=_stage(1500, 100, "fp32"),
        ),
        bytes=ArmOptions(
            dim=384,
            num_layers=6,
            num_heads=6,
            batch_size=32,
            evaluation_sequences=256,
            learning_rates=(1e-3, 2e-3),
            stage=_stage(600, 60, "bf16"),
        ),
    )
