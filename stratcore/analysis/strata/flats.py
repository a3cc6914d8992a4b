"""Affine subspaces through weighted rows: their axes, their dimension, and where a search for several begins.

Legend: N rows, D features, C clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from stratcore.analysis.subspaces import subspace_clusters

Dims = int | Sequence[int] | None

# Upper quantile of the Tracy-Widom law of real matrices at .0001, by the gamma law that Chiani 2014 fits to it.
_TRACY_WIDOM = 4.3211
NOISE_FLOOR = 1e-10


def principal_axes(
    x_ND: np.ndarray, weights_N: np.ndarray | None = None, *, center: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, eigenvalues and eigenvectors of the (weighted) covariance, largest first.

    Args:
        x_ND: rows.
        weights_N: non-negative weights, their sum > 0; None: all alike.
        center: False takes second moments about the origin; the mean is then zero.

    Returns:
        mean [D], eigenvalues [R], columns [D, R] with R = min(N, D). The divisor is the sum of the weights.

    Determinism: the largest entry of each column is positive.
    """
    weight_N = np.ones(len(x_ND)) if weights_N is None else weights_N
    total = weight_N.sum()
    mean_D = weight_N @ x_ND / total if center else np.zeros(x_ND.shape[1])
    rows_ND = (x_ND - mean_D) * np.sqrt(weight_N / total)[:, None]
    if len(rows_ND) < rows_ND.shape[1]:
        _, singular_R, axes_RD = np.linalg.svd(rows_ND, full_matrices=False)
        values_R, axes_DR = singular_R**2, axes_RD.T
    else:
        values_R, axes_DR = np.linalg.eigh(rows_ND.T @ rows_ND)
        values_R, axes_DR = np.maximum(values_R[::-1], 0), axes_DR[:, ::-1]
    largest_R = np.abs(axes_DR).argmax(axis=0)
    return mean_D, values_R, axes_DR * np.where(axes_DR[largest_R, np.arange(len(values_R))] < 0, -1.0, 1.0)


def signal_dimension(eigenvalues: np.ndarray, num_features: int, num_rows: float, floor: float = 0.0) -> int:
    """Smallest q such that isotropic noise of unknown variance explains all but the q largest eigenvalues.

    Noise explains D - q eigenvalues where neither the largest nor the smallest lies outside what it shows with
    probability .0001 at that end (Tracy-Widom); its variance is their mean.

    Args:
        eigenvalues: of a covariance, largest first, [<= D]; missing ones count as zero.
        num_features: D; features that never vary are not to be counted.
        num_rows: rows (or their weights) behind the covariance.
        floor: eigenvalues up to this one count as noise in any case.

    Returns:
        In [0, min(D - 1, rows / 2)]. Rows as wide in every direction have dimension 0, so in one dimension the
        answer is always 0.

    Source: Kritchman and Nadler 2008 (the largest), Ma 2012 (the smallest).
    """
    values = np.zeros(num_features)
    values[: len(eigenvalues)] = eigenvalues[:num_features]
    tails = np.maximum(values[::-1].cumsum()[::-1], 0)
    most = max(0, min(num_features - 1, int(num_rows / 2), len(eigenvalues)))
    for q in range(most):
        noise = tails[q] / (num_features - q)
        low, high = _noise_edges(num_rows - q, num_features - q)
        if values[q] <= max(noise * high, floor) and (values[-1] >= noise * low or values[q] <= floor):
            return q
    return most


def num_varying(x_ND: np.ndarray) -> int:
    """Features that are not the same number in every row."""
    return int((x_ND != x_ND[0]).any(axis=0).sum())


def _noise_edges(freedom: float, num_features: int) -> tuple[float, float]:
    """Smallest and largest eigenvalue that unit noise in so many dimensions shows, each with probability .0001."""
    rows, columns = np.sqrt(max(freedom - 0.5, 0.5)), np.sqrt(num_features - 0.5)
    high = (rows + columns) ** 2 + _TRACY_WIDOM * (rows + columns) * (1 / rows + 1 / columns) ** (1 / 3)
    low = 0.0
    if rows > columns:
        low = (rows - columns) ** 2 - _TRACY_WIDOM * (rows - columns) * (1 / columns - 1 / rows) ** (1 / 3)
    return max(low, 0.0) / freedom, high / freedom


def check_dims(dims: Any, num_clusters: int, num_features: int) -> list[int] | None:
    """Return one dimension a cluster; None where they are to be chosen.

    Raises:
        ValueError: another number of dimensions than clusters, or one that is not in [0, D - 1].
    """
    if dims is None:
        return None
    listed: list[Any] = [dims] * num_clusters if isinstance(dims, Integral) else list(dims)
    most = num_features - 1
    whole = all(isinstance(dim, Integral) for dim in listed)
    if len(listed) != num_clusters or not whole or not 0 <= min(listed) <= max(listed) <= most:
        raise ValueError(f"dims: expected {num_clusters} dimensions from 0 to {most}, got {dims}")
    return [int(d) for d in listed]


def start_labels(
    x_ND: np.ndarray, num_clusters: int, num_starts: int, random_state: np.random.RandomState
) -> Iterator[np.ndarray]:
    """Labels [N] to begin with, -1 for rows that are left out: lines, centers, random lines, lines, ...

    `lines` is `subspace_clusters`, which needs no distance between the centers of the strata; `centers` is KMeans,
    which needs one; `random lines` gives each row to the one of C random rows of largest |cosine|.
    """
    if num_clusters == 1:
        yield np.zeros(len(x_ND), dtype=np.int64)
        return
    for start in range(num_starts):
        seed = int(random_state.randint(2**31 - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
            labels_N = _STARTS[start % len(_STARTS)](x_ND, num_clusters, seed)
        yield labels_N


def _lines(x_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    rows, cluster = subspace_clusters(x_ND, num_clusters, seed=seed)
    labels_N = np.full(len(x_ND), -1)
    labels_N[rows] = cluster
    return labels_N


def _centers(x_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    return KMeans(num_clusters, n_init=2, random_state=seed).fit_predict(x_ND)


def _random_lines(x_ND: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    unit_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-300)
    chosen = np.random.default_rng(seed).choice(len(x_ND), num_clusters, replace=False)
    return np.abs(unit_ND @ unit_ND[chosen].T).argmax(axis=1)


_STARTS = (_lines, _centers, _random_lines)
