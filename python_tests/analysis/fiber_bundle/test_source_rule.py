"""The rule of the source documents against its words, and what it does on a smooth manifold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle.source_rule import source_rule
from stratcore.analysis.neighbors import nearest_neighbors
from stratcore.data.manifolds import flat_torus


def transcription(radii, grid, width, alpha):
    count = np.array([1 + (radii <= r).sum() for r in grid])
    y, x = np.log(count + 1e-10), np.log(grid)
    slopes = np.zeros(len(grid))
    for i in range(1, len(grid) - 1):
        slopes[i] = (y[i + 1] - y[i - 1]) / (x[i + 1] - x[i - 1])
    slopes[0], slopes[-1] = slopes[1], slopes[-2]
    for i in range(width, len(grid) - width):
        before, after = slopes[i - width : i], slopes[i : i + width]
        with np.errstate(invalid="ignore", divide="ignore"):
            if ttest_ind(before, after, equal_var=False).pvalue < alpha and after.mean() > before.mean():
                return True, before, after
    return False, None, None


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")
def test_equals_its_words():
    points = np.random.default_rng(0).normal(size=(120, 5)) * 2
    radii = nearest_neighbors(points, 119).distances
    found = source_rule(radii, radius_range=(0.01, 8.0), num_radii=150)
    for row, own in enumerate(radii):
        assert found.rejected[row] == transcription(own, np.linspace(0.01, 8.0, 150), 10, 0.05)[0]


def test_rejects_nearly_every_point_of_a_flat_torus():
    space = flat_torus(500, 2)
    radii = nearest_neighbors(space.points, 499, period=space.period).distances
    assert source_rule(20 * radii).rejected.mean() > 0.8


def test_the_answer_depends_on_the_unit_of_length():
    radii = nearest_neighbors(np.random.default_rng(1).normal(size=(200, 8)), 199).distances
    shares = [source_rule(radii * scale).rejected.mean() for scale in (0.01, 1.0, 100.0)]
    assert max(shares) - min(shares) > 0.5
