"""Definition of the simplex measures in plain torch.

Legend: k order, D dimension, P = k (k + 1) / 2 pairs of vertices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_distances(points: Tensor) -> Tensor:
    """[..., k + 1, D] -> [..., P], pairs (0, 1), (0, 2), .., (0, k), (1, 2), .."""
    first, second = torch.triu_indices(points.shape[-2], points.shape[-2], 1, device=points.device)
    return (points[..., first, :] - points[..., second, :]).square().sum(-1)


def order_of(pairs: int) -> int:
    """The k with k (k + 1) / 2 = P."""
    return (math.isqrt(8 * pairs + 1) - 1) // 2


def bordered(distances: Tensor) -> Tensor:
    """[..., P] -> [[0, 1^T], [1, d]] of shape [..., k + 2, k + 2]."""
    k = order_of(distances.shape[-1])
    first, second = torch.triu_indices(k + 1, k + 1, 1, device=distances.device) + 1
    matrix = distances.new_zeros(*distances.shape[:-1], k + 2, k + 2)
    matrix[..., 0, 1:] = matrix[..., 1:, 0] = 1.0
    matrix[..., first, second] = distances
    matrix[..., second, first] = distances
    return matrix


def cayley_menger_determinant(distances: Tensor) -> Tensor:
    """Determinant of the bordered matrix of squared distances [..., P]."""
    return torch.linalg.det(bordered(distances))


def squared_volume_of_distances(distances: Tensor) -> Tensor:
    """(-1)^(k + 1) det / (2^k (k!)^2) of squared distances [..., P]; its sign is that of the determinant."""
    k = order_of(distances.shape[-1])
    return (-1) ** (k + 1) / (2**k * math.factorial(k) ** 2) * cayley_menger_determinant(distances)


def squared_volume(points: Tensor) -> Tensor:
    """The definition, through the bordered determinant: [..., k + 1, D] -> [...]."""
    return squared_volume_of_distances(squared_distances(points))


def squared_volume_of_edges(points: Tensor) -> Tensor:
    """det(E E^T) / (k!)^2 with the edges E from vertex 0: the same, and accurate for flat simplices too."""
    edges = points[..., 1:, :] - points[..., :1, :]
    return torch.linalg.det(edges @ edges.mT) / math.factorial(edges.shape[-2]) ** 2


def log_volume(points: Tensor) -> Tensor:
    """Logarithm of V by the QR decomposition of the edges; for simplices that are not degenerate."""
    edges = points[..., 1:, :] - points[..., :1, :]
    heights = torch.linalg.qr(edges.mT).R.diagonal(dim1=-2, dim2=-1).abs()
    return heights.log().sum(-1) - math.lgamma(edges.shape[-2] + 1)


def simplex_measures(points: Tensor) -> tuple[Tensor, ...]:
    """(volume, log-volume, squared volume, determinant, squared distances) of [..., k + 1, D], D >= k."""
    logarithm, distances, k = log_volume(points), squared_distances(points), points.shape[-2] - 1
    squared = squared_volume_of_edges(points)
    determinant = (-1) ** (k + 1) * 2**k * math.factorial(k) ** 2 * squared
    return logarithm.exp(), logarithm, squared, determinant, distances
