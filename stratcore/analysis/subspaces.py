"""Subspace clustering, the start of a mixture of dictionaries. Legend: N rows, d features, C clusters."""

from __future__ import annotations

import numpy as np


def subspace_clusters(
    x_Nd: np.ndarray, num_clusters: int, *, neighbors: int = 8, max_rows: int = 1500, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters rows by the lines they lie on: thresholded subspace clustering.

    Two rows are neighbors where |cos| is among the `neighbors` largest of one of them; the graph with weights
    exp(-2 arccos |cos|) is cut spectrally. x and -x are one line, so strata that share a center come apart.
    Small disconnected pieces are left out; a cut that isolates a few rows gives way to KMeans of directions.

    Args:
        x_Nd: rows.
        num_clusters: C.
        neighbors: edges a row.
        max_rows: a random part of the rows is used where there are more; time and memory grow with its square.
        seed: of that part and of the spectral cut.

    Returns:
        Indices of the rows that were used and the cluster of each, every cluster non-empty.

    Raises:
        ValueError: fewer rows than clusters.

    Determinism: a function of its arguments on one machine.
    Source: Heckel and Boelcskei 2015 (thresholding-based subspace clustering).
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import KMeans

    if len(x_Nd) < num_clusters:
        raise ValueError(f"subspace_clusters: expected at least {num_clusters} rows, got {len(x_Nd)}")
    if len(x_Nd) == num_clusters:
        return np.arange(num_clusters), np.arange(num_clusters)
    rows = np.sort(np.random.default_rng(seed).permutation(len(x_Nd))[:max_rows])
    unit = x_Nd[rows] / np.maximum(np.linalg.norm(x_Nd[rows], axis=1, keepdims=True), 1e-30)
    cosine = np.abs(unit @ unit.T)
    np.fill_diagonal(cosine, 0.0)
    edges = min(neighbors, len(rows) - 1)
    nearest = np.argpartition(-cosine, edges - 1, axis=1)[:, :edges]
    weights = np.zeros_like(cosine)
    near = np.take_along_axis(cosine, nearest, axis=1)
    np.put_along_axis(weights, nearest, np.exp(-2 * np.arccos(np.clip(near, 0.0, 1.0))), axis=1)
    weights = weights + weights.T
    _, component = connected_components(weights > 0)
    size = np.bincount(component)
    # A piece of a few rows would be a cluster by itself: outliers start no expert.
    large = size[component] >= max(2, len(rows) // (10 * num_clusters))
    if large.sum() >= num_clusters:
        rows, unit, weights = rows[large], unit[large], weights[np.ix_(large, large)]
    labels = _spectral_cut(weights, num_clusters, seed)
    if np.bincount(labels, minlength=num_clusters).min() < len(rows) // (20 * num_clusters) + 1:
        labels = KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(unit)
    return rows, labels


def _spectral_cut(weights_NN: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Clusters the nodes of a graph by KMeans of the leading eigenvectors of its normalized weights.

    SpectralClustering of scikit-learn before 1.9 factorizes an exactly singular matrix for them and errs.
    """
    from scipy.linalg import eigh
    from sklearn.cluster import KMeans

    scale_N = 1 / np.sqrt(weights_NN.sum(axis=1, dtype=np.float64))
    count = len(scale_N)
    _, vectors_NC = eigh(
        scale_N[:, None] * weights_NN * scale_N, subset_by_index=(count - num_clusters, count - 1)
    )
    return KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(scale_N[:, None] * vectors_NC)
