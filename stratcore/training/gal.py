"""Geometric accumulated loss: anchors turned towards class centers, and simplices that keep the shape of an expert's.

Legend: B rows, O embedding size, A anchors, K classes with rows, S simplices, k order, P pairs of vertices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from stratcore import ops
from stratcore.layers.simplex import measured
from stratcore.layers.sphere import procrustes, rotation_power
from stratcore.training.mastery import EmbeddingQueue

MATCHINGS = ("hungarian", "nearest")
ROTATIONS = ("minimal", "reference")


@dataclass(frozen=True, kw_only=True)
class GALOptions:
    """How anchors follow class centers, and what is kept of an expert's shape.

    Args:
        capacity: rows of the buffer, which starts empty.
        interval: steps between two turns of the anchors.
        rate: share of the rotation that one turn makes.
        matching: 'hungarian': every center an anchor of its own, with the largest sum of cosines. 'nearest': the
            nearest one, which several centers may share (the source documents).
        rotation: 'minimal': turns nothing that the matched pairs do not ask for, by `rate` of every angle.
            'reference': any best rotation, mixed in by `rate` and normalized again (the source documents).
        num_simplices: S, a step.
        order: k.
        volume: weight of the log-volumes against the squared distances.
        center: weight of the distance between the means.
    """

    capacity: int = 50_000
    interval: int = 25
    rate: float = 0.015
    matching: str = "hungarian"
    rotation: str = "minimal"
    num_simplices: int = 512
    order: int = 4
    volume: float = 0.1
    center: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (("matching", MATCHINGS), ("rotation", ROTATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"gal.{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("capacity", "interval", "num_simplices", "order"):
            if getattr(self, name) < 1:
                raise ValueError(f"gal.{name}: expected a number >= 1, got {getattr(self, name)}")
        if not (0 <= self.rate <= 1 and self.volume >= 0 and self.center >= 0):
            raise ValueError(
                "gal.rate, volume and center: expected a share in [0, 1] and weights >= 0, got "
                f"{self.rate}, {self.volume} and {self.center}"
            )


def match_anchors(centers_KO: Tensor, anchors_AO: Tensor, matching: str = "hungarian") -> Tensor:
    """Anchor of each class center, int64 [K]; see `GALOptions.matching`. Waits for the device.

    Raises:
        ValueError: 'hungarian' with more centers than anchors.
    """
    cosine_KA = normalize(centers_KO, dim=-1) @ normalize(anchors_AO, dim=-1).mT
    if matching == "nearest":
        return cosine_KA.argmax(-1)
    from scipy.optimize import linear_sum_assignment

    if cosine_KA.shape[0] > cosine_KA.shape[1]:
        raise ValueError(
            f"match_anchors: expected at most {cosine_KA.shape[1]} centers, one an anchor, got {cosine_KA.shape[0]}"
        )
    _, column = linear_sum_assignment(cosine_KA.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(column).to(anchors_AO.device)


def turn_anchors(
    anchors_AO: Tensor, centers_KO: Tensor, matched_K: Tensor, rate: float, rotation: str = "minimal"
) -> Tensor:
    """All anchors, of length 1, after a share of the rotation that takes the matched ones to their centers.

    Args:
        anchors_AO: of any lengths.
        centers_KO: class centers, likewise.
        matched_K: anchor of each.
        rate: share of the rotation.
        rotation: see `GALOptions.rotation`.

    Waits for the device.
    """
    units_AO = normalize(anchors_AO.detach().double(), dim=-1)
    target_KO = normalize(centers_KO.detach().double(), dim=-1)
    source_KO = units_AO[matched_K]
    if rotation == "minimal":
        turn_OO = rotation_power(procrustes(source_KO, target_KO).rotation, rate)
        return (units_AO @ turn_OO).to(anchors_AO.dtype)
    u_OO, _, vh_OO = torch.linalg.svd(source_KO.mT @ target_KO)
    if torch.linalg.det(u_OO @ vh_OO) < 0:
        u_OO = torch.cat([u_OO[:, :-1], -u_OO[:, -1:]], -1)
    turned_AO = units_AO + rate * (units_AO @ (u_OO @ vh_OO) - units_AO)
    return normalize(turned_AO, dim=-1).to(anchors_AO.dtype)


def class_centers(rows_NO: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Mean row of each class that has one, [K, O]; label -1 is no row. Waits for the device."""
    member_NC = one_hot(labels_N.clamp_min(0), num_classes) * (labels_N >= 0)[:, None]
    count_C = member_NC.sum(0)
    sums_CO = member_NC.to(rows_NO.dtype).mT @ rows_NO
    return (sums_CO / count_C.clamp_min(1)[:, None])[count_C > 0]


