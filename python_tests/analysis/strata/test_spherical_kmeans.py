from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis import SphericalKMeans


def _directions(noise=0.05):
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(6)[:3], 50, axis=0) + noise * rng.standard_normal((150, 6))
    return rows * rng.uniform(0.1, 100, size=(150, 1))


def test_centers_are_the_directions_of_the_sums_of_unit_rows():
    x = _directions()
    found = SphericalKMeans(3, random_state=0).fit(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for c in range(3):
        total = unit[found.labels_ == c].sum(axis=0)
        np.testing.assert_allclose(found.cluster_centers_[c], total / np.linalg.norm(total), rtol=1e-12)
    assert (found.predict(1e-6 * x) == found.labels_).all()


def test_rows_of_zeros_have_no_direction():
    found = SphericalKMeans(2, random_state=0).fit(np.zeros((5, 3)))
    assert (found.labels_ == 0).all()


def test_rejects_more_clusters_than_rows():
    with pytest.raises(ValueError, match=r"n_clusters: expected 1 to 5 \(the rows\), got 6"):
        SphericalKMeans(6).fit(np.eye(5))
