"""Losses on embeddings of the sphere and on the anchors among them.

Legend: B rows, O embedding size, C classes, A anchors, M rows of a memory. Embeddings are of length 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, one_hot, relu


def smoothed_bce(logits_BC: Tensor, targets_BC: Tensor, smoothing: float = 0.1) -> Tensor:
    """Binary cross-entropy of C one-against-all sigmoids, mean over rows and classes.

    Args:
        logits_BC: logits.
        targets_BC: shares of the classes: one-hot rows, or mixtures of them.
        smoothing: e; targets are y (1 - e) + e / C.
    """
    targets_BC = targets_BC * (1 - smoothing) + smoothing / logits_BC.shape[1]
    return binary_cross_entropy_with_logits(logits_BC, targets_BC)


class InfoNCE(NamedTuple):
    """loss: scalar, nats. accuracy: share of rows whose own other view is the nearest, scalar, no gradient."""

    loss: Tensor
    accuracy: Tensor


def info_nce(
    first_BO: Tensor, second_BO: Tensor, temperature: float = 0.07, *, symmetric: bool = True
) -> InfoNCE:
    """-log exp(<a_i, b_i> / t) / sum_j exp(<a_i, b_j> / t), mean over rows.

    Args:
        first_BO: a, one view of each image.
        second_BO: b, another one.
        temperature: t.
        symmetric: mean of both directions, a against all b and b against all a; False: the first alone, as in the
            source documents.
    """
    cosine_BB = first_BO @ second_BO.mT
    own_B = torch.arange(cosine_BB.shape[0], device=cosine_BB.device)
    loss = cross_entropy(cosine_BB / temperature, own_B)
    hit = (cosine_BB.detach().argmax(-1) == own_B).float().mean()
    if symmetric:
        loss = 0.5 * (loss + cross_entropy(cosine_BB.mT / temperature, own_B))
        hit = 0.5 * (hit + (cosine_BB.detach().argmax(0) == own_B).float().mean())
    return InfoNCE(loss, hit)


def cross_info_nce(
    geometric: tuple[Tensor, Tensor], standard: tuple[Tensor, Tensor], temperature: float = 0.07
) -> InfoNCE:
    """`info_nce` across streams: the geometric embedding of a view against the standard one of the other view.

    Args:
        geometric: of the first and the second view, [B, O] each.
        standard: likewise.
        temperature: as in `info_nce`.

    Source: our reading of the source documents' cross-attention InfoNCE, for which they give no formula.
    """
    pairs = ((geometric[0], standard[1]), (standard[0], geometric[1]))
    found = [info_nce(a_BO, b_BO, temperature) for a_BO, b_BO in pairs]
    return InfoNCE(
        torch.stack([each.loss for each in found]).mean(),
        torch.stack([each.accuracy for each in found]).mean(),
    )


def anchor_spread(anchors_AO: Tensor) -> Tensor:
    """Mean over pairs a != b of max(0, cos_ab): 0 where no two anchors, of any length, are closer than 90 degrees."""
    units_AO = normalize(anchors_AO, dim=-1)
    count = units_AO.shape[0]
    total = relu(units_AO @ units_AO.mT).sum() - units_AO.square().sum()
    return total / max(1, count * (count - 1))


def class_diversity(embeddings_BO: Tensor, labels_B: Tensor, num_classes: int, limit: float = 0.7) -> Tensor:
    """Mean over classes with at least two rows of max(0, mean cosine of two different rows - limit).

    Keeps a class from falling onto a point. From class sums, without a matrix of pairs:
    sum_{i != j} <x_i, x_j> = |sum_i x_i|^2 - sum_i |x_i|^2.

    Source: ours; the source documents name the loss without a formula.
    """
    member_BC = one_hot(labels_B, num_classes).to(embeddings_BO.dtype)
    count_C = member_BC.sum(0)
    sums_CO = member_BC.mT @ embeddings_BO
    own_C = member_BC.mT @ embeddings_BO.square().sum(-1)
    pairs_C = count_C * (count_C - 1)
    mean_C = (sums_CO.square().sum(-1) - own_C) / pairs_C.clamp_min(1)
    present_C = (pairs_C > 0).to(mean_C.dtype)
    return (relu(mean_C - limit) * present_C).sum() / present_C.sum().clamp_min(1)


def anchor_usage_loss(distance_BA: Tensor, temperature: float = 0.1) -> Tensor:
    """Log A - I(row; anchor) under p = softmax(-distance / t), nats: 0 if rows share all anchors evenly and surely.

    I = entropy of the mean of p - mean of its entropy. It is 0, and the loss log A, both for one anchor that takes
    all rows and for anchors that fall together; the entropy of the mean alone would call the latter even use. Its
    gradient draws unused anchors to rows, where the count of nearest anchors has none.
    """
    log_BA = (-distance_BA / temperature).log_softmax(-1)
    share_BA = log_BA.exp()
    information = torch.special.entr(share_BA.mean(0)).sum() + (share_BA * log_BA).sum(-1).mean()
    return math.log(distance_BA.shape[-1]) - information


class HardPairs(NamedTuple):
    """Of each row, [B].

    negative: largest cosine to another class. positive: least cosine to the same class. valid: whether both exist.
    """

    negative: Tensor
    positive: Tensor
    valid: Tensor

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean negative and positive cosine of the valid rows, 0 without any; no gradient."""
        count = self.valid.sum().clamp_min(1)
        found = [torch.where(self.valid, c.detach(), 0.0).sum() / count for c in self[:2]]
        return found[0], found[1]


def hard_pairs(
    embeddings_BO: Tensor,
    labels_B: Tensor,
    memory_MO: Tensor | None = None,
    memory_labels_M: Tensor | None = None,
) -> HardPairs:
    """Hardest negative and positive of each row among the other rows and a memory.

    Args:
        embeddings_BO: rows.
        labels_B: of the rows, >= 0.
        memory_MO: further candidates, which get no gradient.
        memory_labels_M: of these; -1 for a place without a row.
    """
    others: Sequence[Tensor] = (embeddings_BO,)
    labels_N = labels_B
    if memory_MO is not None and memory_labels_M is not None:
        others = (embeddings_BO, memory_MO.detach().to(embeddings_BO.dtype))
        labels_N = torch.cat([labels_B, memory_labels_M])
    cosine_BN = embeddings_BO @ torch.cat(list(others)).mT
    same_BN = labels_B[:, None] == labels_N
    itself_BN = torch.zeros_like(same_BN)
    itself_BN.diagonal().fill_(True)
    other_BN = ~same_BN & (labels_N >= 0)
    same_BN = same_BN & ~itself_BN
    negative_B = cosine_BN.masked_fill(~other_BN, -math.inf).amax(-1)
    positive_B = cosine_BN.masked_fill(~same_BN, math.inf).amin(-1)
    valid_B = other_BN.any(-1) & same_BN.any(-1)
    return HardPairs(torch.where(valid_B, negative_B, 0.0), torch.where(valid_B, positive_B, 0.0), valid_B)


def batch_hard_margin(pairs: HardPairs, margin: float | Tensor) -> Tensor:
    """Mean over valid rows of max(0, hardest negative - hardest positive + margin), cosines."""
    cost_B = torch.where(pairs.valid, relu(pairs.negative - pairs.positive + margin), 0.0)
    return cost_B.sum() / pairs.valid.sum().clamp_min(1)
