"""Nearest neighbors by cosine: leave-one-out accuracy, hubs; and the cosine gap between classes.

Of unit rows the nearest by distance is the nearest by cosine.

Legend: N rows, D features, m neighbors, C classes.
"""

from __future__ import annotations

import math

import numpy as np

from stratcore.analysis.geometry._directions import SPHERE, TWIN, against, simulated
from stratcore.analysis.geometry._rows import GaussianTwin, Rows, directions
from stratcore.analysis.geometry.results import Baseline, Measurement
from stratcore.analysis.neighbors import nearest_neighbors

HUB_ROWS = 2000
HUB_NEIGHBORS = 10
SHUFFLES = 200


# ---- hubs


def _hubness(u_ND: np.ndarray) -> float:
    """Skewness of how often a row is among the ten nearest of another."""
    counts = np.bincount(nearest_neighbors(u_ND, HUB_NEIGHBORS).indices.ravel(), minlength=len(u_ND)) * 1.0
    deviation = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / deviation**3) if deviation > 0 else 0.0


def hubness_measurements(rows: Rows, twin: GaussianTwin, rng: np.random.Generator) -> list[Measurement]:
    """Skewness of the 10-occurrence among at most 2,000 rows, beside uniform and normal rows."""
    u_ND, name = rows.u_ND, "hubness"
    if len(u_ND) < 5 * HUB_NEIGHBORS:
        why = f"fewer than {5 * HUB_NEIGHBORS} rows that are not 0"
        return [Measurement(name=name, value=math.nan, reading=why)]
    u_ND = u_ND[rng.permutation(len(u_ND))[:HUB_ROWS]]
    dim = rows.x_ND.shape[1]
    value = _hubness(u_ND)
    sphere = [_hubness(directions(rng.standard_normal((len(u_ND), dim)))) for _ in range(3)]
    drawn = [directions(twin.draw(len(u_ND), rng)) for _ in range(3)]
    of_twin = simulated(TWIN, [_hubness(d) for d in drawn if len(d) == len(u_ND)])
    return [
        Measurement(
            name=name,
            value=value,
            baselines=(of_twin, simulated(SPHERE.format(dim=dim), sphere)),
            reading=f"hubs {against(value, of_twin)} what the covariance alone makes (skewness of 10-occurrence)",
        )
    ]


# ---- labels


def label_measurements(rows: Rows, rng: np.random.Generator) -> list[Measurement]:
    """Accuracy of the nearest other row's label, and how much closer rows of one class are."""
    label_N = rows.label_of_directions
    if label_N is None:
        return []
    if len(rows.u_ND) < 2:
        why = "fewer than two rows are not 0"
        return [
            Measurement(name=n, value=math.nan, reading=why)
            for n in ("nearest_neighbor_accuracy", "cosine_gap")
        ]
    code_N = np.unique(label_N, return_inverse=True)[1]
    return [_accuracy(rows, code_N, rng), _gap(rows.u_ND, code_N, rng)]


def _accuracy(rows: Rows, code_N: np.ndarray, rng: np.random.Generator) -> Measurement:
    nearest_N = nearest_neighbors(rows.u_ND, 1).indices[:, 0]
    count = len(code_N)
    value = float((code_N[nearest_N] == code_N).mean())
    shuffled = []
    for _ in range(SHUFFLES):
        mixed_N = rng.permutation(code_N)
        shuffled.append(float((mixed_N[nearest_N] == mixed_N).mean()))
    sizes = np.bincount(code_N)
    chance = float((sizes * (sizes - 1)).sum() / (count * (count - 1)))
    low, high = np.quantile(shuffled, [0.025, 0.975])
    if len(sizes) == 1:
        reading = "one class: the accuracy is 1 by definition"
    else:
        reading = f"{100 * value:.3g} % of rows have their own class nearest, {100 * chance:.3g} % by chance"
    if rows.num_duplicates and len(sizes) > 1:
        reading += "; equal rows are each other's nearest"
    center, half = _wilson(value, count)
    return Measurement(
        name="nearest_neighbor_accuracy", value=value, low=center - half, high=center + half, reading=reading,
        baselines=(
            Baseline(
                name="shuffled labels", source="shuffled labels", value=chance, low=float(low), high=float(high)
            ),
        ),
    )  # fmt: skip


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Center and half-width of Wilson's 95 % interval, of rows as if independent."""
    z2 = 1.96**2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    return center, 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))


def _class_gap(u_ND: np.ndarray, code_N: np.ndarray, sizes: np.ndarray) -> float:
    """Mean cosine within classes minus that between them, of pairs of rows, by the sums of the classes."""
    order = np.argsort(code_N, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums_CD = np.add.reduceat(u_ND[order], starts, axis=0)
    within = float((sums_CD**2).sum()) - len(u_ND)
    total_D = sums_CD.sum(axis=0)
    same = float((sizes * (sizes - 1)).sum())
    other = len(u_ND) * (len(u_ND) - 1) - same
    return within / same - (float(total_D @ total_D) - len(u_ND) - within) / other


def _gap(u_ND: np.ndarray, code_N: np.ndarray, rng: np.random.Generator) -> Measurement:
    name, sizes = "cosine_gap", np.bincount(code_N)
    if len(sizes) == 1:
        return Measurement(name=name, value=math.nan, reading="one class: no pair of two classes")
    if sizes.max() == 1:
        return Measurement(
            name=name, value=math.nan, reading="every row has its own class: no pair of one class"
        )
    value = _class_gap(u_ND, code_N, sizes)
    shuffled = [_class_gap(u_ND, rng.permutation(code_N), sizes) for _ in range(SHUFFLES // 4)]
    baseline = Baseline(
        name="shuffled labels", source="shuffled labels", value=0.0, low=min(shuffled), high=max(shuffled)
    )
    side = {"above": "closer than", "below": "farther apart than", "within": "no closer than"}
    return Measurement(
        name=name,
        value=value,
        baselines=(baseline,),
        reading=f"rows of one class are {side[against(value, baseline)]} rows of two",
    )
