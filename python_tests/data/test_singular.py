from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kstest

from stratcore.data import singular
from stratcore.data.singular import SampledSpace

Draw = Callable[..., SampledSpace]
SPACES: dict[str, tuple[Draw, tuple[int, ...], int]] = {  # draw, dims, ambient
    "plane_union_line": (singular.plane_union_line, (2, 1), 3),
    "disc_in_cube": (singular.disc_in_cube, (2, 6), 6),
    "line_in_hollow_ball": (singular.line_in_hollow_ball, (1, 6), 6),
    "thinning_strip": (singular.thinning_strip, (2, 1), 2),
    "lollipop": (singular.lollipop, (2, 1), 3),
    "sphere_union_line": (singular.sphere_union_line, (2, 1), 3),
    "cusp": (singular.cusp, (1,), 2),
    "horn": (singular.horn, (2,), 2),
    "cone": (singular.cone, (2,), 3),
    "whisker_and_ball": (singular.whisker_and_ball, (3, 1), 3),
}


def strata(space: SampledSpace) -> list[np.ndarray]:
    return [space.points[space.stratum == i] for i in range(len(space.dims))]


def uniform(values: np.ndarray) -> float:
    return float(kstest(values, "uniform").pvalue)


def norm(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points, axis=1)


@pytest.mark.parametrize("name", SPACES)
def test_shapes_dims_and_seed(name: str) -> None:
    draw, dims, ambient = SPACES[name]
    space = draw(1500, 3)
    assert space.points.shape == (1500, ambient) and space.points.dtype == np.float64
    assert space.dims == dims and space.period is None and space.has_boundary
    assert (space.local_dim == np.array(dims)[space.stratum]).all() and space.stratum.dtype == np.int64
    assert np.isfinite(space.singular_distance).all() and space.singular_distance.min() >= 0
    again, other = draw(1500, 3), draw(1500, 4)
    np.testing.assert_array_equal(space.points, again.points)
    np.testing.assert_array_equal(space.stratum, again.stratum)
    assert not np.array_equal(space.points, other.points)
    if len(dims) > 1:
        assert np.count_nonzero(np.diff(space.stratum)) > 50, "strata are not in random order"
    noisy = draw(1500, 3, noise=0.1)
    np.testing.assert_array_equal(noisy.singular_distance, space.singular_distance)
    assert (noisy.points - space.points).std() == pytest.approx(0.1, rel=0.05)
    assert space.as_table().embeddings.dtype == np.float32 and len(space.as_table().domain_names) == len(dims)


@pytest.mark.parametrize("name", SPACES)
def test_singular_distance_is_the_least_distance_to_singular_points(name: str) -> None:
    """Against brute force over points of the singular set, written down here once more."""
    space = SPACES[name][0](600, 1)
    z = np.array([[0, 0, 1.0]])
    grid = np.linspace(-0.5, 0.5, 101)
    square = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    sets = {
        "disc_in_cube": np.pad(square[norm(square) <= 0.5], ((0, 0), (0, 4))),
        "line_in_hollow_ball": 0.5 * np.eye(1, 6) * np.array([[1], [-1]]),
        "thinning_strip": np.array([[0.75, 0]]),
        "lollipop": z,
        "sphere_union_line": np.concatenate([z, -z]),
        "whisker_and_ball": np.eye(1, 3),
    }
    points = sets.get(name, np.zeros((1, space.points.shape[1])))
    brute = np.array([norm(points - point).min() for point in space.points])
    atol = 8e-3 if name == "disc_in_cube" else 1e-12
    np.testing.assert_allclose(space.singular_distance, brute, atol=atol)
    np.testing.assert_array_equal(space.singular(0.3), space.singular_distance <= 0.3)


def test_plane_union_line() -> None:
    disc, line = strata(singular.plane_union_line(3000, 1, line_share=0.4))
    assert len(line) == 1200 and (disc[:, 2] == 0).all() and (line[:, :2] == 0).all()
    assert uniform(norm(disc) ** 2) > 0.01 and uniform((line[:, 2] + 1) / 2) > 0.01


def test_disc_in_cube() -> None:
    space = singular.disc_in_cube()
    disc, filled = strata(space)
    assert len(space.points) == 4000 and len(disc) == 2000
    assert (disc[:, 2:] == 0).all() and uniform((norm(disc) / 0.5) ** 2) > 0.01
    assert min(uniform((column + 1) / 2) for column in filled.T) > 1e-3
    assert (space.singular_distance[space.stratum == 0] == 0).all()


def test_line_in_hollow_ball_is_seen_between_64_and_128_neighbors() -> None:
    space = singular.line_in_hollow_ball()
    line, shell = strata(space)
    assert len(line) == 80 and len(shell) == 1000 and (line[:, 1:] == 0).all()
    assert norm(line).max() <= 0.5 <= norm(shell).min() and norm(shell).max() <= 1
    assert uniform((norm(shell) ** 6 - 0.5**6) / (1 - 0.5**6)) > 0.01 and uniform(line[:, 0] + 0.5) > 0.01
    order = np.argsort(np.linalg.norm(line[:, None] - space.points, axis=2), axis=1)
    from_shell = space.stratum[order] == 1
    assert np.median(from_shell[:, 1:65].sum(1)) < 6 and from_shell[:, 1:129].sum(1).min() > 40


