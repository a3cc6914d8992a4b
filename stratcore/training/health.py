"""Health of an embedding model while it trains: geometry, arithmetic, gradients. Legend: N rows, O embedding size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from stratcore.analysis.geometry import gradient_starvation, scan_geometry

SCANNED = {
    "norm_mean": "norm_mean",
    "norm_spread": "norm_spread",
    "self_similarity": "mean_cosine",
    "effective_dim": "participation_ratio",
    "top_10_energy": "top_10_energy",
    "cv": "cv_directions",
    "class_cv": "class_cv_mean",
    "nearest_neighbor_accuracy": "nearest_neighbor_accuracy",
    "same_different_gap": "cosine_gap",
    "anchor_entropy": "anchor_entropy",
    "anchor_gini": "anchor_gini",
    "anchor_dead_share": "anchor_dead_share",
    "anchor_cv": "anchor_cv",
}
STARVED_BELOW = 0.01


def embedding_health(
    embeddings_NO: Tensor, labels_N: Tensor, anchors_AO: Tensor | None, *, seed: int = 0, max_rows: int = 2000
) -> dict[str, float]:
    """Figures of `analysis.scan_geometry` that a training curve shows; those that have no number are left out."""
    scan = scan_geometry(
        embeddings_NO.float().cpu().numpy(),
        labels_N.cpu().numpy(),
        None if anchors_AO is None else anchors_AO.detach().float().cpu().numpy(),
        seed=seed,
        max_rows=max_rows,
        num_simplices=1000,
        top_k=(10,),
    )
    values = {measurement.name: measurement.value for measurement in scan.measurements}
    found = {name: values.get(key, math.nan) for name, key in SCANNED.items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


@torch.no_grad()
def precision_gap(read: Callable[[], tuple[Tensor, Tensor]], device_type: str) -> dict[str, float]:
    """How far bfloat16 is from float32.

    Args:
        read: the same call of the model, returning logits [N, C] and unit embeddings [N, O].
        device_type: of the model.

    Returns:
        `bf16_cosine`: least cosine of a row's two embeddings; `bf16_logits`: largest difference of logits over their
        largest size; `bf16_flips`: share of rows whose class changes.
    """
    found = []
    for enabled in (False, True):
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled):
            found.append([tensor.float() for tensor in read()])
    (exact, exact_NO), (rounded, rounded_NO) = found
    return {
        "bf16_cosine": float(nn.functional.cosine_similarity(exact_NO, rounded_NO).min()),
        "bf16_logits": float((exact - rounded).abs().max() / exact.abs().max().clamp_min(1e-12)),
        "bf16_flips": float((exact.argmax(-1) != rounded.argmax(-1)).float().mean()),
    }


def gradient_health(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Which parts of a model a loss does not reach; `.grad` of the parameters is left as it is.

    Args:
        model: its direct children are the parts, those without trainable parameters aside.
        loss: computes the scalar loss.

    Returns:
        `starved_parts`: number of parts whose share of the gradient norm is below 1 % of what their size accounts
        for; `least_gradient`: least such ratio; and that ratio for each part, `gradient/<part>`.
    """
    parts: Mapping[str, list[nn.Parameter]] = {
        name: [p for p in child.parameters() if p.requires_grad] for name, child in model.named_children()
    }
    parts = {name: parameters for name, parameters in parts.items() if parameters}
    every = [parameter for parameters in parts.values() for parameter in parameters]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), every, allow_unused=True)
    squares = [0.0 if g is None else float(g.double().square().sum()) for g in gradients]
    norms, first = {}, 0
    for name, own in parts.items():
        norms[name] = math.sqrt(sum(squares[first : first + len(own)]))
        first += len(own)
    sizes = {name: sum(p.numel() for p in own) for name, own in parts.items()}
    found = gradient_starvation(norms, num_parameters=sizes, threshold=STARVED_BELOW)
    ratios = {f"gradient/{each.module}": each.share / each.baseline for each in found.modules}
    return {
        "starved_parts": float(len(found.starved)),
        "least_gradient": min(ratios.values()),
        **ratios,
    }
