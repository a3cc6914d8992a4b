"""Closed forms of random rows against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stratcore.analysis import effective_rank, participation_ratio
from stratcore.analysis.geometry import closed_forms
from stratcore.ops import cv_gaussian


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [8, 9.5, 40, 384, 10**6])
def test_dimension_of_normal_rows_is_the_inverse(dim, k):
    assert closed_forms.gaussian_dim_from_cv(cv_gaussian(dim, k), k) == pytest.approx(dim, rel=1e-9)


def test_dimension_of_normal_rows_at_its_ends():
    assert closed_forms.gaussian_dim_from_cv(cv_gaussian(4)) == pytest.approx(4)
    assert math.isnan(closed_forms.gaussian_dim_from_cv(1.01 * cv_gaussian(4)))
    assert closed_forms.gaussian_dim_from_cv(1e-9) == math.inf
    for cv in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite cv > 0"):
            closed_forms.gaussian_dim_from_cv(cv)


@pytest.mark.parametrize("dim", [2, 3, 10, 64])
def test_cosines_of_uniform_directions(dim):
    rng = np.random.default_rng(0)
    u, v = (rng.standard_normal((40_000, dim)) for _ in range(2))
    cosines = (u * v).sum(axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    for share in (0.01, 0.25, 0.5, 0.99):
        below = (cosines <= closed_forms.sphere_cosine_quantile(share, dim)).mean()
        assert below == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40_000))
    grid = np.linspace(-0.8, 0.8, 2001)
    mass = closed_forms.sphere_cosine_density(grid, dim).sum() * (grid[1] - grid[0])
    assert mass == pytest.approx((np.abs(cosines) <= 0.8).mean(), abs=0.01)
    assert closed_forms.sphere_cosine_quantile([0.1, 0.9], 1).tolist() == [-1, 1]


@pytest.mark.parametrize("dim, num_rows", [(3, 60), (64, 200)])
def test_mean_cosine_lies_in_its_range_as_often_as_stated(dim, num_rows):
    rng = np.random.default_rng(1)
    low, high = closed_forms.sphere_mean_cosine_range(num_rows, dim)
    inside = 0
    for _ in range(1000):
        u = rng.standard_normal((num_rows, dim))
        total = (u / np.linalg.norm(u, axis=1, keepdims=True)).sum(axis=0)
        inside += low <= (total @ total - num_rows) / (num_rows * (num_rows - 1)) <= high
    assert inside / 1000 == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("num_rows, dim", [(300, 40), (60, 300), (200, 200), (40, 3)])
def test_spectrum_of_isotropic_rows(num_rows, dim):
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(20):
        x = rng.standard_normal((num_rows, dim))
        x -= x.mean(axis=0)
        values = np.linalg.eigvalsh(x @ x.T if num_rows < dim else x.T @ x)[::-1] / (num_rows - 1)
        draws.append(values[: min(dim, num_rows - 1)])
    measured = np.mean(draws, axis=0)
    expected = closed_forms.marchenko_pastur_eigenvalues(num_rows, dim)
    assert len(expected) == min(dim, num_rows - 1)
    assert expected.sum() == pytest.approx(dim)
    assert (np.diff(expected) < 0).all()
    middle = slice(len(expected) // 10, max(1, 9 * len(expected) // 10))
    assert measured[middle] == pytest.approx(expected[middle], rel=0.1)
    mean_of = {f: np.mean([f(d) for d in draws]) for f in (participation_ratio, effective_rank)}
    assert mean_of[participation_ratio] == pytest.approx(
        closed_forms.isotropic_participation_ratio(num_rows, dim), rel=0.015
    )
    assert mean_of[effective_rank] == pytest.approx(
        closed_forms.isotropic_effective_rank(num_rows, dim), rel=0.01
    )


def test_least_rows_have_one_dimension():
    assert closed_forms.isotropic_participation_ratio(2, 7) == pytest.approx(1)
    assert closed_forms.isotropic_effective_rank(2, 7) == 1
    assert closed_forms.marchenko_pastur_eigenvalues(2, 7) == pytest.approx([7])
