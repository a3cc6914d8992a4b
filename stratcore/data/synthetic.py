"""Unions of strata of known dimension: the data on which every claim about strata is checked first.

Legend: N points, S strata, A ambient dimensions, p span dimensions of one stratum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratcore.data.table import EmbeddingTable

KINDS = ("plane", "sphere", "torus", "curve")
_CURVE_GRID = 4096  # samples of a curve when the distance to it is measured


@dataclass(frozen=True)
class StrataOptions:
    """What to draw. All lengths are in units of `radius`, except `radius` itself.

    Args:
        kinds: per stratum, `plane` (a ball), `sphere`, `torus` (product of circles of equal size), each with
            uniform density, or `curve` (trigonometric moment curve: cos t, sin t, cos 2t, sin 2t, ...). All
            points of a sphere, torus or curve lie at distance `radius` from its center.
        dims: intrinsic dimension per stratum, 1 for a curve. A circle is a sphere of dimension 1.
        ambient: ambient dimension, >= 1.
        points: in all, spread evenly over the strata, or one number per stratum.
        radius: of every stratum.
        center_distance: distance between any two centers, the same for all pairs; 0: all share one center.
        noise: standard deviation of the Gaussian noise along each ambient axis.
        curvature: a bend: points move by curvature / 2 * (last local coordinate)^2 along a new axis; a plane
            then has the principal curvature `curvature / radius` at its center.
        glue: move the strata so that all meet in one common point, the origin (needs center_distance 0).
        harmonics: frequencies of a curve.
        singular_distance: points this close to another stratum, before noise, are flagged singular.
        seed: of everything random.

    Raises:
        ValueError: names the option.
    """

    kinds: tuple[str, ...] = ("sphere",) * 5
    dims: tuple[int, ...] = (1, 2, 4, 8, 16)
    ambient: int = 64
    points: int | tuple[int, ...] = 10_000
    radius: float = 1.0
    center_distance: float = 3.0
    noise: float = 0.01
    curvature: float = 0.0
    glue: bool = False
    harmonics: int = 2
    singular_distance: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                raise ValueError(f"StrataOptions.{name}: expected {expected}, got {getattr(self, name)!r}")

        num_strata = len(self.kinds)
        require(num_strata > 0 and all(kind in KINDS for kind in self.kinds), "kinds", f"some of {KINDS}")
        require(len(self.dims) == num_strata and min(self.dims) > 0, "dims", f"{num_strata} dimensions >= 1")
        curves = [dim for kind, dim in zip(self.kinds, self.dims, strict=True) if kind == "curve"]
        require(all(dim == 1 for dim in curves), "dims", "1 for a curve")
        counts = (self.points,) if isinstance(self.points, int) else self.points
        lowest = num_strata if isinstance(self.points, int) else 1
        lengths = (1,) if isinstance(self.points, int) else (num_strata,)
        require(len(counts) in lengths and min(counts) >= lowest, "points", "at least one point per stratum")
        for name in ("center_distance", "noise", "singular_distance"):
            require(0 <= getattr(self, name) < np.inf, name, "a finite number >= 0")
        require(0 < self.radius < np.inf, "radius", "a finite number > 0")
        require(bool(np.isfinite(self.curvature)), "curvature", "a finite number")
        require(self.harmonics >= 1, "harmonics", "at least 1")
        require(not (self.glue and self.center_distance), "center_distance", "0 where glue is on")
        needed = max(self.span_dims)
        if self.center_distance:
            needed = max(needed, num_strata - 1)  # room for the regular simplex of the centers
        require(self.ambient >= needed, "ambient", f"at least {needed} for these strata")

    @property
    def span_dims(self) -> tuple[int, ...]:
        """Dimension of the linear span of each centered stratum."""
        bend = int(self.curvature != 0)
        return tuple(
            {"plane": dim, "sphere": dim + 1, "torus": 2 * dim, "curve": 2 * self.harmonics}[kind] + bend
            for kind, dim in zip(self.kinds, self.dims, strict=True)
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Points per stratum; a remainder goes to the first ones."""
        if not isinstance(self.points, int):
            return self.points
        each, rest = divmod(self.points, len(self.kinds))
        return tuple(each + (i < rest) for i in range(len(self.kinds)))


@dataclass(frozen=True, eq=False)
class Strata:
    """Points drawn from a union of strata, in random order, with the truth about each.

    Args:
        points: [N, A] float32, with noise.
        stratum: [N] int64, index of the stratum of each point.
        dims: intrinsic dimension per stratum.
        span_dims: dimension of the linear span per stratum.
        singular: [N] bool, within `options.singular_distance` radii of another stratum, before noise.
        centers: [S, A] float64.
        options: what was asked for.
    """

    points: np.ndarray
    stratum: np.ndarray
    dims: tuple[int, ...]
    span_dims: tuple[int, ...]
    singular: np.ndarray
    centers: np.ndarray
    options: StrataOptions

    def as_table(self) -> EmbeddingTable:
        """Return the points as a table with one domain per stratum."""
        names = tuple(
            f"{i} {kind} {dim}"
            for i, (kind, dim) in enumerate(zip(self.options.kinds, self.dims, strict=True))
        )
        return EmbeddingTable.from_arrays(self.points, self.stratum, names, source="synthetic strata")


