"""Smooth manifolds of known dimension: on them no test for singular points may reject.

Legend: N points, A ambient dimensions, d intrinsic dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stratcore.data.synthetic import circles, unit_vectors
from stratcore.data.table import EmbeddingTable

TURN = 2 * np.pi


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledSpace:
    """Points drawn from one space, in random order, with the truth about each.

    Args:
        name: of the space.
        points: [N, A] float64, with noise.
        stratum: [N] int64, index of the stratum of each point.
        dims: intrinsic dimension per stratum.
        singular_distance: [N] float64, distance in the ambient space to the nearest singular point, before noise;
            infinite where the space is smooth. A point is singular where two strata meet, where a stratum lies
            within a larger one, or at a tip. A boundary of one stratum alone is not singular.
        has_boundary: whether some stratum ends, so that points near its end see half a neighborhood.
        period: of every coordinate, where the points are coordinates of a flat torus; distances are then taken
            modulo it. None: plain Euclidean distances.
    """

    name: str
    points: np.ndarray
    stratum: np.ndarray
    dims: tuple[int, ...]
    singular_distance: np.ndarray
    has_boundary: bool
    period: float | None = None

    @property
    def local_dim(self) -> np.ndarray:
        """Intrinsic dimension of the stratum of each point, [N] int64."""
        return np.asarray(self.dims, np.int64)[self.stratum]

    def singular(self, within: float) -> np.ndarray:
        """Mask of the points at most `within` away from a singular point, [N] bool."""
        return self.singular_distance <= within

    def as_table(self) -> EmbeddingTable:
        """Return the points, rounded to float32, as a table with one domain per stratum."""
        names = tuple(f"{i} dim {dim}" for i, dim in enumerate(self.dims))
        return EmbeddingTable.from_arrays(self.points, self.stratum, names, source=self.name)


@dataclass(frozen=True)
class SmoothManifold:
    """A manifold without singular point.

    Args:
        dim: intrinsic dimension.
        ambient: ambient dimension.
        has_boundary: whether it ends somewhere.
        reach: below this distance each point of the ambient space has one nearest point on the manifold; a ball of
            larger radius may see two sheets, and a rejection there is no mistake.
        draw: (points, seed) -> sample.
    """

    dim: int
    ambient: int
    has_boundary: bool
    reach: float
    draw: Callable[[int, int], SampledSpace]


def flat_torus(points: int, dim: int, seed: int = 0, *, embedded: bool = False) -> SampledSpace:
    """Flat torus of circumference 1 along each of `dim` axes, uniform.

    Args:
        points: how many.
        dim: intrinsic dimension.
        seed: of the draw; both forms of one seed are the same points.
        embedded: give x in [0, 1)^dim with `period` 1, for the intrinsic metric (False), or its isometric image
            (cos 2 pi x_i, sin 2 pi x_i) / 2 pi in R^(2 dim), where chords are shorter than arcs (True).

    Raises:
        ValueError: names the argument.
    """
    rng = begin("flat_torus", points, seed, dim=dim)
    x = rng.random((points, dim))
    if not embedded:
        return _smooth(f"flat torus {dim}", x, dim, period=1.0)
    return _smooth(f"torus {dim}", circles(TURN * x) * (np.sqrt(dim) / TURN), dim)


def sphere(points: int, dim: int, seed: int = 0, *, noise: float = 0.0) -> SampledSpace:
    """Unit sphere S^dim in R^(dim + 1), uniform."""
    rng = begin("sphere", points, seed, dim=dim, noise=noise)
    return _smooth(f"sphere {dim}", blur(rng, unit_vectors(rng, points, dim + 1), noise), dim)


def gaussian(points: int, dim: int, seed: int = 0) -> SampledSpace:
    """Standard normal points of R^dim: a flat space whose density varies."""
    rng = begin("gaussian", points, seed, dim=dim)
    return _smooth(f"gaussian {dim}", rng.standard_normal((points, dim)), dim)


def cube(points: int, dim: int, seed: int = 0) -> SampledSpace:
    """Unit cube [0, 1]^dim, uniform. It has a boundary, near which most points lie when dim is large."""
    rng = begin("cube", points, seed, dim=dim)
    return _smooth(f"cube {dim}", rng.random((points, dim)), dim, has_boundary=True)


def ball(points: int, dim: int, seed: int = 0) -> SampledSpace:
    """Unit ball of R^dim, uniform. It has a boundary, near which most points lie when dim is large."""
    rng = begin("ball", points, seed, dim=dim)
    return _smooth(f"ball {dim}", in_shell(rng, points, dim), dim, has_boundary=True)


def rotations(points: int, size: int = 3, seed: int = 0) -> SampledSpace:
    """Special orthogonal group SO(size) as matrices in R^(size^2), Haar measure; dimension size (size - 1) / 2."""
    rng = begin("rotations", points, seed, size=size)
    frames = _frames(rng, points, size, size)
    frames[:, :, 0] *= np.linalg.det(frames)[:, None]
    return _smooth(f"rotations {size}", frames.reshape(points, -1), size * (size - 1) // 2)


def stiefel(points: int, size: int = 4, vectors: int = 2, seed: int = 0) -> SampledSpace:
    """Stiefel manifold: `vectors` < size orthonormal columns in R^size, as matrices in R^(size vectors), uniform.

    Its dimension is size vectors - vectors (vectors + 1) / 2.
    """
    rng = begin("stiefel", points, seed, size=size, vectors=vectors)
    if vectors >= size:
        raise ValueError(f"stiefel: vectors: expected fewer than size = {size}, got {vectors}")
    frames = _frames(rng, points, size, vectors)
    dim = size * vectors - vectors * (vectors + 1) // 2
    return _smooth(f"stiefel {vectors} in {size}", frames.reshape(points, -1), dim)


def projective_space(points: int, dim: int = 2, seed: int = 0) -> SampledSpace:
    """Real projective space by the Veronese embedding x -> x x^T of the unit sphere S^dim, uniform.

    Coordinates: the upper triangle of x x^T, off-diagonal entries times sqrt 2, so that distances are those of
    matrices (Frobenius).
    """
    rng = begin("projective_space", points, seed, dim=dim)
    x = unit_vectors(rng, points, dim + 1)
    rows, columns = np.triu_indices(dim + 1)
    scale = np.where(rows == columns, 1.0, np.sqrt(2))
    return _smooth(f"projective space {dim}", x[:, rows] * x[:, columns] * scale, dim)


def swiss_roll(points: int, seed: int = 0) -> SampledSpace:
    """Swiss roll (t cos t, h, t sin t), t from 1.5 pi to 4.5 pi, h from 0 to 21; uniform by area, with boundary.

    Its sheets are 2 pi apart, so its reach is about pi: 64 neighbors need 10,000 points or more.
    """
    rng = begin("swiss_roll", points, seed)
    grid = np.linspace(1.5 * np.pi, 4.5 * np.pi, 100_001)
    arc = _spiral_length(grid)
    t = np.interp(rng.uniform(arc[0], arc[-1], points), arc, grid)
    roll = np.stack([t * np.cos(t), 21 * rng.random(points), t * np.sin(t)], axis=1)
    return _smooth("swiss roll", roll, 2, has_boundary=True)


def _manifold(
    dim: int, ambient: int, reach: float, draw: Callable[[int, int], SampledSpace], has_boundary: bool = False
) -> SmoothManifold:
    return SmoothManifold(dim, ambient, has_boundary, reach, draw)


# Twelve, of dimensions 2 to 64; only "cube 8" has a boundary.
SMOOTH_NULLS: dict[str, SmoothManifold] = {
    "sphere 2": _manifold(2, 3, 1.0, lambda points, seed: sphere(points, 2, seed)),
    "sphere 7": _manifold(7, 8, 1.0, lambda points, seed: sphere(points, 7, seed)),
    "sphere 31": _manifold(31, 32, 1.0, lambda points, seed: sphere(points, 31, seed)),
    "torus 2": _manifold(2, 4, 1 / TURN, lambda points, seed: flat_torus(points, 2, seed, embedded=True)),
    "torus 5": _manifold(5, 10, 1 / TURN, lambda points, seed: flat_torus(points, 5, seed, embedded=True)),
    "torus 8": _manifold(8, 16, 1 / TURN, lambda points, seed: flat_torus(points, 8, seed, embedded=True)),
    "gaussian 8": _manifold(8, 8, np.inf, lambda points, seed: gaussian(points, 8, seed)),
    "gaussian 64": _manifold(64, 64, np.inf, lambda points, seed: gaussian(points, 64, seed)),
    "cube 8": _manifold(8, 8, np.inf, lambda points, seed: cube(points, 8, seed), has_boundary=True),
    "rotations 3": _manifold(3, 9, 2**0.5, lambda points, seed: rotations(points, 3, seed)),
    "projective plane": _manifold(2, 6, 0.5**0.5, lambda points, seed: projective_space(points, 2, seed)),
    "stiefel 2 in 4": _manifold(5, 8, 1.0, lambda points, seed: stiefel(points, 4, 2, seed)),
}

_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "points": (lambda value: value >= 2, "at least 2"),
    "size": (lambda value: value >= 2, "at least 2"),
    "noise": (lambda value: 0 <= value < np.inf, "a finite number >= 0"),
    "half_width": (lambda value: 0 < value < np.inf, "a finite number > 0"),
    "power": (lambda value: 1 < value < np.inf, "a finite number > 1"),
    "radius": (lambda value: 0 < value <= 1, "more than 0, at most 1"),
    "inner": (lambda value: 0 < value < 1, "between 0 and 1"),
    "line_share": (lambda value: 0 < value < 1, "between 0 and 1"),
    "disc_share": (lambda value: 0 < value < 1, "between 0 and 1"),
}


def begin(space: str, points: int, seed: int, least_dim: int = 1, **arguments: float) -> np.random.Generator:
    """Check the arguments of a space by name and start its random numbers.

    Raises:
        ValueError: names the space and the argument.
    """
    for name, value in {"points": points, **arguments}.items():
        holds, expected = _RULES.get(name, (lambda value: value >= least_dim, f"at least {least_dim}"))
        if not holds(value):
            raise ValueError(f"{space}: {name}: expected {expected}, got {value!r}")
    return np.random.default_rng(seed)


def blur(rng: np.random.Generator, points: np.ndarray, noise: float) -> np.ndarray:
    """Add Gaussian noise of standard deviation `noise` along each axis."""
    return points + noise * rng.standard_normal(points.shape) if noise else points


def in_shell(rng: np.random.Generator, count: int, dim: int, inner: float = 0.0) -> np.ndarray:
    """Draw uniform points with inner <= |x| <= 1 in R^dim, [count, dim]."""
    return unit_vectors(rng, count, dim) * rng.uniform(inner**dim, 1, (count, 1)) ** (1 / dim)


def _smooth(
    name: str, points: np.ndarray, dim: int, *, has_boundary: bool = False, period: float | None = None
) -> SampledSpace:
    return SampledSpace(
        name=name,
        points=points,
        stratum=np.zeros(len(points), np.int64),
        dims=(dim,),
        singular_distance=np.full(len(points), np.inf),
        has_boundary=has_boundary,
        period=period,
    )


def _frames(rng: np.random.Generator, count: int, size: int, vectors: int) -> np.ndarray:
    """Uniform orthonormal columns [count, size, vectors]."""
    q, r = np.linalg.qr(rng.standard_normal((count, size, vectors)))
    return (
        q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    )  # without the signs, the law is not uniform


def _spiral_length(t: np.ndarray) -> np.ndarray:
    """Length of the curve (t cos t, t sin t) from 0."""
    return (t * np.hypot(1, t) + np.arcsinh(t)) / 2
