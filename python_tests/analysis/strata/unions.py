"""Unions of strata that the tests of the room share."""

from __future__ import annotations

import numpy as np


def subspaces(
    dims: tuple[int, ...] = (2, 3, 5), per: int = 100, ambient: int = 16, noise: float = 0.01, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Random subspaces through the origin, Gaussian rows, in random order: rows [N, D] and labels [N]."""
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(rng.standard_normal((ambient, dim)))[0] for dim in dims]
    x_ND = np.concatenate(
        [rng.standard_normal((per, dim)) @ basis.T for dim, basis in zip(dims, bases, strict=True)]
    )
    x_ND += noise * rng.standard_normal(x_ND.shape)
    order = rng.permutation(len(x_ND))
    return x_ND[order], np.repeat(np.arange(len(dims)), per)[order]
