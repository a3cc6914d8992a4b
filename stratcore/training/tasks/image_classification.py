"""Training a classifier of images. Legend: N images, B images of a batch, C classes, O embedding size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from stratcore.data.images import ImageTable
from stratcore.models.arbitration_vit import ArbitrationViT
from stratcore.models.dual_stream_vit import DualStreamViT, DualStreamViTOutput
from stratcore.models.plain_vit import PlainViT
from stratcore.training.anchors import AnchorRevival
from stratcore.training.augmentation import AugmentationOptions, mixed, random_views
from stratcore.training.distributed import Runtime
from stratcore.training.gal import GALAlignment, GALOptions, gal_loss
from stratcore.training.health import embedding_health, gradient_health, precision_gap
from stratcore.training.image_objective import (
    ImageObjectiveOptions,
    classification_loss,
    expert_loss,
    pair_loss,
    shape_terms,
)
from stratcore.training.mastery import Mastery, MasteryOptions
from stratcore.training.optimizer import ParameterGroups
from stratcore.training.riemannian_adam import SPHERE
from stratcore.training.task import StepResult

ImageModel = DualStreamViT | PlainViT | ArbitrationViT
EVALUATION_BATCH = 1024
SCAN_ROWS = 2000
CONTROL_LIMIT = 5000


def predict_images(model: nn.Module, images: Tensor) -> DualStreamViTOutput:
    """Output of a model for uint8 images [N, C, H, W], in parts, without simplices and distances."""
    found = [model(part) for part in images.split(EVALUATION_BATCH)]
    logits, embedding = (
        torch.cat([getattr(each, name) for each in found]) for name in ("logits", "embedding")
    )
    rest: dict[str, Any] = {}
    for name in ("geometric_logits", "geometric_embedding", "nearest"):
        parts = [getattr(each, name) for each in found]
        rest[name] = None if parts[0] is None else torch.cat(parts)
    return DualStreamViTOutput(logits, embedding, **rest)


class ImageClassificationTask:
    """Loss, metrics, mastery queue and anchor revival of an image classifier; all images stay on the device.

    Args:
        model: at its start, with its pixels' scale.
        train: images to learn from.
        validation: images to evaluate.
        runtime: rank and device; one process.
        objective: what is minimized.
        augmentation: of the training images.
        batch_size: images a step.
        seed: of the order of images.
        mastery: of the queue, where the objective has it.
        gal: of the anchors' alignment and the simplices, where the objective has it.
        control: images of the training split that are not learnt from, for the queue's controller; None: none.
        test: images that no evaluation during training reads; None: none.
        scan_every: steps between two health scans, which ride on evaluations; 0: never.
    """

    capturable = True

    def __init__(
        self,
        model: ImageModel,
        train: ImageTable,
        validation: ImageTable,
        runtime: Runtime,
        *,
        objective: ImageObjectiveOptions,
        augmentation: AugmentationOptions,
        batch_size: int,
        seed: int,
        mastery: MasteryOptions | None = None,
        gal: GALOptions | None = None,
        control: ImageTable | None = None,
        test: ImageTable | None = None,
        scan_every: int = 0,
    ) -> None:
        if runtime.world_size > 1:
            raise ValueError(f"images: expected one process, got {runtime.world_size}")
        if not 1 <= batch_size <= train.num_images:
            raise ValueError(
                f"batch_size: expected a number in [1, {train.num_images}] training images, got {batch_size}"
            )
        if augmentation.mixes and objective.views == 2:
            raise ValueError("augmentation.mixup, cutmix: expected 0 with two views (objective.views)")
        self.model, self._device = model, runtime.device
        given = {"train": train, "validation": validation, "control": control, "test": test}
        tables = {name: table for name, table in given.items() if table is not None}
        self._images = {
            name: torch.from_numpy(table.images).to(self._device) for name, table in tables.items()
        }
        self._labels = {
            name: torch.from_numpy(table.label).to(self._device) for name, table in tables.items()
        }
        self._num_classes = len(train.label_names)
        self._objective, self._augmentation = objective, augmentation
        self._batch_size, self._seed = batch_size, seed
        self._scan_every, self._step = scan_every, 0
        self._recent: Tensor | None = None
        self._mastery: Mastery | None = None
        if objective.mastery:
            self._mastery = Mastery(mastery or MasteryOptions(), model.embedding_dim, self._device)
        self._gal = gal or GALOptions()
        self._alignment: GALAlignment | None = None
        if objective.gal:
            classes = self._num_classes
            self._alignment = GALAlignment(self._gal, model.embedding_dim, classes, self._device)
        anchors = model.anchors
        self._revival = (
            AnchorRevival(anchors.shape[0], self._device)
            if objective.revive_every and anchors is not None
            else None
        )

    @property
    def capture_key(self) -> int:
        """Places of the mastery queue: a graph is of one size."""
        return 0 if self._mastery is None else self._mastery.queue.capacity

    def parameter_groups(self) -> ParameterGroups:
        """Matrices, with weight decay; vectors, positions and anchors without, these as points on the sphere."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        anchors: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if name.endswith(".anchors"):
                anchors.append(parameter)
            else:
                fixed = parameter.squeeze().ndim < 2 or name.endswith(".position")
                (free if fixed else decayed).append(parameter)
        groups: ParameterGroups = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        if anchors:
            groups.append({"params": anchors, "weight_decay": 0.0, "manifold": SPHERE})
        return groups

    def batches(self, epoch: int, start: int) -> Iterator[Tensor]:
        """Numbers of the images of each step; the last, smaller batch of an epoch is left out."""
        count = self._labels["train"].shape[0]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator).to(self._device)
        for index in range(start, count // self._batch_size):
            yield order[index * self._batch_size : (index + 1) * self._batch_size]

    def step(self, model: nn.Module, batch: Tensor, micro: int) -> StepResult:
        """Loss of augmented views of the images with these numbers."""
        views = [
            random_views(self._images["train"], batch, self._augmentation)
            for _ in range(self._objective.views)
        ]
        labels_B = self._labels["train"][batch].repeat(self._objective.views)
        targets_BC = one_hot(labels_B, self._num_classes).float()
        images, targets_BC = mixed(torch.cat(views), targets_BC, self._augmentation)
        output: DualStreamViTOutput = model(images)
        with torch.autocast(self._device.type, enabled=False):
            loss, metrics = self._loss(output, labels_B, targets_BC)
        if self._revival is not None and output.nearest is not None:
            self._revival.note(output.nearest)
            self._recent = output.embedding.detach()
        if self._alignment is not None:
            assert output.standard_embedding is not None
            self._alignment.note(output.standard_embedding, labels_B)
        weight = loss.new_full((), batch.shape[0])
        return StepResult(loss_sum=loss * weight, weight=weight, metrics=metrics)

    def _loss(
        self,
        output: DualStreamViTOutput,
        labels_B: Tensor,
        targets_BC: Tensor,
        *,
        learning: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what is reported; `learning`: the mastery queue sees the batch."""
        options = self._objective
        terms = {"classification": classification_loss(output.logits, targets_BC, options)}
        figures = {"accuracy": (output.logits.detach().argmax(-1) == labels_B).float().mean()}
        if options.geometric and output.geometric_logits is not None:
            terms["geometric"] = classification_loss(output.geometric_logits, targets_BC, options)
        if options.info_nce or self._mastery is not None:
            pairs = pair_loss(output, options)
            figures["info_nce_accuracy"] = pairs.accuracy
            if self._mastery is not None and learning:
                terms["mastery"] = self._master(output.embedding, labels_B, pairs.accuracy, figures)
            if options.info_nce:
                off = 0.0 if options.info_nce_with_mastery else figures.get("mastery_active", 0.0)
                terms["info_nce"] = pairs.loss * (1 - off)
        if options.experts and output.expert_logits:
            terms["experts"] = expert_loss(output, targets_BC, options)
        if options.gal and output.standard_embedding is not None:
            terms["gal"] = gal_loss(output.embedding, output.standard_embedding, self._gal)
        terms |= shape_terms(output, labels_B, self.model.anchors, options)
        if "cv_value" in terms:
            figures["cv_value"] = terms.pop("cv_value")
        weights = {name: 1.0 if name == "classification" else getattr(options, name) for name in terms}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return loss, {name: value.detach() for name, value in (terms | figures).items()}

    def _master(
        self, embeddings_BO: Tensor, labels_B: Tensor, accuracy: Tensor, figures: dict[str, Tensor]
    ) -> Tensor:
        assert self._mastery is not None
        self._mastery.observe(accuracy)
        found = self._mastery(embeddings_BO, labels_B)
        figures |= {
            "hard_negative": found.negative,
            "hard_positive": found.positive,
            "mastery_active": found.active,
            "margin": self._mastery.margin(),
        }
        return found.loss

    def after_step(self, step: int) -> None:
        """From time to time, unused anchors go to where rows are, and all turn towards the experts' classes."""
        self._step = step
        if self._alignment is not None and self.model.anchors is not None:
            self._alignment.after_step(step, self.model.anchors)
        if self._revival is not None and step % self._objective.revive_every == 0:
            anchors = self.model.anchors
            assert self._recent is not None and anchors is not None
            self._revival.revive(anchors, self._recent)

    @torch.no_grad()
    def predict(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> tuple[DualStreamViTOutput, Tensor]:
        """Output, without simplices and distances, and labels of a split's first images, in their order."""
        return predict_images(model, self._images[split][:limit]), self._labels[split][:limit]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Accuracy and negative log-likelihood, by the whole and by the geometric stream alone.

        The split `control` has, beside its accuracy, that on as many training images. A health scan that is due comes
        with the split `validation`.
        """
        if split == "control":
            count = min(CONTROL_LIMIT, self._labels.get("control", self._labels["validation"]).shape[0])
            pairs = {"accuracy": "control", "train_accuracy": "train"}
            return {name: self._accuracy(model, part, count) for name, part in pairs.items()}
        output, labels_N = self.predict(model, split)
        metrics = {
            "accuracy": _accuracy(output.logits, labels_N),
            "nll": float(cross_entropy(output.logits, labels_N)),
        }
        if output.geometric_logits is not None:
            metrics["geometric_accuracy"] = _accuracy(output.geometric_logits, labels_N)
        anchors = self.model.anchors
        if output.nearest is not None and anchors is not None:
            used = torch.bincount(output.nearest.flatten(), minlength=anchors.shape[0]) > 0
            metrics["anchors_in_use"] = float(used.float().mean())
        if self._scan_every and self._step % self._scan_every == 0:
            metrics |= {f"health/{name}": value for name, value in self.scan(model, split).items()}
        return metrics

    def _accuracy(self, model: nn.Module, split: str, count: int) -> float:
        output, labels_N = self.predict(model, split, count)
        return _accuracy(output.logits, labels_N)

    def scan(self, model: nn.Module, split: str) -> dict[str, float]:
        """Geometry of the embeddings, bfloat16 against float32, and how the gradient of a batch is shared."""
        output, labels_N = self.predict(model, split, SCAN_ROWS)
        found = embedding_health(output.embedding, labels_N, self.model.anchors)

        def read() -> tuple[Tensor, Tensor]:
            part = model(self._images[split][:256])
            return part.logits, part.embedding

        def loss() -> Tensor:
            rows, views = slice(0, self._batch_size), self._objective.views
            labels_B = self._labels["train"][rows].repeat(views)
            targets_BC = one_hot(labels_B, self._num_classes).float()
            part = model(self._images["train"][rows].repeat(views, 1, 1, 1))
            with torch.autocast(self._device.type, enabled=False):
                return self._loss(part, labels_B, targets_BC, learning=False)[0]

        found |= precision_gap(read, self._device.type)
        return found | gradient_health(self.model, loss)

    def after_control(self, metrics: dict[str, float]) -> None:
        """The mastery queue grows or shrinks by the gap on held-out training images."""
        if self._mastery is not None:
            self._mastery.control(metrics["train_accuracy"], metrics["accuracy"])

    def state_dict(self) -> dict[str, Any]:
        """Mastery, anchor counts, the step."""
        parts = {"mastery": self._mastery, "revival": self._revival, "alignment": self._alignment}
        return {"step": self._step} | {
            name: part.state_dict() for name, part in parts.items() if part is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over `state_dict`."""
        self._step = state["step"]
        if self._mastery is not None:
            self._mastery.load_state_dict(state["mastery"])
        if self._revival is not None:
            self._revival.load_state_dict(state["revival"])
        if self._alignment is not None:
            self._alignment.load_state_dict(state["alignment"])


def _accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    return float((logits_NC.argmax(-1) == labels_N).double().mean())
