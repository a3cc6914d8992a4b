from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kstest

from stratcore.data.manifolds import (
    SMOOTH_NULLS,
    SampledSpace,
    ball,
    cube,
    flat_torus,
    gaussian,
    projective_space,
    rotations,
    sphere,
    stiefel,
    swiss_roll,
)

Draw = Callable[..., SampledSpace]


def uniform(values: np.ndarray) -> float:
    return float(kstest(values, "uniform").pvalue)


def local_rank(space: SampledSpace, centers: int = 20, neighbors: int = 40, floor: float = 0.05) -> list[int]:
    """Local PCA: directions whose variance is more than `floor` of the largest one."""
    ranks = []
    for center in space.points[:centers]:
        distance = np.linalg.norm(space.points - center, axis=1)
        patch = space.points[np.argsort(distance)[:neighbors]]
        variance = np.linalg.svd(patch - patch.mean(0), compute_uv=False) ** 2
        ranks.append(int((variance > floor * variance[0]).sum()))
    return ranks


def test_flat_torus_is_uniform_and_its_image_isometric() -> None:
    flat, image = flat_torus(2000, 3, seed=4), flat_torus(2000, 3, seed=4, embedded=True)
    assert flat.period == 1.0 and image.period is None and not flat.has_boundary
    assert flat.points.shape == (2000, 3) and flat.points.min() >= 0 and flat.points.max() < 1
    assert min(uniform(column) for column in flat.points.T) > 0.01
    assert image.points.shape == (2000, 6) and flat.dims == image.dims == (3,)
    gap = flat.points[1:] - flat.points[:-1]
    arc = np.abs(gap - np.round(gap))
    chord = np.linalg.norm(image.points[1:] - image.points[:-1], axis=1)
    np.testing.assert_allclose(chord**2, (np.sin(np.pi * arc) ** 2).sum(1) / np.pi**2, rtol=1e-10)
    step = flat_torus(2, 1, embedded=True).points  # a short arc is as long as its chord
    angle = np.arctan2(step[:, 1], step[:, 0]) / (2 * np.pi) % 1
    np.testing.assert_allclose(angle, flat_torus(2, 1).points[:, 0], atol=1e-12)


