"""The checks every analysis function makes on its input, and the words it says when they fail."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data


def as_array(value: Any) -> np.ndarray:
    """Return `value` as a NumPy array; a torch tensor may be of any device and dtype and may require gradients."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return np.asarray(tensor.double() if tensor.is_floating_point() else tensor)


def precision(values: Any) -> float:
    """Relative rounding of the dtype; float64 numbers that are all float32 numbers have float32's."""
    if hasattr(values, "detach") and values.is_floating_point() and values.element_size() < 4:
        import torch

        return float(torch.finfo(values.dtype).eps)
    array = as_array(values)
    if array.dtype == np.float16:
        return float(np.finfo(np.float16).eps)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = bool((array == array.astype(np.float32)).all())
    return float(np.finfo(np.float32 if narrow else np.float64).eps)


def without_rounding(eigenvalues: np.ndarray, rounding: float, shape: tuple[int, int]) -> np.ndarray:
    """Eigenvalues of X^T X of rows [N, D], those that rounding alone can make set to zero.

    Numbers that are off by up to r have singular values up to r (sqrt N + sqrt D); those of the decomposition itself
    are up to eps max(N, D) of the largest, as in `numpy.linalg.matrix_rank`. Where all are below, they are left as
    they are.

    Args:
        eigenvalues: [..., K], largest first.
        rounding: r; `precision(X)` times the largest number of X before it was centered. Unit: length.
        shape: N and D.
    """
    largest = eigenvalues[..., :1]
    own = (rounding * float(np.sqrt(shape).sum())) ** 2
    floor = np.maximum(own, (np.finfo(np.float64).eps * max(shape)) ** 2 * largest)
    return np.where((eigenvalues > floor) | (largest <= own), eigenvalues, 0.0)


def as_matrix(name: str, value: Any) -> np.ndarray:
    """Return `value`, NumPy or torch, as a finite float64 array [N, D] with N, D >= 1.

    Raises:
        ValueError: not two-dimensional, empty, or a row holds NaN or infinity (the first such row is named).
    """
    matrix_ND = np.asarray(as_array(value), dtype=np.float64)
    if matrix_ND.ndim != 2 or matrix_ND.size == 0:
        raise ValueError(f"{name}: expected a non-empty array [rows, columns], got shape {matrix_ND.shape}")
    return _finite(name, matrix_ND)


def estimator_matrix(
    estimator: BaseEstimator, X: Any, *, reset: bool = True, min_rows: int = 1
) -> np.ndarray:
    """Return the rows given to a scikit-learn estimator as a finite float64 array [N, D].

    Sets `n_features_in_` (and the feature names of a data frame) where `reset`, else compares with it. A torch
    tensor of any device and dtype counts as an array.

    Raises:
        ValueError: a row holds NaN or infinity (the first such row is named); in scikit-learn's own words: not a
            matrix, fewer rows than `min_rows`, complex, or another number of features than at fit.
        TypeError: a sparse matrix.
    """
    if hasattr(X, "detach"):
        X = as_array(X)
    options = {"dtype": np.float64, "ensure_min_samples": min_rows, "ensure_all_finite": False}
    return _finite("X", validate_data(estimator, X, reset=reset, **options))


def as_labels(name: str, value: ArrayLike, num_rows: int) -> np.ndarray:
    """Return `value` as an array [num_rows] of labels of any sortable dtype.

    Raises:
        ValueError: not one label a row, or a row without one (NaN or None; the first such row is named).
    """
    if isinstance(value, list | tuple):  # NumPy would turn the NaN of a list of text into text
        absent = [row for row, label in enumerate(value) if label is None or _is_nan(label)]
        if absent:
            raise ValueError(f"{name}: row {absent[0]} has no label, got {value[absent[0]]}")
    labels_N = as_array(value)
    if labels_N.shape != (num_rows,):
        raise ValueError(f"{name}: expected a label for each of {num_rows} rows, got shape {labels_N.shape}")
    absent_N = labels_N != labels_N  # NaN alone differs from itself
    if labels_N.dtype == object:
        absent_N = absent_N | np.array([label is None for label in labels_N], dtype=bool)
    if np.any(absent_N):
        raise ValueError(f"{name}: row {int(np.argmax(absent_N))} has no label, got {labels_N[absent_N][0]}")
    return labels_N


def cluster_count(name: str, value: Any, num_rows: int) -> int:
    """Return a number of clusters.

    Raises:
        ValueError: not a whole number from 1 to the number of rows.
    """
    if not isinstance(value, int | np.integer) or not 1 <= value <= num_rows:
        raise ValueError(f"{name}: expected 1 to {num_rows} (the rows), got {value}")
    return int(value)


def as_probabilities(name: str, value: ArrayLike) -> np.ndarray:
    """Return `value` as rows of probabilities [N, E], scaled to sum to one: an even gate of any precision is even.

    Raises:
        ValueError: a row holds a negative number or does not sum to one within 1e-3 (bfloat16: 8e-3).
    """
    p_NE = as_matrix(name, value)
    slack = max(1e-3, precision(value))
    bad_N = (p_NE < 0).any(axis=1) | (np.abs(p_NE.sum(axis=1) - 1) > slack)
    if bad_N.any():
        row = int(bad_N.argmax())
        raise ValueError(f"{name}: row {row} is no distribution, its sum is {p_NE[row].sum():.6g}")
    return p_NE / p_NE.sum(axis=1, keepdims=True)


def _is_nan(label: object) -> bool:
    return isinstance(label, float | np.floating) and bool(np.isnan(label))


def _finite(name: str, matrix_ND: np.ndarray) -> np.ndarray:
    bad_N = ~np.isfinite(matrix_ND).all(axis=1)
    if bad_N.any():
        raise ValueError(f"{name}: row {int(bad_N.argmax())} holds NaN or infinity, expected finite numbers")
    return matrix_ND
