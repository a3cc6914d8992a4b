"""Definition of attention on a torus in plain torch.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, S slopes a head, A axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def lattice_sites(lattice: Sequence[int], block: Sequence[int] | None = None) -> Tensor:
    """Coordinates of all tokens in block order, [sites, A]."""
    block = lattice if block is None else block
    if len(lattice) == 1:
        return torch.arange(lattice[0])[:, None]
    blocks = torch.cartesian_prod(
        *(torch.arange(0, period, size) for period, size in zip(lattice, block, strict=True))
    )
    within = torch.cartesian_prod(*(torch.arange(size) for size in block))
    return (blocks[:, None] + within).reshape(-1, len(lattice))


def toroidal_distance(
    lattice: Sequence[int],
    queries: int,
    keys: int,
    *,
    block: Sequence[int] | None = None,
    metric: str = "l1",
    per_axis: bool = False,
    query_offset: int = 0,
    key_offset: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """What the slopes multiply, float64: [1, N, M], or [A, N, M] with one part an axis."""
    sites = lattice_sites(lattice, block).to(device)
    x = sites[(torch.arange(queries, device=device) + query_offset) % len(sites)]
    y = sites[(torch.arange(keys, device=device) + key_offset) % len(sites)]
    period = torch.tensor(list(lattice), dtype=torch.float64, device=device)
    around = (x[:, None] - y).remainder(period.long()).double()
    steps = torch.minimum(around, period - around).movedim(-1, 0)
    period = period[:, None, None]
    if metric in ("chordal", "chordal_sq"):
        steps = period / math.pi * torch.sin(math.pi * steps / period)
    if metric == "linf":
        return steps.amax(0, keepdim=True)
    parts = steps if metric == "l1" else steps.square()
    if per_axis:
        return parts
    total = parts.sum(0, keepdim=True)
    return total.sqrt() if metric in ("l2", "chordal") else total


def toroidal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    *,
    lattice: Sequence[int],
    metric: str = "l1",
    causal: bool = False,
    causal_group: int = 1,
    mask: Tensor | None = None,
    scale: float | None = None,
    **places: Any,
) -> tuple[Tensor, Tensor]:
    """Result and lse by a matrix of scores, in the dtype of `q`; `places`: what `toroidal_distance` takes."""
    queries, keys = q.shape[2], k.shape[2]
    per_axis = slopes.ndim == 2 and slopes.shape[1] > 1
    places |= {"metric": metric, "per_axis": per_axis, "device": q.device}
    parts = toroidal_distance(lattice, queries, keys, **places).to(slopes.dtype)
    bias = torch.einsum("hs,snm->hnm", slopes.reshape(q.shape[1], -1), parts)
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale) - bias.to(q.dtype)
    hidden = torch.zeros(queries, keys, dtype=torch.bool, device=q.device)
    if causal:
        i = torch.arange(queries, device=q.device) + places.get("query_offset", 0)
        j = torch.arange(keys, device=q.device) + places.get("key_offset", 0)
        hidden = j // causal_group > i[:, None] // causal_group
    if mask is not None and mask.dtype == torch.bool:
        hidden = hidden | ~mask
    elif mask is not None:
        scores = scores + mask.to(scores.dtype)
    scores = scores.masked_fill(hidden, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -math.inf)
    return weights @ v, lse
