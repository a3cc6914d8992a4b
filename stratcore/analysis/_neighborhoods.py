"""What the neighborhoods of a cloud show of its dimension and of what hides it: distances, angles, displacement.

Legend: M rows, D features, C centers among them, K neighbors of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.distance import pdist

_QUANTILES = (1e-3, 1e-2, 1e-1)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


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


def pair_statistics(x_PD: np.ndarray) -> np.ndarray:
    """[9] numbers from the distances of all pairs: at three quantiles q of them, (plain, curved, radius).

    Within the radius r_q that holds a share q of the pairs, the density of distances is taken as r^(d - 1), plain, or
    as r^(d - 1) exp(a r^2), curved: a holds the first order of what curvature and boundary do to the volume of a
    ball. Both d by maximum likelihood; the radius is relative to the root mean square distance.
    """
    distances = pdist(x_PD)
    scale = np.sqrt((distances @ distances) / len(distances))
    largest = max(8, int(_QUANTILES[-1] * len(distances)))
    near = np.sort(np.partition(distances, largest)[:largest])
    statistics = []
    for quantile in _QUANTILES:
        inside = near[: max(8, int(quantile * len(distances)))]
        logs = np.log(inside / inside[-1])
        statistics += [-1 / logs.mean(), _curved_dimension(logs), inside[-1] / scale]
    return np.array(statistics)


def _curved_dimension(logs: np.ndarray) -> float:
    """Maximum likelihood d of the density r^(d - 1) exp(a r^2) on (0, 1], from log r; by Newton steps."""
    nodes = (_NODES + 1) / 2
    r = nodes ** max(1e-3, min(1.0, -2 * logs.mean()))  # nodes where the distances are
    log_weight = np.log(_WEIGHTS) + np.log(r) - np.log(nodes)
    functions = np.stack([np.log(r), r**2])
    means = np.array([logs.mean(), np.exp(2 * logs).mean()])
    theta = np.array([-1 / logs.mean() - 1, 0.0])

    def deviance(theta: np.ndarray) -> float:
        exponent = theta @ functions + log_weight
        return float(exponent.max() + np.log(np.exp(exponent - exponent.max()).sum()) - theta @ means)

    for _ in range(50):
        exponent = theta @ functions + log_weight
        density = np.exp(exponent - exponent.max())
        density /= density.sum()
        expected = functions @ density
        information = (functions * density) @ functions.T - np.outer(expected, expected)
        step = np.linalg.solve(information + 1e-14 * np.trace(information) * np.eye(2), means - expected)
        while deviance(theta + step) > deviance(theta) and np.abs(step).max() > 1e-6:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < 1e-6:
            break
    return float(theta[0] + 1)
