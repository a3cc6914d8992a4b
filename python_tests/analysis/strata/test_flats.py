"""Legend: N rows, D features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from python_tests.analysis.strata.unions import subspaces
from stratcore.analysis.strata.flats import (
    check_dims,
    num_varying,
    principal_axes,
    signal_dimension,
    start_labels,
)


@pytest.mark.parametrize("shape", [(40, 6), (5, 20)], ids=["tall", "wide"])
@pytest.mark.parametrize("center", [True, False])
def test_axes_are_those_of_the_weighted_covariance(shape, center):
    rng = np.random.default_rng(0)
    x_ND, weight_N = rng.standard_normal(shape) + 3, rng.random(shape[0])
    mean, values, axes = principal_axes(x_ND, weight_N, center=center)
    expected = np.average(x_ND, axis=0, weights=weight_N) * center
    moment = np.average([np.outer(x, x) for x in x_ND - expected], axis=0, weights=weight_N)
    np.testing.assert_allclose(mean, expected, atol=1e-12)
    np.testing.assert_allclose((axes * values) @ axes.T, moment, atol=1e-12)
    assert (np.diff(values) <= 1e-12).all() and (
        axes[np.abs(axes).argmax(axis=0), range(len(values))] > 0
    ).all()


@pytest.mark.parametrize(
    ("features", "dim", "rows"),
    [(64, 24, 500), (64, 60, 500), (64, 10, 40), (8, 7, 200), (2, 1, 50), (300, 5, 100)],
)
def test_dimension_of_a_plane_in_noise(features, dim, rows):
    rng = np.random.default_rng(dim)
    for _ in range(10):
        x_ND = 0.05 * rng.standard_normal((rows, features))
        x_ND[:, :dim] += rng.standard_normal((rows, dim))
        assert signal_dimension(principal_axes(x_ND)[1], features, rows) == dim


@pytest.mark.parametrize(("features", "rows"), [(16, 200), (16, 20), (1, 50)])
def test_pure_noise_has_no_dimension(features, rows):
    rng = np.random.default_rng(0)
    clouds = (rng.standard_normal((rows, features)) for _ in range(200))
    assert sum(signal_dimension(principal_axes(x)[1], features, rows) for x in clouds) <= 1


def test_a_plane_without_noise_has_its_dimension():
    x_ND = np.random.default_rng(0).standard_normal((100, 3)) @ np.random.default_rng(1).standard_normal(
        (3, 12)
    )
    values = principal_axes(x_ND)[1]
    assert signal_dimension(values, 12, 100, floor=1e-10 * values.sum()) == 3


def test_columns_that_never_vary_are_no_direction_of_noise():
    rng = np.random.default_rng(0)
    x_ND = np.c_[0.05 * rng.standard_normal((300, 10)), np.ones((300, 2))]
    x_ND[:, :3] += rng.standard_normal((300, 3))
    assert num_varying(x_ND) == 10
    assert signal_dimension(principal_axes(x_ND)[1], num_varying(x_ND), 300) == 3


def test_first_start_tells_subspaces_of_one_center_apart():
    x_ND, truth = subspaces()
    first, *_ = start_labels(x_ND, 3, 3, np.random.RandomState(0))
    used = first >= 0
    assert adjusted_rand_score(truth[used], first[used]) > 0.95


def test_starts_hold_rows_that_repeat():
    labels = list(start_labels(np.repeat(np.eye(4)[:2], 10, axis=0), 3, 4, np.random.RandomState(0)))
    assert len(labels) == 4 and all(each.shape == (20,) and each.max() <= 2 for each in labels)


@pytest.mark.parametrize("dims", [3, (1, 2), (1, 2, 12), (1.5, 2, 2), (-1, 2, 2)])
def test_rejects_dimensions(dims):
    if dims == 3:
        assert check_dims(3, 3, 12) == [3, 3, 3] and check_dims(None, 3, 12) is None
        return
    with pytest.raises(ValueError, match="dims: expected 3 dimensions from 0 to 11"):
        check_dims(dims, 3, 12)
