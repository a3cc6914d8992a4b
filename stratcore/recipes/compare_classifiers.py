"""Stratified classifiers against plain ones, matched perceptrons and frozen routers, over paired seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratcore.data import SplitOptions
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.task import Intervals, Numerics, Retention, Stage

VARIANTS = {
    "stratified_attention": "stratified attention",
    "token_routing": "token routing",
    "layer_processing": "layer processing",
    "stratified_moe": "stratified mixture of experts",
    "stratified_post_attention": "stratified post-attention block",
}
NEGATIVE_CONTROLS = {
    "geometric_regularization": "geometric regularization, signs put right",
    "geometric_regularization_source": "geometric regularization, signs of the source documents",
}
PLAIN = "plain"
SMALL = "small"


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Labelled texts and their split.

    Args:
        sets: names or files, see `stratcore.data.load_classification`.
        rows: drawn from each set of the hub, and made of each made-up set; None: all, and 8,000.
        labels: names that labels of files may have; None: those found.
        archives: folder of fetched packages; None: inside the run folder.
        split: sizes of the parts.
        max_length: tokens of a text; the rest is cut.
        allow_confounds: train although label and domain go together, or the like.
    """

    sets: tuple[str, ...] = ("sentiment",)
    rows: int | None = None
    labels: tuple[str, ...] | None = None
    archives: Path | None = None
    split: SplitOptions = field(default_factory=SplitOptions)
    max_length: int = 96
    allow_confounds: bool = False

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("data.sets: expected at least one set of labelled texts, got none")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"data.rows: expected a number >= 1 or None, got {self.rows}")
        if self.max_length < 4:
            raise ValueError(f"data.max_length: expected a number >= 4, got {self.max_length}")


@dataclass(frozen=True, kw_only=True)
class CompareClassifiersRun:
    """Train every arm from a fresh copy of the encoder on the same rows for the same steps; compare by pairs.

    Args:
        recipe: name of the recipe that this run is derived from.
        seeds: each splits the rows, starts every arm and orders its batches. Fewer than eleven cannot show a
            difference after the correction for all comparisons.
        variants: stratified blocks to try.
        matched_controls: beside every variant, a perceptron of as many parameters, and the variant with a frozen
            random router.
        negative_controls: try geometric regularization too, with both signs.
        learning_rates: of the encoder; every arm is trained with all of them on all seeds, and takes the one with the
            best mean validation accuracy.
        head_lr_scale: learning rate of what stands behind the encoder over that of the encoder.
        encoder: folder or hub name; 'small': two random blocks and a vocabulary of the texts' words, to be trained
            from the start; None: MiniLM, fetched with pip.
        num_strata: of every block.
        block_options: by variant, further options of its block.
        freeze_encoder: train only what stands behind it.
        margin: largest loss of accuracy, in points, that still counts as no loss.
        data: texts and splits.
        stage: steps, optimizer and arithmetic of every arm.
        batch_size: rows a step.
        workers: trials at a time, each in a process of its own on the same device.
        device: 'auto' (a GPU if there is one), 'cpu' or 'cuda'.
        reproduce_artefact: instead, run the procedure of the source document: one shared encoder for all arms, the
            first rows of label-sorted sets, 80 test rows, random start.
    """

    recipe: str = "compare_classifiers"
    seeds: tuple[int, ...] = tuple(range(12))
    variants: tuple[str, ...] = tuple(VARIANTS)
    matched_controls: bool = True
    negative_controls: bool = True
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4)
    head_lr_scale: float = 10.0
    encoder: str | None = None
    num_strata: int = 3
    block_options: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    freeze_encoder: bool = False
    margin: float = 0.5
    data: TextOptions = field(default_factory=TextOptions)
    stage: Stage
    batch_size: int = 64
    workers: int = 1
    device: str = "auto"
    reproduce_artefact: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds: expected different numbers >= 0, got {self.seeds}")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown:
            raise ValueError(f"variants: expected some of {', '.join(VARIANTS)}, got {unknown[0]!r}")
        if not self.variants and not self.negative_controls:
            raise ValueError(
                "variants: expected at least one, as without them and negative_controls nothing is compared"
            )
        if not self.learning_rates or not all(0 < rate < 1 for rate in self.learning_rates):
            raise ValueError(f"learning_rates: expected numbers in (0, 1), got {self.learning_rates}")
        strange = [name for name in self.block_options if name not in VARIANTS]
        if strange:
            raise ValueError(f"block_options: expected names of variants, got {strange[0]!r}")
        if self.stage.seed:
            raise ValueError(f"stage.seed: expected 0, the key seeds is used; got {self.stage.seed}")
        for name in ("num_strata", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")
        if not self.margin > 0:
            raise ValueError(f"margin: expected points > 0, got {self.margin}")

    def names(self) -> dict[str, str]:
        """Short names of the arms as controls."""
        short = {PLAIN: "plain"}
        for arm in self.arms():
            control = arm.partition("/")[2]
            short[arm] = {"mlp": "matched perceptron", "frozen": "frozen random router"}.get(control, arm)
        return short

    def arms(self) -> dict[str, str]:
        """Arms of the comparison by name, with a description."""
        arms = {PLAIN: "plain"}
        for variant in self.variants:
            arms[variant] = VARIANTS[variant]
            if self.matched_controls:
                arms[f"{variant}/mlp"] = f"perceptron as large as {VARIANTS[variant]}"
                arms[f"{variant}/frozen"] = f"{VARIANTS[variant]}, router frozen at random"
        return arms | (NEGATIVE_CONTROLS if self.negative_controls else {})

    def controls(self, arm: str) -> tuple[str, ...]:
        """Arms that an arm is compared with."""
        if arm in VARIANTS and self.matched_controls:
            return PLAIN, f"{arm}/mlp", f"{arm}/frozen"
        return () if arm == PLAIN else (PLAIN,)


def compare_classifiers() -> CompareClassifiersRun:
    """Stratified attention, routing, layers and experts on a pretrained encoder, against matched controls."""
    stage = Stage(
        steps=166,
        optimizer=OptimizerOptions(weight_decay=0.01, warmup_steps=16, schedule="linear", clip_norm=1.0),
        intervals=Intervals(log_every=83, eval_every=83),
        numerics=Numerics(precision="bf16", deterministic=True),
        retention=Retention(save_total_limit=1),
    )
    return CompareClassifiersRun(stage=stage)
