"""Corrections over points: by hand, with points that were not tested."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis.fiber_bundle.corrections import corrected_p_values

P = [0.01, np.nan, 0.04, 0.03, 0.5]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("holm", [0.04, np.nan, 0.09, 0.09, 0.5]),
        ("benjamini_hochberg", [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5]),
        ("benjamini_yekutieli", [0.04 * 25 / 12, np.nan, 0.16 / 3 * 25 / 12, 0.16 / 3 * 25 / 12, 1.0]),
    ],
)
def test_by_hand(method, expected):
    np.testing.assert_allclose(corrected_p_values(P, method), expected, rtol=1e-12)


def test_nothing_tested_stays_nothing():
    assert np.isnan(corrected_p_values([np.nan, np.nan])).all()
    assert corrected_p_values([]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: corrected_p_values([0.5, 1.5]), r"p_values: expected numbers in \[0, 1\] or NaN"),
        (lambda: corrected_p_values([0.5], "none"), "method: expected one of holm"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
