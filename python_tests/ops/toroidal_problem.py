"""Problems of toroidal attention that its tests share.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference

METRICS = ["l1", "l2", "linf", "chordal", "chordal_sq"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MASKS = ["bool", "padding", "per head", "added", "added padding", "all hidden"]
# B, H, G, N, M, E; lattice and options: 1 to 3 axes, blocks, offsets, groups, more and fewer queries than keys
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "ring": ((2, 2, 2, 65, 65, 32), {"lattice": [65]}),
    "one query": ((3, 4, 1, 1, 129, 64), {"lattice": [100], "query_offset": 128, "causal": True}),
    "shared keys": ((1, 8, 1, 63, 128, 16), {"lattice": [128], "causal": True, "query_offset": 65}),
    "more queries": ((1, 2, 1, 130, 3, 2), {"lattice": [7], "causal": True, "causal_group": 5}),
    "plane": ((1, 4, 2, 96, 96, 40), {"lattice": [8, 12], "block": [4, 3]}),
    "row-major plane": ((1, 2, 2, 70, 90, 80), {"lattice": [9, 10], "query_offset": 20, "causal": True}),
    "cut plane": ((1, 2, 2, 67, 40, 10), {"lattice": [6, 10], "block": [3, 5], "key_offset": 31}),
    "solid": ((1, 2, 2, 120, 70, 6), {"lattice": [4, 6, 5], "block": [2, 3, 5], "causal": True}),
    "platters": ((1, 2, 2, 64, 64, 128), {"lattice": [16, 4], "causal": True, "causal_group": 4}),
    "far": ((1, 2, 2, 20, 20, 256), {"lattice": [64], "query_offset": 990, "key_offset": 480}),
}


def normal(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def problem(
    sizes: Sequence[int], dtype: torch.dtype = torch.float64, device: str = "cpu", axes: int = 1
) -> list[Tensor]:
    """q, k, v and positive slopes [H, axes]."""
    batch, heads, shared, queries, keys, dim = sizes
    q = normal(batch, heads, queries, dim, dtype=dtype, device=device, seed=1)
    k = normal(batch, shared, keys, dim, dtype=dtype, device=device, seed=2)
    v = normal(batch, shared, keys, dim, dtype=dtype, device=device, seed=3)
    slopes = 0.2 * normal(heads, axes, seed=4).exp()
    # values of float32 that float64 has too
    return [q, k, v, slopes.float().to(torch.float64 if dtype == torch.float64 else torch.float32).to(device)]


def exact(tensors: Sequence[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Result and lse by the definition, in float64."""
    return reference.toroidal_attention(*(t.double() for t in tensors), **options)


def all_gradients(function: Any, tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Of <out, weights[0]> + <lse, weights[1]> with respect to the tensors; rows without keys have no lse."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse = function(*leaves)[:2]
    loss = (out * weights[0].to(out.dtype)).sum()
    loss = loss + torch.where(lse == -math.inf, 0.0, lse * weights[1].to(lse.dtype)).sum()
    return list(torch.autograd.grad(loss, leaves))


def weights_of(sizes: Sequence[int], device: str = "cpu") -> list[Tensor]:
    batch, heads, _, queries, _, dim = sizes
    return [
        normal(batch, heads, queries, dim, device=device, seed=5),
        normal(batch, heads, queries, device=device, seed=6),
    ]


def masks(sizes: Sequence[int], device: str = "cpu") -> dict[str, Tensor]:
    """Masks of every kind; all but the paddings hide all keys of some rows."""
    batch, heads, _, queries, keys, _ = sizes
    some = normal(batch, heads, queries, keys, device=device, seed=8) > 0
    some[:, :, ::7] = False
    padding = torch.arange(keys, device=device) < torch.arange(1, batch + 1, device=device)[:, None] * 9
    added = normal(batch, 1, queries, keys, device=device, seed=9).float()
    added[:, :, 3] = -math.inf
    return {
        "bool": some,
        "padding": padding[:, None, None],
        "per head": some[:1, :, :1],
        "added": added,
        "added padding": torch.where(padding, 0.0, torch.finfo(torch.float32).min)[:, None, None],
        "all hidden": torch.zeros(keys, dtype=torch.bool, device=device),
    }


def run(*tensors: Tensor, **options: Any) -> ops.ToroidalAttention:
    return ops.toroidal_attention_lse(*tensors, **options)
