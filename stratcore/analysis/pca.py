"""PCA reduction, fitted on training rows only, with the share of variance that it keeps.

Legend: N rows, D features, R components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA

from stratcore.analysis._checks import as_matrix
from stratcore.analysis.intrinsic_dim import covariance_eigenvalues


def fit_pca(train: ArrayLike, num_components: int) -> PCA:
    """Fit scikit-learn's PCA (no whitening) on training rows.

    Args:
        train: training rows, [N, D].
        num_components: R, in [1, min(N - 1, D)].

    Returns:
        The fitted PCA: `transform`, `inverse_transform`, `mean_`, `components_` [R, D].

    Raises:
        ValueError: more components than the rows can span.

    Determinism: the full SVD with fixed signs, so one input has one answer.
    """
    train_ND = as_matrix("train", train)
    largest = min(len(train_ND) - 1, train_ND.shape[1])
    if not 1 <= num_components <= largest:
        raise ValueError(
            f"num_components: expected 1 to {largest} for {len(train_ND)} rows of "
            f"{train_ND.shape[1]} features, got {num_components}"
        )
    return PCA(n_components=num_components, svd_solver="full").fit(train_ND)


def variance_share(pca: PCA, rows: ArrayLike) -> float:
    """Share of the variance of `rows` (about the training mean) that the components keep, [0, 1].

        1 - sum_n ||x_n - xhat_n||^2 / sum_n ||x_n - mean_train||^2

    On the training rows this equals `pca.explained_variance_ratio_.sum()`; on held-out rows it is lower.
    """
    rows_ND = as_matrix("rows", rows)
    residual_ND = rows_ND - pca.inverse_transform(pca.transform(rows_ND))
    return float(1 - (residual_ND**2).sum() / ((rows_ND - pca.mean_) ** 2).sum())


@dataclass(frozen=True, kw_only=True)
class PCASummary:
    """What a report says of a reduction. `cumulative_variance` runs over all components, kept or not."""

    num_components: int
    variance_share_train: float
    variance_share_test: float
    cumulative_variance: list[float]


def pca_summary(pca: PCA, train: ArrayLike, test: ArrayLike) -> PCASummary:
    """Summarize a fitted PCA on the rows it was fitted on and on held-out rows."""
    eigenvalues = covariance_eigenvalues(train)
    return PCASummary(
        num_components=int(pca.n_components_),
        variance_share_train=variance_share(pca, train),
        variance_share_test=variance_share(pca, test),
        cumulative_variance=(np.cumsum(eigenvalues) / eigenvalues.sum()).tolist(),
    )
