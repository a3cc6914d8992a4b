"""Moments of uniform simplices against 60 digits, tabulated values, and simulation."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from stratcore import ops
from stratcore.ops import simplex_baseline
from stratcore.ops.simplex_baseline import (
    cv_gaussian,
    cv_uniform,
    effective_dim_from_cv,
    mean_volume_uniform,
    volume_moment_uniform,
)

# CV for k = 4, by dimension
GOLDEN = {
    4: 0.9231, 5: 0.6252, 8: 0.3624, 12: 0.2533, 16: 0.2030, 20: 0.1731, 24: 0.1531, 32: 0.1272, 48: 0.0996,
    64: 0.0845, 96: 0.0675, 128: 0.0578, 256: 0.0402, 384: 0.0326,
}  # fmt: skip


def exact_moment(dim: float, power: int, k: int) -> mpmath.mpf:
    """The product of Gamma functions, as it is written."""
    d, g = mpmath.mpf(dim), mpmath.loggamma
    middle = (k + 1) * (d + power - 2)
    value = (k + 1) * (g(d / 2) - g((d + power) / 2)) - power * g(k + 1)
    value += g(middle / 2 + 1) - g((middle - power) / 2 + 1)
    value += sum(g((d - k + power + i) / 2) - g((d - k + i) / 2) for i in range(1, k + 1))
    return mpmath.exp(value)


@pytest.mark.parametrize("k", range(1, 9))
def test_matches_sixty_digits(k):
    with mpmath.workdps(60):
        for dim in (k, k + 0.5, k + 1, k + 2, 12, 30.25, 128, 1000, 10**4, 10**6):
            dim = max(dim, k)
            moments = {power: exact_moment(dim, power, k) for power in (1, 2, 3, 4)}
            cv = mpmath.sqrt(moments[2] / moments[1] ** 2 - 1)
            assert abs(cv_uniform(dim, k) / cv - 1) < 1e-12
            assert abs(mean_volume_uniform(dim, k) / moments[1] - 1) < 1e-12
            for power, moment in moments.items():
                assert abs(volume_moment_uniform(dim, power, k) / moment - 1) < 1e-12


@pytest.mark.parametrize("k", range(1, 9))
def test_gaussian_matches_sixty_digits(k):
    with mpmath.workdps(60):
        for dim in (k, k + 0.5, k + 1, k + 2, 12, 30.25, 128, 1000, 10**4, 10**6):
            halves = [(mpmath.mpf(max(dim, k)) - j) / 2 for j in range(k)]
            ratio = mpmath.fprod(z * (mpmath.gamma(z) / mpmath.gamma(z + 0.5)) ** 2 for z in halves)
            assert abs(cv_gaussian(max(dim, k), k) / mpmath.sqrt(ratio - 1) - 1) < 1e-12


@pytest.mark.parametrize("dim, cv", {8: 0.6094, 16: 0.3856, 48: 0.2097, 128: 0.1262, 512: 0.0627}.items())
def test_gaussian_golden_table_and_simulation(dim, cv):
    assert cv_gaussian(dim) == pytest.approx(cv, abs=5.1e-5)
    points = torch.randn(20000, 5, min(dim, 64), generator=torch.Generator().manual_seed(1))
    volumes = ops.simplex_volume(points.double())
    simulated = float(volumes.std() / volumes.mean())
    assert simulated == pytest.approx(cv_gaussian(min(dim, 64)), rel=0.03)


@pytest.mark.parametrize("dim, cv", GOLDEN.items())
def test_golden_table(dim, cv):
    assert cv_uniform(dim) == pytest.approx(cv, abs=5.1e-5)


def test_golden_means_and_closed_forms():
    assert [round(mean_volume_uniform(dim), 5) for dim in (16, 128)] == [0.07454, 0.09084]
    assert round(mean_volume_uniform(256), 4) == 0.0920
    # two points of {-1, 1}; chords of the circle and of the sphere
    assert cv_uniform(1, 1) == pytest.approx(1.0, rel=1e-13)
    assert mean_volume_uniform(2, 1) == pytest.approx(4 / math.pi, rel=1e-13)
    assert mean_volume_uniform(3, 1) == pytest.approx(4 / 3, rel=1e-13)
    # triangles in the circle
    assert mean_volume_uniform(2, 2) == pytest.approx(3 / (2 * math.pi), rel=1e-13)
    assert cv_uniform(1e12, 4) == pytest.approx(math.sqrt(0.4e-12), rel=1e-9)


@pytest.mark.parametrize("dim, k", [(4, 4), (16, 4), (7, 2), (9, 8)])
def test_matches_simulation(dim, k):
    """The sampler of another route: independent points, volumes by the op."""
    x = torch.nn.functional.normalize(torch.randn(200_000, dim, dtype=torch.float64), dim=1)
    found = ops.simplex_cv(x, k=k, num_simplices=40_000, seed=1)
    error = cv_uniform(dim, k) * simplex_baseline._log_error(dim, k) / 200
    assert abs(float(found.cv) - cv_uniform(dim, k)) < 4 * error
    assert float(found.mean) == pytest.approx(mean_volume_uniform(dim, k), rel=4 * cv_uniform(dim, k) / 200)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_inverse(k):
    for dim in (k, k + 0.25, 9, 13.7, 128, 4096.5, 1e6, 1e9):
        dim = max(dim, k)
        assert effective_dim_from_cv(cv_uniform(dim, k), k).dim == pytest.approx(dim, rel=1e-11)
    assert [round(effective_dim_from_cv(cv).dim) for cv in (0.20, 0.22, 0.23)] == [16, 14, 14]
    curve = [cv_uniform(k + 0.37 * step, k) for step in range(400)]
    assert all(a > b for a, b in zip(curve, curve[1:], strict=False))


def test_standard_error_matches_sixty_digits():
    with mpmath.workdps(60):
        for dim, k in ((4, 4), (16, 4), (1000, 3), (10**6, 8)):
            m = [exact_moment(dim, power, k) for power in range(5)]
            variance = m[2] - m[1] ** 2
            third = m[3] - 3 * m[1] * m[2] + 2 * m[1] ** 3
            fourth = m[4] - 4 * m[1] * m[3] + 6 * m[1] ** 2 * m[2] - 3 * m[1] ** 4
            cv = mpmath.sqrt(variance) / m[1]
            square = (fourth / variance**2 - 1) / 4 + cv**2 - cv * third / variance**1.5
            assert simplex_baseline._log_error(dim, k) == pytest.approx(float(mpmath.sqrt(square)), rel=1e-7)


@pytest.mark.parametrize("dim, k, simplices", [(6, 4, 100), (16, 4, 64), (128, 4, 200), (40, 2, 500)])
def test_interval_covers(dim, k, simplices):
    """Share of 95 % intervals that hold the dimension, over 400 clouds with independent simplices."""
    generator = torch.Generator().manual_seed(3)
    held = 0
    for _ in range(4):
        x = torch.randn(100, simplices, k + 1, dim, generator=generator, dtype=torch.float32)
        x = torch.nn.functional.normalize(x, dim=-1).double()
        edges = x[..., 1:, :] - x[..., :1, :]
        volumes = torch.linalg.det(edges @ edges.mT).clamp_min(0).sqrt()
        for cv in (volumes.std(1) / volumes.mean(1)).tolist():
            found = effective_dim_from_cv(cv, k, num_simplices=simplices)
            assert math.isnan(found.dim) or found.low <= found.dim <= found.high
            held += found.low <= dim <= found.high
    assert 0.915 < held / 400 < 0.985


def test_interval_narrows_and_ends():
    wide, narrow = (effective_dim_from_cv(0.2, num_simplices=n) for n in (50, 5000))
    assert wide.low < narrow.low < narrow.dim < narrow.high < wide.high
    assert effective_dim_from_cv(0.2, num_simplices=50, confidence=0.5).high < wide.high
    assert math.isnan(effective_dim_from_cv(0.2).low) and math.isnan(effective_dim_from_cv(0.2).high)
    # less even than uniform points on a sphere of R^4 ever are, but not by more than the error of 50 simplices
    beyond = effective_dim_from_cv(0.95, num_simplices=50)
    assert math.isnan(beyond.dim) and beyond.low == 4.0 and 4.0 < beyond.high < 5.0
    assert all(math.isnan(v) for v in effective_dim_from_cv(3.0, num_simplices=50))


def test_rejects():
    for call, message in (
        (lambda: cv_uniform(3, 4), r"expected dim in \[k, 1e\+15\] with k = 4, got 3"),
        (lambda: cv_uniform(math.nan), "expected dim in"),
        (lambda: mean_volume_uniform(5, 0), "expected k >= 1, got 0"),
        (lambda: volume_moment_uniform(5, 5), "expected power 1, 2, 3 or 4, got 5"),
        (lambda: effective_dim_from_cv(0.0), "expected a finite cv > 0, got 0.0"),
        (lambda: effective_dim_from_cv(math.nan), "expected a finite cv > 0, got nan"),
        (lambda: effective_dim_from_cv(0.2, 0), "expected k >= 1, got 0"),
        (lambda: effective_dim_from_cv(0.2, num_simplices=1), "expected num_simplices >= 2, got 1"),
        (lambda: effective_dim_from_cv(0.2, confidence=1.0), r"expected confidence in \(0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
