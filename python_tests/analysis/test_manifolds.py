import numpy as np
import pytest

from stratcore.analysis.manifolds import calibration_manifolds, ellipsoid, grassmann, projective, stiefel


def _rng():
    return np.random.default_rng(0)


def test_rows_lie_on_their_manifolds():
    frames = stiefel(_rng(), 50, 5, 3).reshape(50, 5, 3)
    identity = np.broadcast_to(np.eye(3), (50, 3, 3))
    np.testing.assert_allclose(frames.transpose(0, 2, 1) @ frames, identity, atol=1e-12)
    planes = grassmann(_rng(), 50, 5, 2).reshape(50, 5, 5)
    np.testing.assert_allclose(planes @ planes, planes, atol=1e-12)
    real, imaginary = projective(_rng(), 50, 2).reshape(50, 2, 3, 3).transpose(1, 0, 2, 3)
    lines = real + 1j * imaginary
    np.testing.assert_allclose(lines @ lines, lines, atol=1e-12)
    rows = ellipsoid(_rng(), 50, 4)
    np.testing.assert_allclose(((rows / np.linspace(1, 2, 5)) ** 2).sum(axis=1), 1)


def test_an_ellipse_is_filled_evenly_along_its_length():
    """Share of the rows with |x| < 1/2 on the ellipse with half axes 1 and 2, against its length."""
    rows = ellipsoid(_rng(), 20000, 1)
    angle = np.linspace(0, 2 * np.pi, 200001)
    curve = np.stack([np.cos(angle), 2 * np.sin(angle)], axis=1)
    length = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    expected = length[np.abs(curve[:-1, 0]) < 0.5].sum() / length.sum()
    assert (np.abs(rows[:, 0]) < 0.5).mean() == pytest.approx(expected, abs=0.012)


def _tangent_rank(sample, dimension):
    """Rank of small differences: rows near the first of very many."""
    rows = sample(_rng(), 20000)
    distance = np.linalg.norm(rows - rows[0], axis=1)
    near = rows[np.argsort(distance)[: 6 * dimension + 6]] - rows[0]
    values = np.linalg.svd(near, compute_uv=False) ** 2
    return int((values > 0.03 * values[0]).sum())


@pytest.mark.parametrize("family", calibration_manifolds())
def test_the_dimension_is_what_it_says(family):
    for dimension, sample in calibration_manifolds()[family]:
        if dimension <= 2:
            assert _tangent_rank(sample, dimension) == dimension
