"""Attention with a toroidal bias, its gradients and tangents in differentiable torch operations, for higher orders.

Dense: tensors of N x M scores. Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head,
S slopes a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stratcore.ops._toroidal_attention_call import PER_AXIS, Options, compute_dtype


def coordinates(positions: Tensor, lattice: Sequence[int], block: Sequence[int]) -> list[Tensor]:
    """Of positions in block order, one tensor an axis; as site_of in csrc/toroidal_attention/lattice.h."""
    positions = positions % math.prod(lattice)
    if len(lattice) == 1:
        return [positions]
    volume = math.prod(block)
    outer, within = positions // volume, positions % volume
    sites = []
    for period, size in zip(lattice[::-1], block[::-1], strict=True):
        sites.append(outer % (period // size) * size + within % size)
        outer, within = outer // (period // size), within // size
    return sites[::-1]


def distance_parts(options: Options, queries: Tensor, keys: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """What the slopes multiply, [count, N, M], for queries and keys at these positions."""
    rows = coordinates(queries, options.lattice, options.block)
    columns = coordinates(keys, options.lattice, options.block)
    steps = []
    for row, column, period in zip(rows, columns, options.lattice, strict=True):
        apart = (row[:, None] - column).abs()
        steps.append(torch.minimum(apart, period - apart).to(dtype))
    return parts_of_steps(options, steps, count)


def parts_of_steps(options: Options, steps: Sequence[Tensor], count: int) -> Tensor:
    """What the slopes multiply, [count, ...], from the steps along each axis, [...] each."""
    values = []
    for along, period in zip(steps, options.lattice, strict=True):
        if options.metric.startswith("chordal"):
            along = torch.sin(along * (math.pi / period)) * (period / math.pi)
        values.append(along if options.metric in ("l1", "linf") else along.square())
    stacked = torch.stack(values)
    if count > 1:
        return stacked
    if options.metric == "linf":
        return stacked.amax(0, keepdim=True)
    total = stacked.sum(0, keepdim=True)
    return total if options.metric in PER_AXIS else total.sqrt()


class Replay:
    """The dense definition for one call: probabilities and distances."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, mask: Tensor | None, options: Options
    ) -> None:
        self.stored, dtype = q.dtype, compute_dtype(q)
        self.shared, self.scale = q.shape[1] // k.shape[1], options.scale
        self.q, self.k, self.v = q.to(dtype), self._repeat(k.to(dtype)), self._repeat(v.to(dtype))
        queries = torch.arange(q.shape[2], device=q.device) + options.query_offset
        keys = torch.arange(k.shape[2], device=k.device) + options.key_offset
        self.parts = distance_parts(options, queries, keys, slopes.shape[1], dtype)
        scores = self.scale * self.q @ self.k.mT - self._bias(slopes)
        if mask is not None and mask.dtype != torch.bool:
            scores = scores + mask.to(dtype)
        elif mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        if options.causal:
            hidden = keys // options.causal_group > (queries // options.causal_group)[:, None]
            scores = scores.masked_fill(hidden, -math.inf)
        top = scores.detach().amax(-1, keepdim=True)
        weights = torch.exp(scores - torch.where(top == -math.inf, 0.0, top))
        total = weights.sum(-1, keepdim=True)
        self.empty = total == 0
        self.weights = weights / torch.where(self.empty, 1.0, total)

    def gradients(self, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor, ...]:
        """Of q, k, v and slopes."""
        shape = (*self.q.shape[:3], 1)
        grad = torch.zeros_like(self.q) if grad_out is None else grad_out.to(self.q.dtype)
        grad = torch.where(self.empty, 0.0, grad)
        delta = (grad * (self.weights @ self.v)).sum(-1, keepdim=True)
        if grad_lse is not None:
            delta = delta - torch.where(self.empty, 0.0, grad_lse.reshape(shape))
        grad_scores = self.weights * (grad @ self.v.mT - delta)
        grads = (
            self.scale * grad_scores @ self.k,
            self._join(self.scale * grad_scores.mT @ self.q),
            self._join(self.weights.mT @ grad),
        )
        grad_slopes = -torch.einsum("bhnm,snm->hs", grad_scores, self.parts)
        return (*(grad.to(self.stored) for grad in grads), grad_slopes)

    def tangents(
        self, q: Tensor | None, k: Tensor | None, v: Tensor | None, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Of out and lse, from those of the inputs."""
        dtype = self.q.dtype
        scores = torch.zeros_like(self.weights)
        if q is not None:
            scores = scores + self.scale * q.to(dtype) @ self.k.mT
        if k is not None:
            scores = scores + self.scale * self.q @ self._repeat(k.to(dtype)).mT
        if slopes is not None:
            scores = scores - self._bias(slopes)
        lse = (self.weights * scores).sum(-1, keepdim=True)
        out = self.weights * (scores - lse) @ self.v
        if v is not None:
            out = out + self.weights @ self._repeat(v.to(dtype))
        return out.to(self.stored), lse.squeeze(-1)

    def _bias(self, slopes: Tensor) -> Tensor:
        return torch.einsum("hs,snm->hnm", slopes, self.parts)

    def _repeat(self, t: Tensor) -> Tensor:
        """[B, G, M, E] -> [B, H, M, E]."""
        return t.repeat_interleave(self.shared, 1)

    def _join(self, t: Tensor) -> Tensor:
        return t.unflatten(1, (-1, self.shared)).sum(2)
