"""Coefficient of variation (CV) of random simplex volumes: losses on it, and what it means.

Legend: N rows, D dimension, k order, S embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stratcore import ops
from stratcore.layers.simplex import MAX_ORDER


@dataclass(frozen=True, kw_only=True)
class SimplexCVOptions:
    """How the coefficient of variation (CV) of simplex volumes is sampled, and where it is driven.

    Args:
        order: k, in [1, 8].
        num_simplices: simplices drawn a call; the CV has a relative error of about 1 / sqrt(2 num_simplices).
        target: CV aimed at; None takes that of uniform points on the sphere of `target_dim` dimensions.
        target_dim: effective dimension aimed at, where `target` is None; None: the size of a row.
        pool: vertices are drawn from that many first rows only; None: from all.
        valid_above: simplices count whose squared volume is larger.
        min_valid: with fewer simplices that count, the loss is 0.
        eps: CV = std / (mean + eps).
    """

    order: int = 4
    num_simplices: int = 512
    target: float | None = None
    target_dim: int | None = None
    pool: int | None = None
    valid_above: float = 0.0
    min_valid: int = 2
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order: expected a number in [1, {MAX_ORDER}], got {self.order}")
        if not 2 <= self.min_valid <= self.num_simplices:
            raise ValueError(
                f"min_valid: expected a number in [2, num_simplices = {self.num_simplices}], got {self.min_valid}"
            )
        if self.target is not None and self.target_dim is not None:
            raise ValueError(
                f"target and target_dim: expected one of them at most, got {self.target} and {self.target_dim}"
            )
        if self.target is not None and not self.target > 0:
            raise ValueError(f"target: expected a positive number or None, got {self.target}")
        if self.target_dim is not None and self.target_dim < self.order:
            raise ValueError(f"target_dim: expected at least order = {self.order}, got {self.target_dim}")
        if self.pool is not None and self.pool <= self.order:
            raise ValueError(f"pool: expected more than order = {self.order} rows, got {self.pool}")
        if not (self.valid_above >= 0 and self.eps >= 0):
            raise ValueError(
                f"valid_above and eps: expected numbers >= 0, got {self.valid_above} and {self.eps}"
            )

    @classmethod
    def of_source_documents(cls, target: float = 0.2) -> SimplexCVOptions:
        """The source documents' convention: 64 simplices of the first 512 rows, V^2 > 1e-20, at least 5 of them."""
        return cls(num_simplices=64, target=target, pool=512, valid_above=1e-20, min_valid=5, eps=1e-8)

    def target_of(self, dim: int) -> float:
        """CV that the loss aims at, for rows of size `dim`."""
        if self.target is not None:
            return self.target
        return ops.cv_uniform(dim if self.target_dim is None else self.target_dim, self.order)

    def drawn_from(self, x_ND: Tensor) -> tuple[int, int]:
        """Rows of an embedding that vertices are drawn from, and their size."""
        rows, dim = x_ND.shape
        return (rows if self.pool is None else min(self.pool, rows)), dim


@dataclass(frozen=True, kw_only=True)
class CVReport:
    """A CV beside what it means: that of uniform points on the same sphere, and the dimension where it is uniform.

    effective_dim with its interval [low, high], of at least 95 %, is NaN where too few simplices count. The interval
    counts no more simplices than could share no row, so it is too wide rather than too short. Clusters raise a CV as
    well as flatness does: the effective dimension is an equivalence, not a rank.
    """

    cv: float
    baseline: float
    effective_dim: float
    low: float
    high: float
    dim: int
    order: int
    count: int

    def __str__(self) -> str:
        return (
            f"CV {self.cv:.4f} of {self.count} simplices of order {self.order}; uniform in {self.dim} dimensions "
            f"{self.baseline:.4f}; effective dimension {self.effective_dim:.1f} [{self.low:.1f}, {self.high:.1f}]"
        )


class CVLoss(NamedTuple):
    """A CV loss and the statistics it comes from.

    loss: scalar, mean over S embeddings. cv: [S], detached. valid: simplices that count, [S]. shapes: the number of
    rows that vertices are drawn from, and their size. order: k.
    """

    loss: Tensor
    cv: Tensor
    valid: Tensor
    shapes: tuple[tuple[int, int], ...]
    order: int

    def report(self) -> list[CVReport]:
        """The CV of every embedding with its baseline and effective dimension; waits for the device."""
        found = zip(self.cv.tolist(), self.valid.tolist(), self.shapes, strict=True)
        return [_report(cv, count, shape, self.order) for cv, count, shape in found]