def union_of_strata(options: StrataOptions) -> Strata:
    """Draw a union of strata in random, independent subspaces.

    Args:
        options: what to draw.

    Returns:
        Points, labels, dimensions and singular flags.

    Numerics: float64, rounded to float32 at the end. The singular flag uses the exact distance to the unbent
    stratum (for a curve, to 4096 of its points); with curvature, the distance to the bent image of that
    nearest point, which is never less than the true distance.

    Determinism: a function of `options` only, on one NumPy version. Cost: O(N S A p).
    """
    rng = np.random.default_rng(options.seed)
    num_strata = len(options.kinds)
    centers = _centers(rng, options)
    pieces, frames = [], []
    for i, count in enumerate(options.counts):
        local = _bend(_draw(rng, options, i, count), options)
        frame = np.linalg.qr(rng.standard_normal((options.ambient, options.span_dims[i])))[0]
        if options.glue:
            centers[i] = -frame @ _bend(_glue_point(options, i), options)[0]
        pieces.append(centers[i] + local @ frame.T)
        frames.append(frame)
    stratum = np.repeat(np.arange(num_strata), options.counts)
    clean = np.concatenate(pieces)
    nearest_other = np.full(len(clean), np.inf)
    for i in range(num_strata):
        others = np.flatnonzero(stratum != i)
        distance = _distance(clean[others], centers[i], frames[i], options, i)
        nearest_other[others] = np.minimum(nearest_other[others], distance)
    noisy = clean + options.noise * rng.standard_normal(clean.shape)
    order = rng.permutation(len(clean))
    return Strata(
        points=(options.radius * noisy[order]).astype(np.float32),
        stratum=stratum[order].astype(np.int64),
        dims=options.dims,
        span_dims=options.span_dims,
        singular=nearest_other[order] <= options.singular_distance,
        centers=options.radius * centers,
        options=options,
    )


def _centers(rng: np.random.Generator, options: StrataOptions) -> np.ndarray:
    """Corners of a regular simplex around the origin, in a random direction, [S, A]."""
    num_strata = len(options.kinds)
    if options.center_distance == 0 or num_strata == 1:
        return np.zeros((num_strata, options.ambient))
    corners = np.eye(num_strata) - 1 / num_strata
    plane = np.linalg.svd(corners)[2][: num_strata - 1]  # the S corners span S - 1 dimensions
    turn = np.linalg.qr(rng.standard_normal((options.ambient, num_strata - 1)))[0]
    return options.center_distance / np.sqrt(2) * corners @ plane.T @ turn.T


def _draw(rng: np.random.Generator, options: StrataOptions, stratum: int, count: int) -> np.ndarray:
    """Points of one unbent stratum of radius 1 in its own coordinates, [count, p]."""
    kind, dim = options.kinds[stratum], options.dims[stratum]
    if kind == "plane":
        return unit_vectors(rng, count, dim) * rng.random((count, 1)) ** (1 / dim)
    if kind == "sphere":
        return unit_vectors(rng, count, dim + 1)
    if kind == "torus":
        return circles(2 * np.pi * rng.random((count, dim)))
    return _curve(2 * np.pi * rng.random(count), options.harmonics)


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Draw uniform directions of R^dim, [count, dim]."""
    direction = rng.standard_normal((count, dim))
    return direction / np.linalg.norm(direction, axis=1, keepdims=True)


def circles(angles: np.ndarray) -> np.ndarray:
    """Angles [M, n] to the points cos, sin, cos, sin, ... [M, 2n] on the unit sphere."""
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return pairs.reshape(len(angles), -1) / np.sqrt(angles.shape[1])


def _curve(angle: np.ndarray, harmonics: int) -> np.ndarray:
    return circles(angle[:, None] * np.arange(1, harmonics + 1))


def _bend(local: np.ndarray, options: StrataOptions) -> np.ndarray:
    if options.curvature == 0:
        return local
    # The last coordinate squared is no affine function of the stratum, so the bend always adds a dimension.
    return np.concatenate([local, options.curvature / 2 * local[:, -1:] ** 2], axis=1)


def _glue_point(options: StrataOptions, stratum: int) -> np.ndarray:
    """The point of an unbent stratum that is glued to the others, [1, p]: a plane's center, or angle 0."""
    kind, dim = options.kinds[stratum], options.dims[stratum]
    if kind == "plane":
        return np.zeros((1, dim))
    if kind == "sphere":
        return np.eye(1, dim + 1)
    if kind == "torus":
        return circles(np.zeros((1, dim)))
    return _curve(np.zeros(1), options.harmonics)


def _nearest(local: np.ndarray, options: StrataOptions, stratum: int) -> np.ndarray:
    """Nearest point on an unbent stratum for each row of its own coordinates, [M, p]."""
    kind = options.kinds[stratum]
    if kind == "plane":
        return local / np.maximum(np.linalg.norm(local, axis=1, keepdims=True), 1)
    if kind == "sphere":
        return local / np.maximum(np.linalg.norm(local, axis=1, keepdims=True), 1e-300)
    if kind == "torus":
        return circles(np.arctan2(local[:, 1::2], local[:, ::2]))
    grid = _curve(np.linspace(0, 2 * np.pi, _CURVE_GRID, endpoint=False), options.harmonics)
    # All grid points have norm 1, so the nearest is the one of largest inner product.
    chunks = [
        grid[np.argmax(part @ grid.T, axis=1)] for part in np.array_split(local, len(local) // 4096 + 1)
    ]
    return np.concatenate(chunks)


def _distance(
    points: np.ndarray, center: np.ndarray, frame: np.ndarray, options: StrataOptions, stratum: int
) -> np.ndarray:
    """Distance of each point [M, A] to one stratum."""
    offset = points - center
    local = offset @ frame
    flat = local[:, :-1] if options.curvature else local
    foot = _bend(_nearest(flat, options, stratum), options)
    return np.linalg.norm(offset - foot @ frame.T, axis=1)
