"""Gradients and tangents of the simplex measures in differentiable torch operations, for every further order.

Computed in float64. Legend: B simplices, k order, V = k + 1 vertices, D dimension, N rows of a table,
P = k (k + 1) / 2 pairs of vertices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DEGENERATE = 1e-14  # as kDegenerate in csrc/cayley_menger/cayley_menger_math.h
NEARLY_SINGULAR = 1e-4


def determinant_coefficient(k: int) -> float:
    """The factor of det M = factor V^2 for the bordered matrix M of squared distances."""
    return (-1.0) ** (k + 1) * 2.0**k * math.factorial(k) ** 2


def squared_cotangent(k: int, squared_volume: Tensor | None, determinant: Tensor | None) -> Tensor:
    """Cotangent of V^2 that both together are; at least one is given."""
    if determinant is None:
        assert squared_volume is not None  # for mypy
        return squared_volume
    scaled = determinant_coefficient(k) * determinant
    return scaled if squared_volume is None else squared_volume + scaled


def vertex_pairs(k: int, device: torch.device) -> Tensor:
    """[2, P]: the pairs (0, 1), (0, 2), .., (0, k), (1, 2), .. in the order of the distances."""
    return torch.triu_indices(k + 1, k + 1, 1, device=device)


def adjugate(matrix: Tensor) -> Tensor:
    """det(A) A^-1 of symmetric [B, k, k], also where A is singular, differentiable any number of times.

    With R = A + t v v^T regular, adj(A) = det(R) ((1 - t v^T R^-1 v) R^-1 + t R^-1 v v^T R^-1). That holds for
    every constant v and t; here v is the eigenvector of the eigenvalue nearest to 0. Where a second eigenvalue is
    near 0 too, by Faddeev and LeVerrier's recursion, which divides by nothing.
    """
    k = matrix.shape[-1]
    identity = torch.eye(k, dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix.detach()))
    sizes, order = values.abs().sort(dim=-1)
    largest, second = sizes[:, -1], sizes[:, min(1, k - 1)]
    repairable = ((second > NEARLY_SINGULAR * largest) | (k == 1))[:, None, None]
    nearest = torch.take_along_dim(vectors, order[:, None, :1], dim=-1)  # [B, k, 1]
    sign = torch.where(torch.take_along_dim(values, order[:, :1], dim=-1) < 0, -1.0, 1.0)[:, 0]
    step = (sign * torch.where(largest > 0, largest, 1.0))[:, None, None]
    repaired = torch.where(repairable, matrix + step * nearest @ nearest.mT, identity)
    inverse = torch.linalg.inv(repaired)
    lifted = inverse @ nearest
    rest = 1.0 - step * (nearest.mT @ lifted)
    by_repair = torch.linalg.det(repaired)[:, None, None] * (rest * inverse + step * lifted @ lifted.mT)
    other = torch.where(repairable, identity, matrix)
    product = identity.expand_as(matrix)
    for count in range(1, k):
        moved = other @ product
        trace = moved.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        product = moved - trace / count * identity
    return torch.where(repairable, by_repair, (-1.0) ** (k - 1) * product)


def through_table(points: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Vertices [B, k + 1, D] in float64, the rows that they were read from, and which simplices have all rows."""
    points = points.double()
    if indices is None:
        return points, None, None
    inside = ((indices >= 0) & (indices < points.shape[0])).all(-1)
    rows = torch.where(inside[:, None], indices, 0)
    return points.index_select(0, rows.flatten()).unflatten(0, tuple(rows.shape)), rows, inside