def _report(cv: float, count: int, shape: tuple[int, int], order: int) -> CVReport:
    rows, dim = shape
    independent = min(count, rows // (order + 1))
    effective = (math.nan,) * 3
    if math.isfinite(cv) and cv > 0:
        effective = ops.effective_dim_from_cv(
            cv, order, num_simplices=independent if independent > 1 else None
        )
    return CVReport(
        cv=cv,
        baseline=ops.cv_uniform(dim, order),
        effective_dim=effective[0],
        low=effective[1],
        high=effective[2],
        dim=dim,
        order=order,
        count=count,
    )


def dual_cv_loss(
    embeddings: Sequence[Tensor], options: SimplexCVOptions | None = None, *, seed: Tensor | None = None
) -> CVLoss:
    """Mean over embeddings of (CV of the volumes of random simplices - target)^2.

    Args:
        embeddings: at least one [N, D], N > k, D >= k; unit rows, if the default target is to mean anything.
        options: defaults to `SimplexCVOptions()`.
        seed: int64 [2] on the embeddings' device, (seed, offset): the same simplices, as indices of rows, for all
            embeddings. None: fresh ones, from torch's generator.

    Returns:
        `CVLoss`.

    Raises:
        ValueError: no embedding, not a matrix, or rows shorter than k.

    Gradient: of the loss, to every vertex drawn. No wait for the device.
    """
    options = SimplexCVOptions() if options is None else options
    if not embeddings:
        raise ValueError("dual_cv_loss: expected at least one embedding, got none")
    for x_ND in embeddings:
        if x_ND.ndim != 2 or x_ND.shape[1] < options.order:
            raise ValueError(
                f"dual_cv_loss: expected embeddings [N, D] with D >= order = {options.order}, got {[*x_ND.shape]}"
            )
    shapes = tuple(options.drawn_from(x_ND) for x_ND in embeddings)
    samples = [
        ops.simplex_cv(
            x_ND,
            k=options.order,
            num_simplices=options.num_simplices,
            target=options.target_of(dim),
            seed=seed,
            pool=rows,
            valid_above=options.valid_above,
            min_valid=options.min_valid,
            eps=options.eps,
        )
        for x_ND, (rows, dim) in zip(embeddings, shapes, strict=True)
    ]
    losses = _stacked([sample.loss for sample in samples])
    return CVLoss(
        losses.mean() if len(samples) > 1 else losses[0],
        _stacked([sample.cv.detach() for sample in samples]),
        _stacked([sample.count for sample in samples]),
        shapes,
        options.order,
    )


def _stacked(scalars: list[Tensor]) -> Tensor:
    """As torch.stack, but a view of a single one: no kernel for what is mostly one embedding."""
    return torch.stack(scalars) if len(scalars) > 1 else scalars[0].unsqueeze(0)


def cv_loss(x: Tensor, options: SimplexCVOptions | None = None, *, seed: Tensor | None = None) -> CVLoss:
    """`dual_cv_loss` of one embedding [N, D]."""
    return dual_cv_loss([x], options, seed=seed)


def anchor_cv_loss(
    anchors: Tensor, options: SimplexCVOptions | None = None, *, seed: Tensor | None = None
) -> CVLoss:
    """`cv_loss` of anchors [A, D] of any lengths, normalized."""
    return dual_cv_loss([normalize(anchors, dim=-1)], options, seed=seed)


class SimplexCVLoss(nn.Module):
    """CV loss that draws fresh simplices at every call, in a replayed CUDA graph too.

    Seed and offset are one int64 buffer on the device, in the state dict, so a resumed run goes on with the same
    draws; the offset advances in place. Recomputing a call (checkpointed activations) draws anew: keep it outside.
    """

    state: Tensor

    def __init__(self, options: SimplexCVOptions | None = None, *, seed: int | None = None) -> None:
        super().__init__()
        self.options = SimplexCVOptions() if options is None else options
        start = int(torch.randint(2**62, ())) if seed is None else seed
        self.register_buffer("state", torch.tensor([start, 0], dtype=torch.int64))

    def forward(self, *embeddings: Tensor) -> CVLoss:
        """`dual_cv_loss` of embeddings [N, D]."""
        self.state[1].add_(1)
        return dual_cv_loss(embeddings, self.options, seed=self.state)