def test_sphere_gaussian_cube_ball_follow_their_laws() -> None:
    on = sphere(4000, 4, seed=1).points
    np.testing.assert_allclose(np.linalg.norm(on, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(on.T @ on / 4000, np.eye(5) / 5, atol=0.02)
    normal = gaussian(4000, 3, seed=1).points
    np.testing.assert_allclose(np.cov(normal.T), np.eye(3), atol=0.1)
    assert kstest(normal[:, 0], "norm").pvalue > 0.01
    filled = cube(4000, 3, seed=1)
    assert filled.has_boundary and min(uniform(column) for column in filled.points.T) > 0.01
    round_ = ball(4000, 5, seed=1)
    assert round_.has_boundary and uniform(np.linalg.norm(round_.points, axis=1) ** 5) > 0.01
    blurred = sphere(4000, 1, seed=1, noise=0.1).points
    assert (np.linalg.norm(blurred, axis=1) - 1).std() == pytest.approx(0.1, rel=0.1)


def test_matrix_manifolds_meet_their_equations() -> None:
    matrices = rotations(3000, 3, seed=2).points.reshape(-1, 3, 3)
    np.testing.assert_allclose(
        matrices.swapaxes(1, 2) @ matrices, np.broadcast_to(np.eye(3), (3000, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1, rtol=1e-12)
    # Haar measure: no entry has a mean, and the trace 1 + 2 cos(angle) has mean 0 and variance 1.
    assert np.abs(matrices.mean(0)).max() < 0.05
    trace = np.trace(matrices, axis1=1, axis2=2)
    assert trace.mean() == pytest.approx(0, abs=0.06) and trace.var() == pytest.approx(1, abs=0.1)
    frames = stiefel(3000, 4, 2, seed=2).points.reshape(-1, 4, 2)
    np.testing.assert_allclose(
        frames.swapaxes(1, 2) @ frames, np.broadcast_to(np.eye(2), (3000, 2, 2)), atol=1e-12
    )
    assert np.abs(frames.mean(0)).max() < 0.05
    assert stiefel(5, 7, 3).dims == (15,) and rotations(5, 4).dims == (6,)


def test_projective_space_identifies_opposite_points() -> None:
    upper = projective_space(2000, 2, seed=3).points
    matrix = np.zeros((2000, 3, 3))
    rows, columns = np.triu_indices(3)
    values = upper / np.where(rows == columns, 1, np.sqrt(2))
    matrix[:, rows, columns] = matrix[:, columns, rows] = values
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-12)  # projections
    np.testing.assert_allclose(np.trace(matrix, axis1=1, axis2=2), 1, rtol=1e-12)  # of rank 1
    frobenius = np.linalg.norm(matrix[1:] - matrix[:-1], axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(upper[1:] - upper[:-1], axis=1), frobenius, rtol=1e-9)


def test_swiss_roll_is_uniform_by_area() -> None:
    x, height, z = swiss_roll(4000, seed=5).points.T
    t = np.hypot(x, z)
    turn = np.arctan2(z, x)
    np.testing.assert_allclose(np.cos(turn - t), 1, atol=1e-10)
    assert 1.5 * np.pi <= t.min() and t.max() <= 4.5 * np.pi
    grid = np.linspace(1.5 * np.pi, 4.5 * np.pi, 200_001)
    arc = np.concatenate([[0], np.cumsum(np.hypot(1, (grid[1:] + grid[:-1]) / 2) * np.diff(grid))])
    assert uniform(np.interp(t, grid, arc) / arc[-1]) > 0.01 and uniform(height / 21) > 0.01


def test_twelve_smooth_nulls() -> None:
    assert len(SMOOTH_NULLS) == 12
    assert [name for name, manifold in SMOOTH_NULLS.items() if manifold.has_boundary] == ["cube 8"]
    for name, manifold in SMOOTH_NULLS.items():
        space = manifold.draw(50, 7)
        assert space.name == name or name == "projective plane"
        assert space.points.shape == (50, manifold.ambient) and space.points.dtype == np.float64
        assert space.dims == (manifold.dim,) and space.has_boundary is manifold.has_boundary
        assert (space.singular_distance == np.inf).all() and not space.singular(1e9).any()
        assert (space.local_dim == manifold.dim).all() and manifold.reach > 0
        np.testing.assert_array_equal(space.points, manifold.draw(50, 7).points)
        assert not np.array_equal(space.points, manifold.draw(50, 8).points)


@pytest.mark.parametrize(
    "name", ["sphere 2", "torus 2", "rotations 3", "projective plane", "stiefel 2 in 4", "sphere 7"]
)
def test_dimension_by_local_pca(name: str) -> None:
    manifold = SMOOTH_NULLS[name]
    points = 3000 if manifold.dim <= 3 else 60_000
    space = manifold.draw(points, 0)
    assert local_rank(space, neighbors=40 * manifold.dim, floor=0.3) == [manifold.dim] * 20


@pytest.mark.parametrize(
    ("name", "constraints", "span"),
    [("sphere 31", 1, 32), ("torus 5", 5, 10), ("torus 8", 8, 16), ("gaussian 64", 0, 64)],
)
def test_dimension_by_counting_equations(name: str, constraints: int, span: int) -> None:
    manifold = SMOOTH_NULLS[name]
    points = manifold.draw(500, 0).points
    assert np.linalg.matrix_rank(points - points.mean(0)) == span == manifold.ambient
    assert manifold.ambient - constraints == manifold.dim
    if name.startswith("torus"):
        np.testing.assert_allclose(np.hypot(points[:, ::2], points[:, 1::2]), 1 / (2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (flat_torus, {"points": 1, "dim": 2}, "flat_torus: points: expected at least 2, got 1"),
        (flat_torus, {"points": 9, "dim": 0}, "flat_torus: dim: expected at least 1, got 0"),
        (
            sphere,
            {"points": 9, "dim": 1, "noise": -1.0},
            "sphere: noise: expected a finite number >= 0, got -1.0",
        ),
        (rotations, {"points": 9, "size": 1}, "rotations: size: expected at least 2, got 1"),
        (
            stiefel,
            {"points": 9, "size": 3, "vectors": 3},
            "stiefel: vectors: expected fewer than size = 3, got 3",
        ),
        (stiefel, {"points": 9, "size": 3, "vectors": 0}, "stiefel: vectors: expected at least 1, got 0"),
    ],
)
def test_rejects(draw: Draw, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw(**arguments)
    assert str(caught.value) == message