class GALAlignment:
    """A buffer of embeddings, and anchors that turn towards its class centers from time to time.

    Args:
        options: sizes and rules.
        dim: O.
        num_classes: of the labels.
        device: of the embeddings.
    """

    def __init__(self, options: GALOptions, dim: int, num_classes: int, device: torch.device) -> None:
        self.options, self._num_classes = options, num_classes
        self.buffer = EmbeddingQueue(options.capacity, options.capacity, dim, device)
        self._wanted = torch.ones((), dtype=torch.bool, device=device)

    def note(self, embeddings_BO: Tensor, labels_B: Tensor) -> None:
        """Put a batch into the buffer."""
        self.buffer.push(embeddings_BO, labels_B, self._wanted)

    @torch.no_grad()
    def after_step(self, step: int, anchors: Tensor) -> None:
        """Turn the anchors in place, if step number `step` (from 1) is one for it."""
        if step % self.options.interval:
            return
        centers_KO = class_centers(self.buffer.rows, self.buffer.labels, self._num_classes)
        if centers_KO.shape[0]:
            matched_K = match_anchors(centers_KO, anchors, self.options.matching)
            anchors.copy_(
                turn_anchors(anchors, centers_KO, matched_K, self.options.rate, self.options.rotation)
            )

    def state_dict(self) -> dict[str, Any]:
        """The buffer."""
        return self.buffer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.buffer.load_state_dict(state)


def gal_loss(geometric_BO: Tensor, expert_BO: Tensor, options: GALOptions) -> Tensor:
    """How far simplices of one embedding are from the same simplices of an expert's embedding.

        mean_s [ mean_p (d2_p(g) - d2_p(e))^2 + volume (log V(g) - log V(e))^2 ] + center |mean g - mean e|^2

    Args:
        geometric_BO: the rows that learn.
        expert_BO: the same images' rows of the expert, which get no gradient.
        options: number and order of the simplices, drawn from torch's generator, and the weights.

    Returns:
        Scalar; squared distances do not change when all rows of one turn together, only the last term does.

    Raises:
        ValueError: fewer rows than a simplex has vertices.

    Source: our reading of the source documents, which give no formula. A degenerate simplex counts in its distances
    only.
    """
    rows, vertices = geometric_BO.shape[0], options.order + 1
    if rows < vertices:
        raise ValueError(f"gal_loss: expected at least {vertices} rows, got {rows}")
    draw_SB = torch.rand(options.num_simplices, rows, device=geometric_BO.device)
    index_SV = draw_SB.topk(vertices, -1).indices
    outputs = ("squared_distances", "log_volume")
    own_SP, own_S = measured(ops.simplex_measures(geometric_BO, index_SV, outputs=outputs), *outputs)
    with torch.no_grad():
        wanted_SP, wanted_S = measured(ops.simplex_measures(expert_BO, index_SV, outputs=outputs), *outputs)
    distance = (own_SP - wanted_SP).square().mean()
    difference_S = torch.where(own_S.isfinite() & wanted_S.isfinite(), own_S - wanted_S, 0.0)
    means = (geometric_BO.mean(0) - expert_BO.detach().mean(0)).square().sum()
    return distance + options.volume * difference_S.square().mean() + options.center * means
