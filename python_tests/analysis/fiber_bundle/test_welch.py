"""Welch's test of sliding windows against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from stratcore.analysis.fiber_bundle.welch import sliding_moments, welch_p_values


@pytest.mark.parametrize("width", [2, 10])
def test_equals_scipy(width):
    rows = np.random.default_rng(0).gamma(2.0, size=(5, 60)) ** 3
    mean, variance = sliding_moments(rows, width)
    for gap in (width, 3 * width):
        found = welch_p_values(
            (mean[:, :-gap], variance[:, :-gap]), (mean[:, gap:], variance[:, gap:]), width
        )
        for at in range(0, found.shape[1], 7):
            first, second = rows[:, at : at + width], rows[:, at + gap : at + gap + width]
            expected = ttest_ind(first, second, axis=1, equal_var=False).pvalue
            np.testing.assert_allclose(found[:, at], expected, rtol=1e-10)


def test_constant_windows():
    rows = np.array([[0.0] * 4 + [2.0] * 4, [1.0] * 8])
    mean, variance = sliding_moments(rows, 4)
    p_value = welch_p_values((mean[:, 0], variance[:, 0]), (mean[:, 4], variance[:, 4]), 4)
    assert p_value[0] == 0.0 and np.isnan(p_value[1])
