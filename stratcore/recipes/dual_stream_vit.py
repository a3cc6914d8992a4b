"""Image classifiers of two streams on a sphere: the run's options and the recipes worth using."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stratcore.models.dual_stream_vit_config import DualStreamViTOptions
from stratcore.training.augmentation import AugmentationOptions
from stratcore.training.averaging import AverageOptions
from stratcore.training.gal import GALOptions
from stratcore.training.image_objective import ImageObjectiveOptions
from stratcore.training.mastery import MasteryOptions
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.task import Intervals, Numerics, Retention, Stage

METRICS = ("accuracy", "nll", "geometric_accuracy", "anchors_in_use")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images, and how they are parted.

    Args:
        source: name or path, see `stratcore.data.load_images`.
        validation: share of the training images that evaluations read.
        control: share of them that the controller of the mastery queue reads.
        test: share of all images that is kept for the end, where the source keeps no test images apart.
        fit_model: channels, size and classes of the model are those of the images; False: other images are refused.
        test_source: name or path of images with the same classes and numbered things (emoji of another style): the
            model is tested on those of them that show things which it saw in no style; None: on images of `source`.
    """

    source: str = "cifar10"
    test_source: str | None = None
    validation: float = 0.05
    control: float = 0.05
    test: float = 0.2
    fit_model: bool = False

    def __post_init__(self) -> None:
        for name in ("validation", "control", "test"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"data.{name}: expected a share in (0, 0.5), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DualStreamViTRun:
    """A complete run: train an image classifier, test it once, report.

    Args:
        recipe: name of the recipe that this run is derived from.
        seed: of the parts, the start weights and the order of images.
        device: 'auto', 'cpu' or 'cuda'.
        batch_size: images a step; with two views the model sees twice as many.
        architecture: 'dual_stream', or 'plain': a plain vision transformer of as many parameters within 2 %, with the
            same tokenizer, in its place; it has no embeddings of streams, no anchors and no simplices, so that terms
            of the objective on these are not computed. 'arbitration': two experts and a geometric tower.
        warm_start: checkpoint, or run folder, whose weights are taken over where names and shapes agree.
        compile: the model goes through torch.compile.
        tensorboard: write event files too.
        scan_every: steps between health scans, at evaluations; 0: never.
        data: images.
        model: architecture.
        objective: loss.
        augmentation: of the training images.
        mastery: of the queue, where the objective has it.
        gal: of the anchors' alignment, where the objective has it.
        stage: optimizer, steps, evaluation, checkpoints.
    """

    recipe: str = "dual_stream_vit"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 512
    architecture: Literal["dual_stream", "plain", "arbitration"] = "dual_stream"
    warm_start: Path | None = None
    compile: bool = False
    tensorboard: bool = False
    scan_every: int = 0
    data: ImageOptions = field(default_factory=ImageOptions)
    model: DualStreamViTOptions
    objective: ImageObjectiveOptions = field(default_factory=ImageObjectiveOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    mastery: MasteryOptions = field(default_factory=MasteryOptions)
    gal: GALOptions = field(default_factory=GALOptions)
    stage: Stage

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.seed < 0 or self.scan_every < 0:
            raise ValueError(
                "batch_size, seed, scan_every: expected >= 1, >= 0 and >= 0, got "
                f"{self.batch_size}, {self.seed} and {self.scan_every}"
            )
        if self.batch_size * self.objective.views == 1 and self.model.embedding_norm == "batch":
            raise ValueError(
                "batch_size: expected at least 2 views a step for model.embedding_norm 'batch', got 1"
            )
        if self.stage.seed:
            raise ValueError(f"stage.seed: expected 0, the run's own seed is used; got {self.stage.seed}")
        best = self.stage.retention.best_metric
        if best is not None and best not in METRICS:
            raise ValueError(
                f"stage.retention.best_metric: expected one of {', '.join(METRICS)} or null, got {best!r}"
            )
        if self.augmentation.mixes and self.objective.views == 2:
            raise ValueError("augmentation.mixup, cutmix: expected 0 with two views (objective.views)")
        model, objective = self.model, self.objective
        if objective.gal and self.architecture != "arbitration":
            raise ValueError(
                f"objective.gal: expected 0 for architecture {self.architecture}, got {objective.gal}"
            )
        if objective.geometric and not model.geometric_classifier:
            raise ValueError("objective.geometric: expected 0 without model.geometric_classifier")
        pairs = objective.info_nce_pairs
        if pairs == "cross" and not model.bidirectional:
            raise ValueError(
                "objective.info_nce_pairs: expected joint or geometric with fused blocks, got 'cross'"
            )
        if not model.has_geometric_embedding and (pairs != "joint" or objective.cv_of == "geometric"):
            raise ValueError(
                "objective.info_nce_pairs, cv_of: expected joint and both without a geometric embedding"
            )


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Steps of so many epochs, the last, smaller batch of each left out."""
    return epochs * (images // batch_size)


def dual_stream_vit() -> DualStreamViTRun:
    """Convolutional tokenizer, two dual and two cross blocks, under 6.3 M parameters; Fashion-MNIST, CIFAR-10."""
    batch_size = 256
    epoch = 54_000 // batch_size
    steps = 60 * epoch
    return DualStreamViTRun(
        recipe="dual_stream_vit",
        batch_size=batch_size,
        compile=True,
        scan_every=20 * epoch,
        data=ImageOptions(source="fashion_mnist", fit_model=True),
        model=DualStreamViTOptions(
            tokenizer="convolution",
            tokenizer_width=48,
            embed_dim=192,
            qk_norm=True,
            num_fused_blocks=0,
            num_cross_blocks=2,
            geometric_classifier=True,
            pooling="attention",
            activation="squared_relu",
            anchor_init="repulsion",
            anchor_dropout=0.1,
            drop_path=0.1,
        ),
        objective=ImageObjectiveOptions(
            classification="cross_entropy", views=1, geometric=0.3, cm=0.01, spread=0.01, usage=0.02, revive_every=100
        ),  # fmt: skip
        augmentation=AugmentationOptions(
            crop=3, flip=0.5, contrast=0.2, brightness=0.1, erase=0.25, mixup=0.2, cutmix=1.0
        ),
        stage=Stage(
            steps=steps,
            optimizer=OptimizerOptions(
                lr=5e-4, weight_decay=0.05, warmup_steps=3 * epoch, schedule="cosine",
                final_lr_fraction=0.01, clip_norm=1.0,
            ),
            intervals=Intervals(log_every=epoch, eval_every=5 * epoch, save_every=20 * epoch),
            numerics=Numerics(precision="bf16", deterministic=False),
            retention=Retention(save_total_limit=1),
            average=AverageOptions(decay=0.9995),
        ),
    )  # fmt: skip


def dual_stream_vit_digits() -> DualStreamViTRun:
    """A small one for a quick look on a CPU: the 8 x 8 digits of scikit-learn, in a minute."""
    return DualStreamViTRun(
        recipe="dual_stream_vit_digits",
        batch_size=64,
        scan_every=200,
        data=ImageOptions(source="digits", fit_model=True),
        model=DualStreamViTOptions(
            image_size=8,
            channels=1,
            patch_size=2,
            tokenizer="convolution",
            tokenizer_width=16,
            embed_dim=32,
            stream_dim=32,
            num_heads=4,
            num_dual_blocks=1,
            num_cross_blocks=1,
            num_fused_blocks=0,
            geometric_classifier=True,
            pooling="attention",
            output_dim=32,
            num_anchors=32,
            num_compartments=4,
            compartment_dim=16,
        ),
        objective=ImageObjectiveOptions(
            classification="cross_entropy",
            views=1,
            geometric=0.3,
            cm=0.01,
            spread=0.01,
            usage=0.02,
            revive_every=50,
        ),  # fmt: skip
        augmentation=AugmentationOptions(crop=0, flip=0.0),
        stage=Stage(
            steps=400,
            optimizer=OptimizerOptions(
                lr=3e-3, weight_decay=0.05, warmup_steps=30, schedule="cosine", clip_norm=1.0
            ),
            intervals=Intervals(log_every=50, eval_every=100),
            retention=Retention(save_total_limit=1),
            average=AverageOptions(decay=0.99),
        ),
    )
