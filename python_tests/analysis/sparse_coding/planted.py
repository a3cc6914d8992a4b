"""Rows that are sparse in a known dictionary."""

from __future__ import annotations

import numpy as np


def planted(
    seed: int = 0, *, rows: int = 1500, atoms: int = 50, dim: int = 20, k: int = 3, decibel: float = 20.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy rows [N, D], their codes [N, M] and the atoms [M, D], of length 1."""
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((atoms, dim))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    codes = np.zeros((rows, atoms))
    for row in codes:
        row[rng.choice(atoms, k, replace=False)] = rng.standard_normal(k)
    clean = codes @ dictionary
    noise = rng.standard_normal(clean.shape)
    noise *= np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-decibel / 20)
    return clean + noise, codes, dictionary
