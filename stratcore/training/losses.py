"""Named losses of outputs and targets. Legend: B rows, E experts, D input size, M atoms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu


def expected_cost(cost_BE: Tensor, weights_BE: Tensor) -> Tensor:
    """sum_e g_e cost_e of each row, [B]: what a row costs when its expert is drawn from the gate."""
    return (weights_BE * cost_BE).sum(-1)


def mixture_cost(cost_BE: Tensor, logits_BE: Tensor) -> Tensor:
    """-log sum_e g_e exp(-cost_e) of each row, [B], g the softmax of the logits.

    The negative log-likelihood of a mixture whose experts have cost_e as their own. By Jensen's inequality at
    most `expected_cost`; its gradient weighs the experts by their posterior, as expectation maximization does.
    """
    # Only differences decide between experts: without the common part they survive float32.
    common_B1 = cost_BE.detach().amin(-1, keepdim=True)
    joint_BE = logits_BE.log_softmax(-1) - (cost_BE - common_B1)
    return common_B1.squeeze(-1) - torch.logsumexp(joint_BE, -1)


def load_balance(probabilities_BE: Tensor) -> Tensor:
    """E sum_e (mean_b p_be)^2 - 1, a scalar: 0 for an even load, E - 1 when one expert takes all."""
    mean_E = probabilities_BE.mean(0)
    return mean_E.numel() * mean_E.square().sum() - 1


def contrastive_margin(embeddings_BD: Tensor, labels_B: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over pairs i != j of d^2 where labels agree and max(0, margin - d)^2 where they differ.

    Pairs of a row with itself are left out: they cost nothing and only dilute the mean.
    Gradient: 0, not NaN, for two equal rows.
    """
    square_BB = (embeddings_BD[:, None, :] - embeddings_BD[None, :, :]).square().sum(-1)
    distance_BB = square_BB.clamp_min(1e-12).sqrt()
    same_BB = labels_B[:, None] == labels_B[None, :]
    cost_BB = torch.where(same_BB, square_BB, relu(margin - distance_BB).square())
    count = labels_B.shape[0]
    cost_BB = cost_BB.masked_fill(torch.eye(count, dtype=torch.bool, device=cost_BB.device), 0.0)
    return cost_BB.sum() / max(count * (count - 1), 1)


def coherence(atoms_EDM: Tensor) -> Tensor:
    """Mean squared cosine between two atoms of one expert, a scalar; atoms have unit norm."""
    gram_EMM = atoms_EDM.mT @ atoms_EDM
    atoms = atoms_EDM.shape[-1]
    itself_MM = torch.eye(atoms, dtype=torch.bool, device=gram_EMM.device)
    total = gram_EMM.masked_fill(itself_MM, 0.0).square().sum((-1, -2)).mean()
    return total / max(atoms * (atoms - 1), 1)
