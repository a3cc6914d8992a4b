"""What embeddings and logits of a trained classifier are good for beside its classes: neighbors, and strangers.

Legend: N queries, R references, C classes, O embedding size, K neighbors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 2048


def nearest_neighbors(query_NO: Tensor, reference_RO: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the K nearest references of each query, both [N, K], the nearest first.

    Raises:
        ValueError: fewer references than neighbors, or k below 1.
    """
    if not 1 <= k <= reference_RO.shape[0]:
        raise ValueError(f"k: expected a number in [1, {reference_RO.shape[0]}] references, got {k}")
    reference = normalize(reference_RO.float(), dim=-1)
    parts = [
        (normalize(part.float(), dim=-1) @ reference.mT).topk(k, dim=-1) for part in query_NO.split(CHUNK)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def neighbor_accuracy(
    query_NO: Tensor, query_label_N: Tensor, reference_RO: Tensor, reference_label_R: Tensor, k: int
) -> float:
    """Share of queries whose class most of their K nearest references by cosine have; ties: the lowest class."""
    _, number_NK = nearest_neighbors(query_NO, reference_RO, k)
    votes_NK = reference_label_R[number_NK]
    classes = int(max(reference_label_R.max(), query_label_N.max())) + 1
    counts_NC = torch.zeros(len(votes_NK), classes, device=votes_NK.device, dtype=torch.long)
    counts_NC.scatter_add_(1, votes_NK, torch.ones_like(votes_NK))
    return float((counts_NC.argmax(-1) == query_label_N).double().mean())


def familiarity(logits_NC: Tensor, embedding_NO: Tensor, reference_RO: Tensor, k: int) -> dict[str, Tensor]:
    """Scores that should be high for images of the kind that was learned, [N] each.

    softmax: the largest probability. energy: logsumexp of the logits. neighbor: cosine to the K-th nearest embedding
    of the training images.

    Source: Hendrycks and Gimpel 2017; Liu et al. 2020; Sun et al. 2022.
    """
    logits_NC = logits_NC.float()
    return {
        "softmax": logits_NC.softmax(-1).amax(-1),
        "energy": logits_NC.logsumexp(-1),
        "neighbor": nearest_neighbors(embedding_NO, reference_RO, k)[0][:, -1],
    }


def detection_auroc(known: Tensor, strange: Tensor) -> float:
    """Probability that a known image scores higher than a strange one, half for ties.

    Args:
        known: [N] scores.
        strange: [M] scores.
    """
    from sklearn.metrics import roc_auc_score

    scores = torch.cat((known, strange)).double().cpu().numpy()
    return float(roc_auc_score(np.repeat([1, 0], [len(known), len(strange)]), scores))
