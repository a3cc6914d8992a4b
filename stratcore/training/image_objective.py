"""What a classifier of images minimizes: classification, and what is asked of its embeddings, anchors, simplices.

Legend: B images of all views, C classes, O embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from stratcore.layers.simplex import cm_barrier, measured, regularity_loss
from stratcore.layers.simplex_cv import SimplexCVOptions, anchor_cv_loss, dual_cv_loss
from stratcore.models.dual_stream_vit import DualStreamViTOutput
from stratcore.ops import SimplexMeasures
from stratcore.training import embedding_losses as losses
from stratcore.training.embedding_losses import InfoNCE

CLASSIFICATIONS = ("bce", "cross_entropy")
PAIRINGS = ("joint", "geometric", "cross")
CM_RULES = ("barrier", "regularity", "validity")
CV_SUBJECTS = ("both", "geometric")
WEIGHTS = (
    "geometric", "info_nce", "mastery", "diversity", "cv", "anchor_cv", "cm", "spread", "usage", "experts", "gal",
)  # fmt: skip
TWO_VIEWS = ("info_nce", "mastery")
LEAST_VOLUME = 0.1 * math.sqrt(5) / 96  # a tenth of the template's volume


@dataclass(frozen=True, kw_only=True)
class ImageObjectiveOptions:
    """Terms of the loss, each with its weight; a term of weight 0 is not computed.

    Args:
        classification: 'bce': one sigmoid a class (source documents), or 'cross_entropy'. Its weight is 1.
        smoothing: of the labels.
        views: augmented views of each image in a step, 1 or 2.
        geometric: binary cross-entropy of the geometric stream's own classifier.
        info_nce: two views of one image find each other.
        info_nce_pairs: 'joint': of the joint embedding. 'geometric': of the geometric one (with
            `model.decouple`: run 11). 'cross': the geometric one of a view and the standard one of the other.
        info_nce_symmetric: both directions; False: one, as in the source documents.
        info_nce_with_mastery: go on with InfoNCE once mastery has begun (False: run 9).
        temperature: of InfoNCE.
        mastery: hardest pairs of batch and queue.
        diversity: rows of one class do not fall onto a point, in the geometric embedding.
        cv: the coefficient of variation (CV) of simplex volumes is driven to a target.
        cv_of: 'both': the joint and the geometric embedding; 'geometric': that alone.
        cv_target: the CV aimed at; None: that of uniform points in `cv_dim` dimensions.
        cv_dim: effective dimension aimed at; None with a None target: all dimensions of the embedding.
        cv_source_sampling: 64 simplices of the first 512 rows, as in the source documents.
        anchor_cv: likewise of the anchors.
        cm: shape of the tokens' simplices.
        cm_rule: 'barrier': their volume is not below a tenth of the template's. 'regularity': they are regular.
            'validity': the source documents' max(0, -V^2), which is 0 for real points, always.
        spread: anchors are not closer than 90 degrees.
        usage: rows share the anchors evenly, each surely one.
        usage_temperature: of the soft counts for it.
        experts: towers' own classifiers: binary cross-entropy of the first, cross-entropy of the rest.
        gal: the geometric embedding keeps the shape of the experts' (`training.gal`).
        revive_every: steps between moves of unused anchors onto rows; 0: never.
    """

    classification: str = "bce"
    smoothing: float = 0.1
    views: int = 2
    geometric: float = 0.0
    info_nce: float = 0.0
    info_nce_pairs: str = "joint"
    info_nce_symmetric: bool = True
    info_nce_with_mastery: bool = True
    temperature: float = 0.07
    mastery: float = 0.0
    diversity: float = 0.0
    cv: float = 0.0
    cv_of: str = "both"
    cv_target: float | None = None
    cv_dim: int | None = None
    cv_source_sampling: bool = False
    anchor_cv: float = 0.0
    cm: float = 0.0
    cm_rule: str = "barrier"
    spread: float = 0.0
    usage: float = 0.0
    usage_temperature: float = 0.1
    experts: float = 0.0
    gal: float = 0.0
    revive_every: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("classification", CLASSIFICATIONS),
            ("info_nce_pairs", PAIRINGS),
            ("cm_rule", CM_RULES),
            ("cv_of", CV_SUBJECTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"objective.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in (*WEIGHTS, "revive_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"objective.{name}: expected a number >= 0, got {getattr(self, name)}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"objective.smoothing: expected a share in [0, 1), got {self.smoothing}")
        if not (self.temperature > 0 and self.usage_temperature > 0):
            raise ValueError(
                "objective.temperature, usage_temperature: expected numbers > 0, got "
                f"{self.temperature} and {self.usage_temperature}"
            )
        if self.views not in (1, 2):
            raise ValueError(f"objective.views: expected 1 or 2, got {self.views}")
        lone = [name for name in TWO_VIEWS if getattr(self, name) and self.views == 1]
        if lone:
            raise ValueError(f"objective.{lone[0]}: expected 0 with one view, got {getattr(self, lone[0])}")
        _ = self.cv_options

    @property
    def cv_options(self) -> SimplexCVOptions:
        """Sampling and target of the CV."""
        if self.cv_source_sampling:
            return SimplexCVOptions.of_source_documents(0.2 if self.cv_target is None else self.cv_target)
        return SimplexCVOptions(target=self.cv_target, target_dim=self.cv_dim)


def classification_loss(logits_BC: Tensor, targets_BC: Tensor, options: ImageObjectiveOptions) -> Tensor:
    """Mean over images of the loss of logits against shares of classes."""
    if options.classification == "bce":
        return losses.smoothed_bce(logits_BC, targets_BC, options.smoothing)
    return cross_entropy(logits_BC, targets_BC, label_smoothing=options.smoothing)


def expert_loss(output: DualStreamViTOutput, targets_BC: Tensor, options: ImageObjectiveOptions) -> Tensor:
    """Sum of the experts' own losses: sigmoids for the first, a softmax for the others."""
    first, *rest = output.expert_logits
    losses_of = [losses.smoothed_bce(first, targets_BC, options.smoothing)]
    losses_of += [cross_entropy(each, targets_BC, label_smoothing=options.smoothing) for each in rest]
    return torch.stack(losses_of).sum()


