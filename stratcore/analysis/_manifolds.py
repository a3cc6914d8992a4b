"""Samples of closed manifolds of known dimension, on which estimators of dimension are calibrated and judged.

Legend: N rows, d dimension. Rows are uniform with respect to the volume unless a function says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

Sampler = Callable[[np.random.Generator, int], np.ndarray]


def sphere(rng: np.random.Generator, num_rows: int, dimension: int) -> np.ndarray:
    """Rows on the unit sphere S^d in R^(d + 1)."""
    x_ND = rng.standard_normal((num_rows, dimension + 1))
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def spheres(
    rng: np.random.Generator,
    num_rows: int,
    dimensions: Sequence[int],
    radii: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Rows on a product of spheres; circles make it a flat torus."""
    radii = np.ones(len(dimensions)) if radii is None else radii
    factors = zip(dimensions, radii, strict=True)
    return np.concatenate([r * sphere(rng, num_rows, d) for d, r in factors], axis=1)


def wavy_torus(rng: np.random.Generator, num_rows: int, dimension: int) -> np.ndarray:
    """Rows on a product of d closed curves (cos t, sin t, .3 cos 2t, .3 sin 2t): flat, with four columns each."""
    t_Nd = 2 * np.pi * rng.random((num_rows, dimension))
    once, twice = (np.cos(t_Nd), np.sin(t_Nd)), (0.3 * np.cos(2 * t_Nd), 0.3 * np.sin(2 * t_Nd))
    return np.concatenate([*once, *twice], axis=1)


def ellipsoid(rng: np.random.Generator, num_rows: int, dimension: int, longest: float = 2.0) -> np.ndarray:
    """Rows on the ellipsoid with half axes from 1 to `longest`."""
    axes = np.linspace(1, longest, dimension + 1)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < num_rows:
        x_ND = sphere(rng, 2 * num_rows, dimension)
        # The map from the sphere stretches the surface by |x / axes| times a constant; |x / axes| <= 1.
        parts.append(axes * x_ND[rng.random(len(x_ND)) < np.linalg.norm(x_ND / axes, axis=1)])
    return np.concatenate(parts)[:num_rows]


def stiefel(rng: np.random.Generator, num_rows: int, size: int, frames: int) -> np.ndarray:
    """Rows on the manifold of orthonormal frames in R^size; frames = size - 1 gives the rotations SO(size)."""
    q, r = np.linalg.qr(rng.standard_normal((num_rows, size, frames)))
    return (q * np.sign(np.einsum("nii->ni", r))[:, None]).reshape(num_rows, -1)


def grassmann(rng: np.random.Generator, num_rows: int, size: int, frames: int) -> np.ndarray:
    """Rows on the manifold of subspaces of R^size, as projectors."""
    q = stiefel(rng, num_rows, size, frames).reshape(num_rows, size, frames)
    return (q @ q.transpose(0, 2, 1)).reshape(num_rows, -1)


def projective(rng: np.random.Generator, num_rows: int, size: int) -> np.ndarray:
    """Rows on the complex projective space of dimension 2 size, as projectors."""
    z = rng.standard_normal((num_rows, size + 1)) + 1j * rng.standard_normal((num_rows, size + 1))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    p = (z[:, :, None] * z[:, None].conj()).reshape(num_rows, -1)
    return np.concatenate([p.real, p.imag], axis=1)


def veronese(rng: np.random.Generator, num_rows: int, dimension: int) -> np.ndarray:
    """Rows on the real projective space of a dimension, as projectors (upper triangle, isometric)."""
    x_ND = sphere(rng, num_rows, dimension)
    i, j = np.triu_indices(dimension + 1)
    return x_ND[:, i] * x_ND[:, j] * np.where(i == j, 1.0, math.sqrt(2))


def calibration_manifolds() -> dict[str, list[tuple[int, Sampler]]]:
    """The families that calibration knows, each with (dimension, sampler) in the order of dimensions."""
    dims = (1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64)
    families: dict[str, list[tuple[int, Sampler]]] = {
        "sphere": [(d, partial(sphere, dimension=d)) for d in dims],
        "wavy torus": [(d, partial(wavy_torus, dimension=d)) for d in dims[:-2]],
        "ellipsoid": [(d, partial(ellipsoid, dimension=d)) for d in dims[1:]],
        "uneven torus": [
            (d, partial(spheres, dimensions=[1] * d, radii=np.linspace(0.5, 1.5, d))) for d in dims[1:]
        ],
        "sphere and torus": [
            (2 * a, partial(spheres, dimensions=[a] + [1] * a, radii=[a**0.5] + [1.0] * a))
            for a in (1, 2, 3, 4, 5, 7, 10, 13, 16, 20, 25, 32)
        ],
        "rotations": [(m * (m - 1) // 2, partial(stiefel, size=m, frames=m - 1)) for m in range(3, 12)],
        "frames": [
            (m * p - p * (p + 1) // 2, partial(stiefel, size=m, frames=p))
            for m, p in ((4, 2), (6, 2), (8, 2), (8, 3), (8, 4), (10, 4), (12, 4), (16, 4))
        ],
        "subspaces": [
            (p * (m - p), partial(grassmann, size=m, frames=p))
            for m, p in ((4, 2), (6, 2), (6, 3), (8, 3), (8, 4), (10, 4), (14, 4))
        ],
        "real projective": [(d, partial(veronese, dimension=d)) for d in dims[1:-4]],
        "complex projective": [
            (2 * m, partial(projective, size=m)) for m in (1, 2, 3, 4, 5, 7, 10, 13, 16, 20)
        ],
    }
    factors = (
        (1, dims),
        (2, (1, 2, 3, 4, 5, 7, 10, 13, 16, 20, 25, 32)),
        (3, (1, 2, 3, 5, 7, 10, 13, 17, 21)),
        (5, (2, 3, 4, 6, 8, 10, 13)),
    )
    for a, counts in factors:
        name = "torus" if a == 1 else f"spheres S^{a}"
        families[name] = [(a * m, partial(spheres, dimensions=[a] * m)) for m in counts]
    return families
