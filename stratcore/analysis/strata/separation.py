"""How far apart strata are: silhouette, Davies-Bouldin, Calinski-Harabasz. Legend: N rows, D features, C strata."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import silhouette_score

from stratcore.analysis._checks import as_labels, as_matrix


@dataclass(frozen=True, kw_only=True)
class SeparationScores:
    """The three scores of the rows that are no noise, NaN where a score has no meaning.

    silhouette: in [-1, 1], higher is better.
    davies_bouldin: >= 0, lower is better.
    calinski_harabasz: >= 0, higher is better.

    All three ask for round, distant strata: for strata that cross or share a center they say nothing.
    """

    silhouette: float
    davies_bouldin: float
    calinski_harabasz: float
    num_strata: int
    num_rows: int
    num_noise: int


def silhouette(X: ArrayLike, labels: ArrayLike, *, max_rows: int = 2000, seed: int = 0) -> float:
    """Mean silhouette (Euclidean) of at most `max_rows` rows; NaN where a silhouette has no meaning."""
    x_ND = as_matrix("X", X)
    labels_N = as_labels("labels", labels, len(x_ND))
    if len(x_ND) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(x_ND), max_rows, replace=False)
        x_ND, labels_N = x_ND[chosen], labels_N[chosen]
    if not 2 <= len(np.unique(labels_N)) <= len(x_ND) - 1:
        return float("nan")
    return float(silhouette_score(x_ND, labels_N))


def davies_bouldin(X: ArrayLike, labels: ArrayLike) -> float:
    """Davies-Bouldin index: for each stratum its worst neighbor, on average.

        mean_a max_{b != a} (s_a + s_b) / |m_a - m_b|,    s the mean distance of the rows from their mean m

    Args:
        X: rows, [N, D].
        labels: stratum of each row, [N].

    Returns:
        NaN for one stratum or one row a stratum, where it says nothing; infinity where two strata share their
        mean (scikit-learn leaves such a pair out, as if it were well apart). A stratum of one row has s = 0.
    """
    groups = _groups(X, labels)
    if groups is None:
        return float("nan")
    means_CD = np.stack([rows.mean(axis=0) for rows in groups])
    spread_C = np.array([np.linalg.norm(r - m, axis=1).mean() for r, m in zip(groups, means_CD, strict=True)])
    ratio_CC = np.empty((len(groups), len(groups)))
    for c, mean_D in enumerate(means_CD):
        distance_C = np.linalg.norm(means_CD - mean_D, axis=1)
        near_C = distance_C <= 1e-12 * np.abs(means_CD).max(initial=0)
        ratio_CC[c] = np.where(near_C, np.inf, (spread_C + spread_C[c]) / np.where(near_C, 1, distance_C))
    np.fill_diagonal(ratio_CC, -np.inf)
    return float(ratio_CC.max(axis=1).mean())


def calinski_harabasz(X: ArrayLike, labels: ArrayLike) -> float:
    """Calinski-Harabasz index: variance between strata over variance within.

        (B / (C - 1)) / (W / (N - C)),    B = sum_c n_c |m_c - m|^2,    W = sum_c sum_{n in c} |x_n - m_c|^2

    Args:
        X: rows, [N, D].
        labels: stratum of each row, [N].

    Returns:
        NaN for one stratum or one row a stratum, and where all rows are equal; infinity where the rows of each
        stratum are equal (scikit-learn says 1 there).
    """
    groups = _groups(X, labels)
    if groups is None:
        return float("nan")
    count, num_rows = len(groups), sum(len(rows) for rows in groups)
    mean_D = np.concatenate(groups).mean(axis=0)
    between = sum(len(rows) * ((rows.mean(axis=0) - mean_D) ** 2).sum() for rows in groups)
    within = sum(((rows - rows.mean(axis=0)) ** 2).sum() for rows in groups)
    if within <= 1e-24 * max(between, float((mean_D**2).sum()) * num_rows):
        return float("inf") if between > 1e-24 * float((mean_D**2).sum()) * num_rows else float("nan")
    return float(between / (count - 1) / (within / (num_rows - count)))


def separation_scores(
    X: ArrayLike, labels: ArrayLike, *, max_rows: int = 2000, seed: int = 0
) -> SeparationScores:
    """All three scores; rows labeled -1 (noise) are counted and left out.

    Args:
        X: rows, [N, D].
        labels: stratum of each row, [N].
        max_rows: rows drawn for the silhouette, whose cost is their square.
        seed: of that draw.
    """
    x_ND = as_matrix("X", X)
    labels_N = as_labels("labels", labels, len(x_ND))
    noise_N = is_noise(labels_N)
    rows_ND, kept_N = x_ND[~noise_N], labels_N[~noise_N]
    empty = len(kept_N) == 0
    return SeparationScores(
        silhouette=float("nan") if empty else silhouette(rows_ND, kept_N, max_rows=max_rows, seed=seed),
        davies_bouldin=float("nan") if empty else davies_bouldin(rows_ND, kept_N),
        calinski_harabasz=float("nan") if empty else calinski_harabasz(rows_ND, kept_N),
        num_strata=len(np.unique(kept_N)),
        num_rows=len(kept_N),
        num_noise=int(noise_N.sum()),
    )


def is_noise(labels_N: np.ndarray) -> np.ndarray:
    """Whether each label is the -1 by which DBSCAN marks noise, [N]; never for labels that are no numbers."""
    return labels_N == -1 if np.issubdtype(labels_N.dtype, np.number) else np.zeros(len(labels_N), dtype=bool)


def _groups(X: ArrayLike, labels: ArrayLike) -> list[np.ndarray] | None:
    """Rows of each stratum; None for one stratum and for one row a stratum."""
    x_ND = as_matrix("X", X)
    labels_N = as_labels("labels", labels, len(x_ND))
    names = np.unique(labels_N)
    if not 2 <= len(names) <= len(x_ND) - 1:
        return None
    return [x_ND[labels_N == name] for name in names]
