"""What the neighborhoods of a cloud show of its dimension and of what hides it: distances, angles, displacement.

Legend: M rows, D features, C centers among them, K neighbors of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Neighborhoods:
    """Sums over the neighborhood of each center, [C].

    inverse_near, inverse_far: 1 / d(x) of Levina and Bickel from a fifth of the neighbors and from all.
    cosine: mean cosine of the angle between two neighbors seen from the center: 0 in the middle of a flat cloud;
    where the cloud bends or ends, neighbors lie to one side. second, third, fourth: central moments of the cosine.
    """

    inverse_near: np.ndarray
    inverse_far: np.ndarray
    cosine: np.ndarray
    second: np.ndarray
    third: np.ndarray
    fourth: np.ndarray

    def stack(self) -> np.ndarray:
        """[C, 6], the order of the fields."""
        fields = (self.inverse_near, self.inverse_far, self.cosine, self.second, self.third, self.fourth)
        return np.stack(fields, axis=1)


def neighborhoods(x_MD: np.ndarray, distances_CK: np.ndarray, neighbors_CK: np.ndarray) -> Neighborhoods:
    """Measures the neighborhoods of the first C rows.

    Args:
        x_MD: rows, all distinct.
        distances_CK: distances to the K nearest other rows, sorted; K >= 10.
        neighbors_CK: their indices.

    Numerics: angles in float32, sums in float64.
    """
    num_neighbors = distances_CK.shape[1]
    near = max(3, num_neighbors // 5)
    logs_CK = np.log(distances_CK)
    first, second = torch.triu_indices(num_neighbors, num_neighbors, 1).unbind()
    x = torch.from_numpy(np.ascontiguousarray(x_MD - x_MD.mean(axis=0), dtype=np.float32))
    moments = []
    chunk = max(1, 2**23 // (num_neighbors * max(num_neighbors, x.shape[1])))
    for start in range(0, len(neighbors_CK), chunk):
        index = torch.from_numpy(neighbors_CK[start : start + chunk])
        direction = torch.nn.functional.normalize(x[index] - x[start : start + len(index), None], dim=-1)
        cosine = (direction @ direction.mT)[:, first, second].double()
        mean = cosine.mean(dim=1, keepdim=True)
        centered = cosine - mean
        square = centered * centered
        powers = (square, square * centered, square * square)
        moments.append(torch.stack([mean[:, 0], *(p.mean(dim=1) for p in powers)], dim=1).numpy())
    cosine_C, second_C, third_C, fourth_C = np.concatenate(moments).T
    return Neighborhoods(
        inverse_near=(logs_CK[:, near - 1 : near] - logs_CK[:, : near - 1]).mean(axis=1),
        inverse_far=(logs_CK[:, -1:] - logs_CK[:, :-1]).mean(axis=1),
        cosine=cosine_C,
        second=second_C,
        third=third_C,
        fourth=fourth_C,
    )


def shape_statistics(means: np.ndarray) -> np.ndarray:
    """[..., 4] numbers without dimension from means [..., 6] over centers, in the order of `Neighborhoods`.

    log of the dimension in which directions are as concentrated, (1 - cosine)^2 / second; the cosine; its
    skewness times the root of that dimension and its excess kurtosis times it, both through arsinh. A flat cloud
    has log d, 0, 0 and asinh(-6 d / (d + 2)); curvature shows in the last three.
    """
    _, _, cosine, second, third, fourth = np.moveaxis(means, -1, 0)
    concentration = (1 - cosine) ** 2 / second
    skewness = np.arcsinh(third / second**1.5 * np.sqrt(concentration))
    kurtosis = np.arcsinh((fourth / second**2 - 3) * concentration)
    return np.stack([np.log(concentration), cosine, skewness, kurtosis], axis=-1)
