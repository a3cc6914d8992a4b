"""The rows of a scan, and normal rows of the same mean and covariance.

Legend: N rows, D features, R rank (with one more for the mean), n rows of a draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from stratcore.analysis._checks import as_labels, as_matrix
from stratcore.analysis.neighbors import distinct_rows

_BLOCK = 65536
SIMULATED_ROWS = 4000


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is scanned: rows [N, D], their norms, unit directions of the rows that are not 0, labels of both."""

    total: int
    x_ND: np.ndarray
    norm_N: np.ndarray
    u_ND: np.ndarray
    label_N: np.ndarray | None
    num_duplicates: int
    num_constant: int

    @property
    def label_of_directions(self) -> np.ndarray | None:
        """Labels of `u_ND`."""
        return None if self.label_N is None else self.label_N[self.norm_N > 0]


def take_rows(X: Any, labels: Any, max_rows: int, rng: np.random.Generator) -> Rows:
    """Check all rows, block by block, and keep at most `max_rows` of them, drawn at random, in float64.

    Raises:
        ValueError: not a matrix, fewer than 2 rows, NaN or infinity in a row (which is named), wrong labels.
    """
    shape = np.shape(X)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"X: expected a non-empty array [rows, columns], got shape {tuple(shape)}")
    num_rows = int(shape[0])
    if num_rows < 2:
        raise ValueError(f"X: expected at least 2 rows, got {num_rows}")
    if max_rows < 2:
        raise ValueError(f"max_rows: expected at least 2, got {max_rows}")
    X = np.asarray(X) if isinstance(X, list | tuple) else X
    label_N = None if labels is None else as_labels("labels", labels, num_rows)
    index = np.sort(rng.permutation(num_rows)[:max_rows])
    kept = []
    for start in range(0, num_rows, _BLOCK):
        block = _finite_block(X, start)
        kept.append(block[index[(index >= start) & (index < start + _BLOCK)] - start])
    x_ND = np.concatenate(kept)
    largest = np.abs(x_ND).max()
    if largest and not 1e-100 < largest < 1e100:
        raise ValueError(
            f"X: expected numbers between 1e-100 and 1e100 in size, got {largest:.3g}: scale the rows"
        )
    norm_N = np.linalg.norm(x_ND, axis=1)
    return Rows(
        total=num_rows,
        x_ND=x_ND,
        norm_N=norm_N,
        u_ND=x_ND[norm_N > 0] / norm_N[norm_N > 0, None],
        label_N=None if label_N is None else label_N[index],
        num_duplicates=len(x_ND) - len(distinct_rows(x_ND)[0]),
        num_constant=int((np.ptp(x_ND, axis=0) == 0).sum()),
    )


def _finite_block(X: Any, start: int) -> np.ndarray:
    block = X[start : start + _BLOCK]
    try:
        return as_matrix("X", block)
    except ValueError as error:
        if start == 0 or not hasattr(block, "shape"):
            raise
        block = np.asarray(block.detach().cpu().double() if hasattr(block, "detach") else block)
        row = start + int((~np.isfinite(block).all(axis=1)).argmax())
        raise ValueError(f"X: row {row} holds NaN or infinity, expected finite numbers") from error


@dataclass(frozen=True, kw_only=True)
class GaussianTwin:
    """Normal rows of the mean and covariance of given ones, in coordinates along the principal axes.

    A rotation of the rows changes no figure that is made of inner products, so the axes themselves are not kept.
    eigenvalues: of the sample; deviation_R: of the draws, with the spread that the sample adds taken out.
    """

    eigenvalues: np.ndarray
    mean_R: np.ndarray
    deviation_R: np.ndarray

    def draw(self, num_rows: int, rng: np.random.Generator) -> np.ndarray:
        """Rows [num_rows, R]."""
        return self.mean_R + rng.standard_normal((num_rows, len(self.mean_R))) * self.deviation_R


def fit_twin(x_ND: np.ndarray) -> GaussianTwin:
    """Mean and covariance of the rows; eigenvalues largest first, [min(N, D)]."""
    mean_D = x_ND.mean(axis=0)
    centered = x_ND - mean_D
    wide = x_ND.shape[1] > x_ND.shape[0]
    gram = (centered @ centered.T if wide else centered.T @ centered) / (len(x_ND) - 1)
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0), vectors[:, ::-1]
    kept = eigenvalues > 1e-12 * max(eigenvalues[0], 1e-300)
    axes = vectors[:, kept]
    if wide:
        axes = centered.T @ axes / np.sqrt(eigenvalues[kept] * (len(x_ND) - 1))
    along = mean_D @ axes
    rest = np.sqrt(max(0.0, mean_D @ mean_D - along @ along))
    # As many axes as N rows can have: the others, where there are any, were not seen and may have variance too.
    unseen = x_ND.shape[1] - int(kept.sum()) if kept.sum() == len(x_ND) - 1 < x_ND.shape[1] else 0
    variance_R = _shrunk(np.append(eigenvalues[kept], np.zeros(unseen)), len(x_ND) - 1)
    mean_R = np.concatenate([along, [rest], np.zeros(max(unseen - 1, 0))])
    return GaussianTwin(
        eigenvalues=np.where(kept, eigenvalues, 0.0),
        mean_R=mean_R,
        deviation_R=np.sqrt(np.append(variance_R, np.zeros(len(mean_R) - len(variance_R)))),
    )


def _shrunk(eigenvalues: np.ndarray, degrees: int) -> np.ndarray:
    """Eigenvalues drawn towards their mean until their sum of squares is unbiased for that of the rows' law.

    Those of a sample spread more than those of its law: a twin of theirs would have too few dimensions.
    Source of the estimate: Bai and Saranadasa 1996, for normal rows.
    """
    total, square = eigenvalues.sum(), (eigenvalues**2).sum()
    even = total**2 / max(len(eigenvalues), 1)
    if degrees < 2 or not square > even:
        return eigenvalues
    unbiased = degrees**2 / ((degrees - 1) * (degrees + 2)) * (square - total**2 / degrees)
    share = np.sqrt(np.clip((unbiased - even) / (square - even), 0.0, 1.0))
    return total / len(eigenvalues) + share * (eigenvalues - total / len(eigenvalues))


def directions(x_ND: np.ndarray) -> np.ndarray:
    """Rows over their norms; rows of norm 0 are left out."""
    norm_N = np.linalg.norm(x_ND, axis=1)
    return x_ND[norm_N > 0] / norm_N[norm_N > 0, None]


def jackknife(
    statistic: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    rng: np.random.Generator,
    groups: int = 10,
) -> np.ndarray:
    """Half-widths of 95 % intervals of statistics of the rows, by leaving out one of `groups` groups at a time.

    Returns:
        One half-width for each number that `statistic` returns; NaN with fewer than 4 rows a group.
    """
    group_N = rng.permutation(len(rows)) % groups
    if len(rows) < 4 * groups:
        return np.full(np.shape(statistic(rows)), np.nan)
    left_out = np.array([statistic(rows[group_N != group]) for group in range(groups)])
    error = np.sqrt((groups - 1) * left_out.var(axis=0))
    return student.ppf(0.975, groups - 1) * error
