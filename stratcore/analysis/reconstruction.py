"""How much of the variance of held-out rows a reconstruction leaves unexplained, with intervals.

Legend: N rows, D features. FVU is the fraction of variance unexplained; R^2 = 1 - FVU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stratcore.analysis._checks import as_labels, as_matrix
from stratcore.analysis.pca import fit_pca
from stratcore.analysis.resampling import Resampling


@dataclass(frozen=True, kw_only=True)
class Score:
    """FVU of some rows with its bootstrap interval, and R^2 = 1 - FVU."""

    fvu: float
    fvu_low: float
    fvu_high: float
    r2: float
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """FVU of a baseline minus FVU of the model on the same rows; above zero the model is better."""

    value: float
    low: float
    high: float


def fvu(x: ArrayLike, reconstruction: ArrayLike, center: ArrayLike) -> float:
    """Fraction of variance unexplained.

        FVU = sum_n ||x_n - xhat_n||^2 / sum_n ||x_n - center||^2

    Args:
        x: rows, [N, D].
        reconstruction: their reconstructions, [N, D].
        center: mean of the *training* rows, [D]: predicting it for each row scores 1.

    Raises:
        ValueError: shapes differ, or all rows equal the center.
    """
    error_N, total_N = _row_errors(x, reconstruction, center)
    return float(error_N.sum() / total_N.sum())


def score_reconstruction(
    x: ArrayLike, reconstruction: ArrayLike, center: ArrayLike, resampling: Resampling | None = None
) -> Score:
    """FVU and R^2 with the percentile interval of a bootstrap over rows.

    The interval holds the spread due to which rows were held out, not the spread between training seeds.
    """
    error_N, total_N = _row_errors(x, reconstruction, center)
    value, low, high = _ratio(error_N, total_N, resampling or Resampling())
    return Score(fvu=value, fvu_low=low, fvu_high=high, r2=1 - value, num_rows=len(error_N))


def group_scores(
    x: ArrayLike,
    reconstruction: ArrayLike,
    center: ArrayLike,
    groups: ArrayLike,
    resampling: Resampling | None = None,
) -> dict[str, Score]:
    """Score of each group of rows, by sorted label.

    The center stays the overall training mean, so a group far from it has a large denominator: compare a
    group's FVU between models, not between groups.
    """
    x_ND = as_matrix("x", x)
    xhat_ND = np.asarray(reconstruction, dtype=np.float64)
    groups_N = as_labels("groups", groups, len(x_ND))
    masks = {str(group): groups_N == group for group in np.unique(groups_N)}
    return {
        name: score_reconstruction(x_ND[mask], xhat_ND[mask], center, resampling)
        for name, mask in masks.items()
    }


def fvu_difference(
    x: ArrayLike,
    model: ArrayLike,
    baseline: ArrayLike,
    center: ArrayLike,
    resampling: Resampling | None = None,
) -> Difference:
    """FVU(baseline) - FVU(model) with a paired bootstrap interval: one draw of rows scores both."""
    model_N, total_N = _row_errors(x, model, center)
    baseline_N, _ = _row_errors(x, baseline, center)
    value, low, high = _ratio(baseline_N - model_N, total_N, resampling or Resampling())
    return Difference(value=value, low=low, high=high)


def pca_reconstruction(train: ArrayLike, test: ArrayLike, num_components: int) -> np.ndarray:
    """Reconstruct held-out rows from `num_components` principal components of the training rows.

    The baseline at equal dimension: give it as many components as the model has active atoms on average. In
    PCA space pass the reduced rows; the same components mapped back are then also the baseline in the
    original space.

    Returns:
        [N_test, D], in the space of the input.
    """
    pca = fit_pca(train, num_components)
    return pca.inverse_transform(pca.transform(as_matrix("test", test)))


def _row_errors(x: ArrayLike, reconstruction: ArrayLike, center: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Squared error and squared distance to the center of each row, both [N]."""
    x_ND = as_matrix("x", x)
    xhat_ND = as_matrix("reconstruction", reconstruction)
    center_D = np.asarray(center, dtype=np.float64)
    if xhat_ND.shape != x_ND.shape or center_D.shape != x_ND.shape[1:]:
        raise ValueError(
            f"reconstruction and center: expected shapes {x_ND.shape} and {x_ND.shape[1:]}, "
            f"got {xhat_ND.shape} and {center_D.shape}"
        )
    total_N = ((x_ND - center_D) ** 2).sum(axis=1)
    if not total_N.sum() > 0:
        raise ValueError("x: every row equals the center, so there is no variance to explain")
    return ((x_ND - xhat_ND) ** 2).sum(axis=1), total_N


def _ratio(above_N: np.ndarray, below_N: np.ndarray, resampling: Resampling) -> tuple[float, float, float]:
    """Ratio of the sums over rows, with its bootstrap interval."""
    rng = resampling.generator()
    pair_N2 = np.stack([above_N, below_N], axis=1)
    num_rows = len(pair_N2)
    draws = [
        pair_N2[rng.integers(num_rows, size=num_rows)].sum(axis=0) for _ in range(resampling.num_resamples)
    ]
    above, below = np.array(draws).T
    return float(above_N.sum() / below_N.sum()), *resampling.interval(above / below)