def test_thinning_strip_holds_the_same_mass_along_its_length() -> None:
    space = singular.thinning_strip(4000, 2, half_width=0.3)
    wide, thin = strata(space)
    assert uniform(space.points[:, 0]) > 0.01
    assert (thin[:, 1] == 0).all() and thin[:, 0].min() >= 0.75
    width = 0.3 * (1 - wide[:, 0] / 0.75)
    assert (np.abs(wide[:, 1]) <= width).all() and uniform((wide[:, 1] / width + 1) / 2) > 0.01


def test_spheres_with_lines() -> None:
    candy, stick = strata(singular.lollipop(2000, 1))
    np.testing.assert_allclose(norm(candy), 1, rtol=1e-12)
    assert len(stick) == 500 and (stick[:, :2] == 0).all() and uniform((stick[:, 2] - 1) / 2) > 0.01
    shell, line = strata(singular.sphere_union_line(2000, 1))
    np.testing.assert_allclose(norm(shell), 1, rtol=1e-12)
    assert (line[:, :2] == 0).all() and uniform((line[:, 2] + 2) / 4) > 0.01
    assert uniform((shell[:, 2] + 1) / 2) > 0.01  # Archimedes


def test_tips() -> None:
    x, y = singular.cusp(3000, 1).points.T
    np.testing.assert_allclose(y**2, x**3, atol=1e-12)
    t = np.sqrt(x)
    grid = np.linspace(0, 1, 100_001)
    middle = (grid[1:] + grid[:-1]) / 2
    arc = np.concatenate([[0], np.cumsum(np.sqrt(4 * middle**2 + 9 * middle**4) * np.diff(grid))])
    assert uniform(np.interp(t, grid, arc) / arc[-1]) > 0.01
    horn = singular.horn(3000, 1, dim=4, power=1.5).points
    across = norm(horn[:, 1:]) / horn[:, 0] ** 1.5
    assert across.max() <= 1 and uniform(across**3) > 0.01 and uniform(horn[:, 0] ** 5.5) > 0.01
    cone = singular.cone(3000, 1).points
    np.testing.assert_allclose(norm(cone[:, :2]), np.abs(cone[:, 2]), rtol=1e-10)
    assert uniform(cone[:, 2] ** 2) > 0.01 and abs(np.sign(cone[:, 2]).mean()) < 0.1


def test_whisker_and_ball() -> None:
    filled, whisker = strata(singular.whisker_and_ball(4000, 1, dim=5, line_share=0.25))
    assert uniform(norm(filled) ** 5) > 0.01 and filled.shape[1] == 5
    assert len(whisker) == 1000 and (whisker[:, 1:] == 0).all() and uniform(whisker[:, 0] - 1) > 0.01


def test_each_stratum_has_a_point() -> None:
    assert np.bincount(singular.plane_union_line(2, line_share=0.001).stratum).tolist() == [1, 1]
    assert np.bincount(singular.plane_union_line(2, line_share=0.999).stratum).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("draw", "change", "message"),
    [
        (singular.plane_union_line, {"points": 1}, "plane_union_line: points: expected at least 2, got 1"),
        (singular.lollipop, {"line_share": 1.0}, "lollipop: line_share: expected between 0 and 1, got 1.0"),
        (
            singular.disc_in_cube,
            {"disc_share": 0.0},
            "disc_in_cube: disc_share: expected between 0 and 1, got 0.0",
        ),
        (singular.disc_in_cube, {"dim": 2}, "disc_in_cube: dim: expected at least 3, got 2"),
        (
            singular.disc_in_cube,
            {"radius": 1.5},
            "disc_in_cube: radius: expected more than 0, at most 1, got 1.5",
        ),
        (
            singular.line_in_hollow_ball,
            {"inner": 1.0},
            "line_in_hollow_ball: inner: expected between 0 and 1, got 1.0",
        ),
        (
            singular.thinning_strip,
            {"half_width": 0.0},
            "thinning_strip: half_width: expected a finite number > 0, got 0",
        ),
        (singular.horn, {"dim": 1}, "horn: dim: expected at least 2, got 1"),
        (singular.horn, {"power": 1.0}, "horn: power: expected a finite number > 1, got 1.0"),
        (singular.cone, {"noise": float("nan")}, "cone: noise: expected a finite number >= 0, got nan"),
        (singular.whisker_and_ball, {"dim": 2}, "whisker_and_ball: dim: expected at least 3, got 2"),
    ],
)
def test_rejects(draw: Draw, change: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw(**{"points": 100} | change)
    assert str(caught.value).startswith(message)
