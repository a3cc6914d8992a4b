"""Spaces whose singular points are known: what fiber-bundle tests are judged on.

Legend: M points of one stratum, A ambient dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stratcore.data.manifolds import (
    SMOOTH_NULLS,
    SampledSpace,
    SmoothManifold,
    ball,
    begin,
    blur,
    cube,
    flat_torus,
    gaussian,
    in_shell,
    projective_space,
    rotations,
    sphere,
    stiefel,
    swiss_roll,
)
from stratcore.data.synthetic import unit_vectors

__all__ = [
    "SMOOTH_NULLS",
    "SampledSpace",
    "SmoothManifold",
    "ball",
    "cone",
    "cube",
    "cusp",
    "disc_in_cube",
    "flat_torus",
    "gaussian",
    "horn",
    "line_in_hollow_ball",
    "lollipop",
    "plane_union_line",
    "projective_space",
    "rotations",
    "sphere",
    "sphere_union_line",
    "stiefel",
    "swiss_roll",
    "thinning_strip",
    "whisker_and_ball",
]


class _Piece(NamedTuple):
    """One stratum: points [M, A], dimension, distance to the singular set [M]."""

    points: np.ndarray
    dim: int
    distance: np.ndarray


def plane_union_line(
    points: int, seed: int = 0, *, line_share: float = 0.5, noise: float = 0.0
) -> SampledSpace:
    """Unit disc of the plane z = 0 and the segment |z| <= 1 of the z axis; singular: the origin.

    Args:
        points: of both together; each stratum is uniform.
        seed: of the draw.
        line_share: share of the points that lie on the line.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin("plane_union_line", points, seed, noise=noise, line_share=line_share)
    disc, line = (
        in_shell(rng, _rest(points, line_share), 2),
        _segment(rng, _share(points, line_share), -1, 1),
    )
    return _union("plane and line", rng, noise, _around(_pad(disc, 3), 2), _around(_pad(line, 3, 2), 1))


def disc_in_cube(
    points: int = 4000,
    seed: int = 0,
    *,
    dim: int = 6,
    disc_share: float = 0.5,
    radius: float = 0.5,
    noise: float = 0.0,
) -> SampledSpace:
    """Dense 2-disc around the center of the cube [-1, 1]^dim; singular: the whole disc.

    Args:
        points: of both together; each stratum is uniform.
        seed: of the draw.
        dim: of the cube, at least 3.
        disc_share: share of the points that lie on the disc.
        radius: of the disc.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin(
        "disc_in_cube", points, seed, noise=noise, disc_share=disc_share, radius=radius, dim=dim, least_dim=3
    )
    disc = radius * in_shell(rng, _share(points, disc_share), 2)
    filled = rng.uniform(-1, 1, (_rest(points, disc_share), dim))
    beyond = np.maximum(np.linalg.norm(filled[:, :2], axis=1) - radius, 0)
    distance = np.hypot(beyond, np.linalg.norm(filled[:, 2:], axis=1))
    return _union(
        f"disc in cube {dim}",
        rng,
        noise,
        _Piece(_pad(disc, dim), 2, np.zeros(len(disc))),
        _Piece(filled, dim, distance),
    )


def line_in_hollow_ball(
    points: int = 1080,
    seed: int = 0,
    *,
    dim: int = 6,
    line_share: float = 2 / 27,
    inner: float = 0.5,
    noise: float = 0.0,
) -> SampledSpace:
    """Shell inner <= |x| <= 1 of the unit ball and a diameter of its hollow; singular: the two ends of the line.

    From the line, neighborhoods are 1-dimensional up to the shell and `dim`-dimensional beyond. The default has
    80 points on the line, so the 64 nearest neighbors of a point there hardly reach the shell and the 128 nearest do.

    Args:
        points: of both together; each stratum is uniform.
        seed: of the draw.
        dim: of the ball, at least 3.
        line_share: share of the points that lie on the line.
        inner: radius of the hollow, below 1.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin(
        "line_in_hollow_ball",
        points,
        seed,
        noise=noise,
        line_share=line_share,
        inner=inner,
        dim=dim,
        least_dim=3,
    )
    line = _pad(_segment(rng, _share(points, line_share), -inner, inner), dim)
    shell = in_shell(rng, _rest(points, line_share), dim, inner)
    ends = np.array([[inner], [-inner]]) * np.eye(1, dim)
    return _union(f"line in hollow ball {dim}", rng, noise, _around(line, 1, ends), _around(shell, dim, ends))


