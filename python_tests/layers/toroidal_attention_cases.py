"""Forms of attention on a torus, and their definition with every pair of slices of tokens in one matrix.

Legend: B batch, N tokens, C channels, H heads, G key heads, D slices, E channels of a slice, R rows (N D), A axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stratcore import ops
from stratcore.layers import ToroidalAttention, ToroidalAttentionOptions

FORMS: dict[str, dict[str, Any]] = {
    "ring": {},
    "odd": {"dim": 7, "num_heads": 1, "head_dim": 5, "lattice": (7,), "bias": False},
    "plane": {"lattice": (3, 5), "slopes": (0.3, 0.9), "metric": "chordal_sq"},
    "blocks": {"lattice": (4, 6), "block": (2, 3), "metric": "l2"},
    "solid": {"lattice": (2, 3, 2), "metric": "linf", "learn_slopes": True},
    "learned per axis": {"lattice": (3, 4), "slopes": (0.2, 0.4), "learn_slopes": True, "num_key_heads": 1},
    "chordal": {"metric": "chordal", "rotary": False, "num_key_heads": 2},
    "causal": {"causal": True, "num_key_heads": 2},
    "causal and around": {"causal": True, "lattice": (5,)},
    "causal plane": {"causal": True, "lattice": (3, 4), "metric": "l2"},
    "window": {"window": 2, "metric": "chordal"},
    "causal window": {"window": 3, "causal": True, "lattice": (6,)},
    "factored": {"depth": 2, "num_key_heads": 2, "fusion": "low_rank"},
    "factored attention": {"depth": 3, "fusion": "attention", "causal": True},
    "factored mean": {"depth": 4, "fusion": "mean", "num_key_heads": 2, "lattice": (20,), "window": 4},
    "coupled": {"depth": 3, "depth_attention": "coupled", "fusion": "low_rank", "num_key_heads": 2},
    "coupled causal": {"depth": 2, "depth_attention": "coupled", "fusion": "attention", "causal": True},
    "coupled plane": {"depth": 2, "depth_attention": "coupled", "lattice": (3, 4), "slopes": (0.1, 0.5, 2.0)},
    "coupled blocks": {"depth": 2, "depth_attention": "coupled", "lattice": (4, 4), "block": (2, 2)},
    "coupled window": {"depth": 2, "depth_attention": "coupled", "window": 2, "causal": True},
    "coupled mean": {"depth": 2, "depth_attention": "coupled", "fusion": "mean", "metric": "l2"},
}
CAUSAL = [name for name, changes in FORMS.items() if changes.get("causal")]


def attention(dtype: torch.dtype = torch.float64, **changes: Any) -> ToroidalAttention:
    """With weights that leave no zero gate at 0."""
    sizes = {"dim": 10, "num_heads": 4, "head_dim": 12, "lattice": (13,)}
    module = ToroidalAttention(ToroidalAttentionOptions(**{**sizes, **changes})).to(dtype)
    if module.fusion is not None:
        for parameter in module.fusion.parameters():
            nn.init.normal_(parameter, std=0.5)
    return module


def tokens(module: ToroidalAttention, count: int = 13, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, count, module.options.dim, dtype=dtype)


def sites_of(module: ToroidalAttention, count: int) -> Tensor:
    """Coordinates [N D, A] of all slices of all tokens; depth is the last axis where coupled."""
    o = module.options
    order, _ = ops.lattice_order(o.lattice, o.block)
    site = torch.stack(torch.unravel_index(order, o.lattice), -1)
    site = site[torch.arange(count) % len(site)].repeat_interleave(o.depth, 0)
    if o.group > 1:
        site = torch.cat((site, torch.arange(o.depth).repeat(count)[:, None]), 1)
    return site


def turn(module: ToroidalAttention, x_BHRE: Tensor, site_RA: Tensor) -> Tensor:
    rotary, size = module.rotary, x_BHRE.shape[-1]
    pairs = size // 2
    axis = torch.arange(len(rotary.pairs_per_axis)).repeat_interleave(torch.tensor(rotary.pairs_per_axis))
    period = torch.tensor(module.options.axes)[axis]
    angle = 2 * math.pi * site_RA[:, axis].double() * rotary.frequencies / period
    z = torch.complex(x_BHRE[..., :pairs], x_BHRE[..., pairs : 2 * pairs]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((z.real, z.imag, x_BHRE[..., 2 * pairs :]), -1)


def distances(metric: str, site_RA: Tensor, periods: tuple[int, ...]) -> Tensor:
    """[A, R, R] parts of an axis, or [1, R, R] of the whole."""
    period = torch.tensor(periods).double()
    apart = (site_RA[:, None] - site_RA).abs()
    steps = torch.minimum(apart, period - apart).double()
    chord = period / math.pi * torch.sin(math.pi * steps / period)
    parts = {"l1": steps, "chordal_sq": chord.square()}
    whole = {"l2": steps.norm(dim=-1), "linf": steps.amax(-1), "chordal": chord.norm(dim=-1)}
    return parts[metric].movedim(-1, 0) if metric in parts else whole[metric][None]


def visible_pairs(module: ToroidalAttention, count: int) -> Tensor:
    """[N D, N D]."""
    o = module.options
    token, piece = torch.arange(count * o.depth) // o.depth, torch.arange(count * o.depth) % o.depth
    back = token[:, None] - token
    visible = torch.ones_like(back, dtype=torch.bool)
    if o.causal:
        visible &= back >= 0
    if o.window is not None:
        period = o.lattice[0]
        around = back if o.causal else torch.minimum(back % period, -back % period)
        visible &= around <= o.window
    if o.depth_attention == "factored":
        visible &= piece[:, None] == piece
    return visible


def fuse(module: ToroidalAttention, x_BNHDE: Tensor) -> Tensor:
    fusion = module.fusion
    if fusion is None:
        return x_BNHDE
    identity = torch.eye(fusion.depth).double()
    if fusion.mode == "mean":
        mixing = torch.full((fusion.depth, fusion.depth), 1 / fusion.depth, dtype=x_BNHDE.dtype)
    elif fusion.mode == "low_rank":
        mixing = identity + fusion.v @ fusion.u.mT
    else:
        q, k = x_BNHDE @ fusion.query.weight.mT, x_BNHDE @ fusion.key.weight.mT
        weights = (torch.einsum("...ke,...le->...kl", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        mixing = (1 - fusion.gate) * identity + fusion.gate * weights
    return mixing @ x_BNHDE


def definition(module: ToroidalAttention, x_BNC: Tensor, mask: Tensor | None = None) -> Tensor:
    """In float64; `mask` of 4 dimensions."""
    o = module.options
    batch, count, _ = x_BNC.shape
    site = sites_of(module, count)

    def rows(project: nn.Linear, heads: int) -> Tensor:
        x = project(x_BNC).reshape(batch, count, heads, o.depth, o.slice_dim)
        x = x.permute(0, 2, 1, 3, 4).flatten(2, 3)
        return x.repeat_interleave(o.num_heads // heads, 1)

    q = rows(module.q_proj, o.num_heads)
    k, v = rows(module.k_proj, o.key_heads), rows(module.v_proj, o.key_heads)
    if module.rotary is not None:
        q, k = turn(module, q, site), turn(module, k, site)
    parts = distances(o.metric, site, o.axes)
    slopes = module.slopes().double().expand(-1, len(parts))
    scores = q @ k.mT / math.sqrt(o.slice_dim) - torch.einsum("ha,aij->hij", slopes, parts)
    hidden = ~visible_pairs(module, count)
    if mask is not None:
        mask = mask.expand(-1, -1, count, count).repeat_interleave(o.depth, 2).repeat_interleave(o.depth, 3)
        if mask.dtype == torch.bool:
            hidden = hidden | ~mask
        else:
            scores = scores + mask
    scores = scores.masked_fill(hidden, -math.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    out = (weights @ v).reshape(batch, o.num_heads, count, o.depth, o.slice_dim).permute(0, 2, 1, 3, 4)
    return module.o_proj(fuse(module, out).flatten(2))
