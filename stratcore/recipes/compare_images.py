"""What geometry does for an image classifier: parts of it on and off, over paired seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stratcore.recipes.dual_stream_vit import DualStreamViTRun, dual_stream_vit

WHOLE, TWO_VIEWS = "whole", "two_views"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Words for an arm, the arm that it is compared with, and how it differs from the base run."""

    name: str
    control: str | None
    change: Callable[[DualStreamViTRun], DualStreamViTRun]


def _model(**changes: object) -> Callable[[DualStreamViTRun], DualStreamViTRun]:
    return lambda run: replace(run, model=replace(run.model, **changes))  # type: ignore[arg-type]


def _objective(**changes: object) -> Callable[[DualStreamViTRun], DualStreamViTRun]:
    return lambda run: replace(run, objective=replace(run.objective, **changes))  # type: ignore[arg-type]


def _without_anchors(run: DualStreamViTRun) -> DualStreamViTRun:
    model = replace(run.model, readout="perceptron", separation=0.0)
    return replace(run, model=model, objective=replace(run.objective, anchor_cv=0.0))


def _two_views(run: DualStreamViTRun, mastery: float = 0.0) -> DualStreamViTRun:
    """Half the images a step, seen twice; views cannot be mixed with other images."""
    objective = replace(run.objective, views=2, info_nce=0.5, mastery=mastery)
    augmentation = replace(run.augmentation, mixup=0.0, cutmix=0.0)
    return replace(run, batch_size=run.batch_size // 2, objective=objective, augmentation=augmentation)


def _plain(run: DualStreamViTRun) -> DualStreamViTRun:
    return replace(run, architecture="plain", objective=replace(run.objective, geometric=0.0))


ARMS = {
    WHOLE: Arm(name="whole model", control=None, change=lambda run: run),
    "plain": Arm(name="plain vision transformer", control=WHOLE, change=_plain),
    "no_simplices": Arm(
        name="perceptron in place of simplices", control=WHOLE, change=_model(channel="perceptron")
    ),
    "no_anchors": Arm(
        name="perceptron in place of the constellation", control=WHOLE, change=_without_anchors
    ),
    "radial_gradient": Arm(
        name="gradient of embeddings as it is", control=WHOLE, change=_model(tangential=0.0)
    ),
    "repel": Arm(
        name="gradient bent away from anchors",
        control=WHOLE,
        change=_model(separation=0.01, separation_sign="repel"),
    ),
    "attract": Arm(
        name="gradient bent towards anchors (published sign)",
        control=WHOLE,
        change=_model(separation=0.01, separation_sign="reference"),
    ),
    "no_balance": Arm(
        name="anchors neither spread nor balanced",
        control=WHOLE,
        change=_objective(spread=0.0, usage=0.0, revive_every=0),
    ),
    "cv": Arm(name="with the CV term", control=WHOLE, change=_objective(cv=0.1)),
    TWO_VIEWS: Arm(name="two views and InfoNCE", control=WHOLE, change=_two_views),
    "mastery": Arm(
        name="two views, InfoNCE and the mastery queue",
        control=TWO_VIEWS,
        change=lambda run: _two_views(run, mastery=1.0),
    ),
}


def base_run() -> DualStreamViTRun:
    """`dual_stream_vit` over 24 epochs of Fashion-MNIST in larger batches: under a minute on one GPU."""
    run = dual_stream_vit()
    batch_size, images = 512, 54_000
    epoch = images // batch_size
    optimizer = replace(run.stage.optimizer, lr=1e-3, warmup_steps=2 * epoch)
    intervals = replace(run.stage.intervals, log_every=epoch, eval_every=4 * epoch, save_every=0)
    stage = replace(run.stage, steps=24 * epoch, optimizer=optimizer, intervals=intervals)
    return replace(run, batch_size=batch_size, compile=False, scan_every=0, stage=stage)


@dataclass(frozen=True, kw_only=True)
class CompareImagesRun:
    """Train every arm from the same start settings on the same images for the same steps; compare by pairs.

    Args:
        recipe: name of the recipe that this run is derived from.
        base: run that every arm changes in its own way; its seed stays 0.
        arms: which to train; the controls of those that are asked for are among them.
        seeds: each parts the images, draws the start and orders the batches.
        strangers: image sets or paths that no arm learns from: how well are they told from test images?
        neighbors: of the nearest-neighbor probes.
        references: training images that they look among.
        margin: largest loss of accuracy, in points, that still counts as no loss.
        workers: trials at a time, each in a process of its own on the same device.
    """

    recipe: str = "compare_images"
    base: DualStreamViTRun = field(default_factory=base_run)
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = tuple(range(6))
    strangers: tuple[str, ...] = ()
    neighbors: int = 20
    references: int = 20_000
    margin: float = 0.5
    workers: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or len(set(self.arms)) != len(self.arms) or not self.arms:
            wrong = repr(unknown[0]) if unknown else self.arms
            raise ValueError(f"arms: expected different ones of {', '.join(ARMS)}, got {wrong}")
        for name in self.arms:
            control = ARMS[name].control
            if control is not None and control not in self.arms:
                raise ValueError(f"arms: expected {control!r}, the control of {name!r}, among them")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers >= 0, got {self.seeds}")
        if self.base.seed:
            raise ValueError(f"base.seed: expected 0, the key seeds is used; got {self.base.seed}")
        if self.base.architecture != "dual_stream" or self.base.objective.views != 1:
            raise ValueError("base: expected architecture dual_stream and one view (objective.views)")
        for name in ("neighbors", "references", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        if self.neighbors > self.references:
            raise ValueError(
                f"neighbors: expected at most references = {self.references}, got {self.neighbors}"
            )
        if not self.margin > 0:
            raise ValueError(f"margin: expected points > 0, got {self.margin}")

    def of(self, arm: str, seed: int) -> DualStreamViTRun:
        """The run of an arm."""
        return replace(ARMS[arm].change(self.base), seed=seed)

    def pairs(self) -> list[tuple[str, str]]:
        """Arms and their controls."""
        return [(name, ARMS[name].control or "") for name in self.arms if ARMS[name].control is not None]


def compare_images() -> CompareImagesRun:
    """Geometry of the dual-stream vision transformer on and off, against a plain one, over paired seeds."""
    return CompareImagesRun()