class SimplexReplay:
    """One batch of simplices: dual vectors where they are not degenerate, Gram matrix, edges."""

    def __init__(self, vertices_BVD: Tensor) -> None:
        self.k = vertices_BVD.shape[1] - 1
        self.vertices = vertices_BVD
        self.edges = vertices_BVD[:, 1:] - vertices_BVD[:, :1]
        self.gram = self.edges @ self.edges.mT
        self.pairs = vertex_pairs(self.k, vertices_BVD.device)
        self.differences = vertices_BVD[:, self.pairs[0]] - vertices_BVD[:, self.pairs[1]]
        gram = self.gram.detach()
        factor, failed = torch.linalg.cholesky_ex(torch.nan_to_num(gram))
        heights = factor.diagonal(dim1=-2, dim2=-1).square()
        full = (failed == 0) & (heights > DEGENERATE * gram.diagonal(dim1=-2, dim2=-1)).all(-1)
        self.full = full[:, None, None]
        identity = torch.eye(self.k, dtype=gram.dtype, device=gram.device)
        factor, _ = torch.linalg.cholesky_ex(torch.where(self.full, self.gram, identity))
        # dual vectors: the gradient of log V with respect to the edges
        self.dual = torch.where(self.full, torch.cholesky_solve(self.edges, factor), 0.0)
        heights = factor.diagonal(dim1=-2, dim2=-1)
        self.volume = torch.where(full, heights.prod(-1) / math.factorial(self.k), 0.0)
        # NaN of a vertex reaches every result of its simplex
        self.poison = (gram.diagonal(dim1=-2, dim2=-1).sum(-1) * 0.0)[:, None, None]

    def squared_volume_edges(self) -> Tensor:
        """Gradient of V^2 with respect to the edges [B, k, D]; it has a derivative at degenerate simplices too."""
        return 2.0 / math.factorial(self.k) ** 2 * adjugate(self.gram) @ self.edges

    def gradient(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Gradient [B, k + 1, D] with respect to the vertices."""
        volume, log_volume, squared_volume, determinant, distances = (
            None if grad is None else grad.double() for grad in grads
        )
        edges = self.poison.expand_as(self.edges)
        if volume is not None:
            edges = edges + (volume * self.volume)[:, None, None] * self.dual
        if log_volume is not None:
            edges = edges + log_volume[:, None, None] * self.dual
        if squared_volume is not None or determinant is not None:
            weight = squared_cotangent(self.k, squared_volume, determinant)
            edges = edges + weight[:, None, None] * self.squared_volume_edges()
        result = torch.cat([-edges.sum(1, keepdim=True), edges], dim=1)
        if distances is not None:
            part = 2.0 * distances[..., None] * self.differences
            result = result.index_add(1, self.pairs[0], part).index_add(1, self.pairs[1], -part)
        return result

    def tangents(self, tangent_BVD: Tensor) -> list[Tensor]:
        """Tangents of the five measures for a tangent of the vertices."""
        edges = tangent_BVD[:, 1:] - tangent_BVD[:, :1] + self.poison
        logarithm = (self.dual * edges).sum((-2, -1))
        squared = (self.squared_volume_edges() * edges).sum((-2, -1))
        moved = tangent_BVD[:, self.pairs[0]] - tangent_BVD[:, self.pairs[1]]
        distances = 2.0 * (self.differences * moved).sum(-1)
        return [
            self.volume * logarithm,
            logarithm,
            squared,
            determinant_coefficient(self.k) * squared,
            distances,
        ]


def gradient_of_points(points: Tensor, indices: Tensor | None, grads: Sequence[Tensor | None]) -> Tensor:
    """Gradient with respect to `points`, a batch of vertices or a table; differentiable in everything."""
    vertices, rows, inside = through_table(points, indices)
    result = SimplexReplay(vertices).gradient(grads)
    if rows is not None and inside is not None:
        result = torch.where(inside[:, None, None], result, 0.0)
        empty = torch.zeros(points.shape, dtype=result.dtype, device=result.device)
        result = empty.index_add(0, rows.flatten(), result.flatten(0, 1))
    return result.to(points.dtype)


def gradient_of_distances(distances_BP: Tensor, k: int, grads: Sequence[Tensor | None]) -> Tensor:
    """Gradient with respect to squared distances; differentiable in everything."""
    d = distances_BP.double()
    first, second = vertex_pairs(k, d.device)
    positions = d.new_zeros(d.shape[-1], k + 1, k + 1, dtype=torch.float64)
    positions[torch.arange(d.shape[-1], device=d.device), first, second] = 1.0
    square = torch.einsum("bp,pij->bij", d, positions + positions.mT)
    gram = (square[:, :1, 1:] + square[:, 1:, :1] - square[:, 1:, 1:]) / 2
    volume, log_volume, squared_volume, determinant = (None if g is None else g.double() for g in grads)
    cofactors = adjugate(gram)
    weights = torch.zeros_like(gram)
    if squared_volume is not None or determinant is not None:
        weight = squared_cotangent(k, squared_volume, determinant)
        weights = weights + weight[:, None, None] * cofactors / math.factorial(k) ** 2
    if volume is not None or log_volume is not None:
        squared = (gram[:, 0] * cofactors[:, 0]).sum(-1)
        positive = ~(squared.detach() <= 0)
        squared = torch.where(positive, squared, 1.0)
        weight = torch.zeros_like(squared) if log_volume is None else log_volume
        if volume is not None:
            weight = weight + volume * squared.sqrt() / math.factorial(k)
        weights = weights + torch.where(positive, 0.5 * weight / squared, 0.0)[:, None, None] * cofactors
    from_first = weights.sum(-1)
    upper = torch.triu_indices(k, k, 1, device=d.device)
    between = -weights[:, upper[0], upper[1]]
    return torch.cat([from_first, between], dim=1).to(distances_BP.dtype)