def pair_loss(output: DualStreamViTOutput, options: ImageObjectiveOptions) -> InfoNCE:
    """InfoNCE of the two views in a batch, the first half against the second."""
    geometric, standard = output.geometric_embedding, output.standard_embedding
    if options.info_nce_pairs == "cross":
        assert geometric is not None and standard is not None
        (g1, g2), (s1, s2) = geometric.chunk(2), standard.chunk(2)
        return losses.cross_info_nce((g1, g2), (s1, s2), options.temperature)
    z = output.embedding if options.info_nce_pairs == "joint" else geometric
    assert z is not None
    first, second = z.chunk(2)
    return losses.info_nce(first, second, options.temperature, symmetric=options.info_nce_symmetric)


def shape_terms(
    output: DualStreamViTOutput,
    labels_B: Tensor,
    anchors_AO: Tensor | None,
    options: ImageObjectiveOptions,
) -> dict[str, Tensor]:
    """Terms of weight > 0 that need neither logits nor pairs of views, by name."""
    terms: dict[str, Tensor] = {}
    geometric = output.geometric_embedding
    if options.diversity and geometric is not None:
        classes = output.logits.shape[-1]
        terms["diversity"] = losses.class_diversity(geometric, labels_B, classes)
    if options.cv:
        own = [] if options.cv_of == "geometric" else [output.embedding]
        own += [] if geometric is None else [geometric]
        found = dual_cv_loss(own, options.cv_options)
        terms["cv"], terms["cv_value"] = found.loss, found.cv.mean()
    if options.cm and output.simplices:
        terms["cm"] = torch.stack([_cm(each, options.cm_rule) for each in output.simplices]).mean()
    if anchors_AO is not None and output.distance is not None:
        if options.anchor_cv:
            terms["anchor_cv"] = anchor_cv_loss(anchors_AO, options.cv_options).loss
        if options.spread:
            terms["spread"] = losses.anchor_spread(anchors_AO)
        if options.usage:
            terms["usage"] = losses.anchor_usage_loss(output.distance, options.usage_temperature)
    return terms


def _cm(simplices: SimplexMeasures, rule: str) -> Tensor:
    if rule == "barrier":
        return cm_barrier(simplices, LEAST_VOLUME)
    if rule == "regularity":
        return regularity_loss(simplices)
    return relu(-(2 * measured(simplices, "log_volume")[0]).exp()).mean()
