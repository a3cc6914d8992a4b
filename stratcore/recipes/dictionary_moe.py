"""Dictionary mixtures over embeddings: the run's options and its recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stratcore.models.dictionary_moe import DictionaryMoEOptions
from stratcore.recipes.rows import RowOptions
from stratcore.training.optimizer import OptimizerOptions
from stratcore.training.task import Intervals, Retention, Stage
from stratcore.training.tasks.dictionary_moe import ObjectiveOptions

METRICS = ("fvu", "fvu_gate", "fvu_best_expert", "fvu_mixture", "cost")


@dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions):
    """Which rows, and how they reach the model.

    Args:
        reduce: reduce to the model's input size by a PCA fitted on the training rows.
        fractions: shares of training, validation and test rows, drawn within each domain.
    """

    reduce: bool = True
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder is not None and not self.texts:
            raise ValueError("data.texts: expected the text sets that data.encoder embeds, got none")
        if not all(share > 0 for share in self.fractions) or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"data.fractions: expected three shares > 0 that sum to 1, got {self.fractions}")


@dataclass(frozen=True, kw_only=True)
class DictionaryMoERun:
    """A complete run: train a dictionary mixture on embeddings, compare it, report.

    Args:
        recipe: name of the recipe that this run is derived from.
        seed: of the split, the start weights and the order of rows.
        device: 'auto', 'cpu' or 'cuda'.
        batch_size: rows a step, over all ranks.
        start: 'subspaces': every expert starts on a cluster of subspace clustering; 'random': random atoms.
        baselines: train single TopK dictionaries of equal active FLOPs and of equal parameters beside it.
        data: rows.
        model: architecture; its input_dim is the size of the rows after the reduction.
        objective: loss.
        stage: optimizer, steps, evaluation, checkpoints.
    """

    recipe: str = "dictionary_moe"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = 256
    start: Literal["subspaces", "random"] = "subspaces"
    baselines: bool = True
    data: DataOptions = field(default_factory=DataOptions)
    model: DictionaryMoEOptions
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    stage: Stage

    def __post_init__(self) -> None:
        if self.objective.contrastive and self.model.head is None:
            raise ValueError("objective.contrastive: expected 0 where model.head is null")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected a number >= 1, got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {self.seed}")
        if self.stage.seed:
            raise ValueError(f"stage.seed: expected 0, the run's own seed is used; got {self.stage.seed}")
        best = self.stage.retention.best_metric
        if best is not None and best not in METRICS:
            raise ValueError(
                f"stage.retention.best_metric: expected one of {', '.join(METRICS)} or null, got {best!r}"
            )


def dictionary_moe() -> DictionaryMoERun:
    """Seven experts of 256 atoms with 8 to 32 active ones, trained as a mixture, on the bundled embeddings."""
    return DictionaryMoERun(
        recipe="dictionary_moe",
        model=DictionaryMoEOptions(input_dim=64, tied=True, backward="masked", candidates=4, rate=1.0),
        objective=ObjectiveOptions(
            kind="mixture", balance=0.01, noise=0.3, step_lr_scale=2.0, revive_every=50, revive_until=300
        ),
        stage=Stage(
            steps=400,
            optimizer=OptimizerOptions(
                name="adam", lr=1e-2, betas=(0.9, 0.99), schedule="cosine", clip_norm=1.0
            ),
            intervals=Intervals(log_every=20, eval_every=50, save_every=100),
            retention=Retention(best_metric="fvu"),
        ),
    )


def dictionary_moe_seed() -> DictionaryMoERun:
    """The configuration of the source documents, with gate and dictionaries really trained.

    Seven experts of 32 atoms on 64 principal components, query size 128, five layers without a soft threshold,
    the expert of lowest sparsity among those with at least half of the largest probability, contrastive loss of
    margin 1 on a head over the code, Adam at 1e-3, batches of 8, 30 epochs of the bundled training rows. Their
    code gives the gate and the dictionaries no gradient; the expected squared residual is what trains both here.
    """
    steps_per_epoch = 2450 // 8
    return DictionaryMoERun(
        recipe="dictionary_moe_seed",
        batch_size=8,
        start="random",
        model=DictionaryMoEOptions(
            input_dim=64,
            atoms=32,
            num_steps=4,
            form="classic",
            per_step=True,
            threshold=None,
            centers=False,
            energy_rank=0,
            selection="threshold",
            candidates=1,
            rate=0.0,
            head=(32, 64),
        ),
        objective=ObjectiveOptions(kind="expected", contrastive=1.0, margin=1.0),
        stage=Stage(
            steps=30 * steps_per_epoch,
            optimizer=OptimizerOptions(name="adam", lr=1e-3),
            intervals=Intervals(
                log_every=steps_per_epoch, eval_every=2 * steps_per_epoch, save_every=12 * steps_per_epoch
            ),
            retention=Retention(best_metric="fvu", save_total_limit=None),
        ),
    )