def thinning_strip(
    points: int, seed: int = 0, *, half_width: float = 0.02, noise: float = 0.0
) -> SampledSpace:
    """Strip along 0 <= x <= 1 whose half width falls linearly to 0 at x = 3/4, a line from there on.

    Each length of x holds the same mass and each cross section is uniform, so a growing ball sees dimension 2, then
    1, and never a rise: a fibered space, which is no manifold. Singular: the point where the strip becomes the line.

    Args:
        points: in all.
        seed: of the draw.
        half_width: at x = 0.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin("thinning_strip", points, seed, noise=noise, half_width=half_width)
    tip = 0.75
    x = rng.random(points)
    y = half_width * np.maximum(1 - x / tip, 0) * rng.uniform(-1, 1, points)
    strip, start = np.stack([x, y], axis=1), np.array([[tip, 0.0]])
    wide = x < tip
    return _union(
        "thinning strip", rng, noise, _around(strip[wide], 2, start), _around(strip[~wide], 1, start)
    )


def lollipop(points: int, seed: int = 0, *, line_share: float = 0.25, noise: float = 0.0) -> SampledSpace:
    """Unit sphere S^2 and a stick of length 2 that stands on its pole; singular: the pole.

    Arguments as in `plane_union_line`.
    """
    rng = begin("lollipop", points, seed, noise=noise, line_share=line_share)
    candy = unit_vectors(rng, _rest(points, line_share), 3)
    stick = _pad(_segment(rng, _share(points, line_share), 1, 3), 3, 2)
    pole = np.array([[0.0, 0.0, 1.0]])
    return _union("lollipop", rng, noise, _around(candy, 2, pole), _around(stick, 1, pole))


def sphere_union_line(
    points: int, seed: int = 0, *, line_share: float = 0.5, noise: float = 0.0
) -> SampledSpace:
    """Unit sphere S^2 and the segment |z| <= 2 of the z axis, which pierces it; singular: both poles.

    Arguments as in `plane_union_line`.
    """
    rng = begin("sphere_union_line", points, seed, noise=noise, line_share=line_share)
    shell = unit_vectors(rng, _rest(points, line_share), 3)
    line = _pad(_segment(rng, _share(points, line_share), -2, 2), 3, 2)
    poles = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    return _union("sphere and line", rng, noise, _around(shell, 2, poles), _around(line, 1, poles))


def cusp(points: int, seed: int = 0, *, noise: float = 0.0) -> SampledSpace:
    """Cuspidal cubic y^2 = x^3, 0 <= x <= 1, uniform by length; singular: the origin, where its two arms meet.

    Args:
        points: in all.
        seed: of the draw.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin("cusp", points, seed, noise=noise)
    length = (13**1.5 - 8) / 27 * rng.random(points)  # of the arm (t^2, t^3): ((4 + 9 t^2)^(3/2) - 8) / 27
    x = ((27 * length + 8) ** (2 / 3) - 4) / 9
    return _union(
        "cusp", rng, noise, _around(np.column_stack([x, rng.choice([-1.0, 1.0], points) * x**1.5]), 1)
    )


def horn(points: int, seed: int = 0, *, dim: int = 2, power: float = 2.0, noise: float = 0.0) -> SampledSpace:
    """Solid horn |(x_2, ..., x_dim)| <= x_1^power, 0 <= x_1 <= 1, uniform by volume; singular: its tip.

    Few points lie where the horn is thin, so tests on neighbors hardly see the tip.

    Args:
        points: in all.
        seed: of the draw.
        dim: at least 2.
        power: above 1; 1 would be a solid cone.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin("horn", points, seed, noise=noise, dim=dim, least_dim=2, power=power)
    height = rng.random(points) ** (1 / (power * (dim - 1) + 1))
    across = in_shell(rng, points, dim - 1) * height[:, None] ** power
    return _union(f"horn {dim}", rng, noise, _around(np.column_stack([height, across]), dim))


def cone(points: int, seed: int = 0, *, noise: float = 0.0) -> SampledSpace:
    """Double cone x^2 + y^2 = z^2, |z| <= 1, uniform by area; singular: the apex, the origin.

    Arguments as in `cusp`.
    """
    rng = begin("cone", points, seed, noise=noise)
    z = np.sqrt(rng.random(points)) * rng.choice([-1.0, 1.0], points)
    return _union(
        "cone", rng, noise, _around(np.column_stack([z[:, None] * unit_vectors(rng, points, 2), z]), 2)
    )


def whisker_and_ball(
    points: int, seed: int = 0, *, dim: int = 3, line_share: float = 0.05, noise: float = 0.0
) -> SampledSpace:
    """Unit ball of R^dim and a whisker of length 1 that leaves its surface; singular: where it does.

    Args:
        points: of both together; each stratum is uniform.
        seed: of the draw.
        dim: of the ball, at least 3.
        line_share: share of the points that lie on the whisker.
        noise: standard deviation of Gaussian noise along each ambient axis.

    Raises:
        ValueError: names the argument.
    """
    rng = begin("whisker_and_ball", points, seed, noise=noise, line_share=line_share, dim=dim, least_dim=3)
    filled = in_shell(rng, _rest(points, line_share), dim)
    whisker, root = _pad(_segment(rng, _share(points, line_share), 1, 2), dim), np.eye(1, dim)
    return _union(
        f"whisker and ball {dim}", rng, noise, _around(filled, dim, root), _around(whisker, 1, root)
    )


def _union(name: str, rng: np.random.Generator, noise: float, *pieces: _Piece) -> SampledSpace:
    """Strata below each other, blurred and shuffled. Every stratum of these spaces ends or meets another."""
    points = np.concatenate([piece.points for piece in pieces])
    order = rng.permutation(len(points))
    return SampledSpace(
        name=name,
        points=blur(rng, points, noise)[order],
        stratum=np.repeat(np.arange(len(pieces)), [len(piece.points) for piece in pieces])[order],
        dims=tuple(piece.dim for piece in pieces),
        singular_distance=np.concatenate([piece.distance for piece in pieces])[order],
        has_boundary=True,
    )


def _around(points: np.ndarray, dim: int, singular: np.ndarray | None = None) -> _Piece:
    """A stratum [M, A] whose singular points are the rows of `singular`, or the origin."""
    centers = np.zeros((1, points.shape[1])) if singular is None else singular
    return _Piece(points, dim, np.linalg.norm(points[:, None] - centers, axis=2).min(axis=1))


def _segment(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (count, 1))


def _pad(points: np.ndarray, ambient: int, before: int = 0) -> np.ndarray:
    """Points in more dimensions, with `before` of the new coordinates, all 0, in front."""
    return np.pad(points, ((0, 0), (before, ambient - before - points.shape[1])))


def _share(points: int, share: float) -> int:
    return min(max(round(points * share), 1), points - 1)


def _rest(points: int, share: float) -> int:
    return points - _share(points, share)
