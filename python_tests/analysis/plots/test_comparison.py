from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis.plots import difference_intervals, mean_curves, png_bytes


def test_differences_stand_in_order_beside_zero() -> None:
    rows = [
        ("a − plain", {"value": 1.0, "low": 0.5, "high": 1.5}),
        ("b − plain", {"value": -0.2, "low": None, "high": None}),
    ]
    figure = difference_intervals(rows, unit="points", margin=0.5)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a − plain", "b − plain"]
    assert axes.get_yticks()[0] > axes.get_yticks()[1]  # the first on top
    spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert (0.5, 1.5) in spans and axes.get_xlabel() == "difference, points"
    assert png_bytes(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one difference"):
        difference_intervals([], unit="points")


def test_curves_are_means_over_runs() -> None:
    figure = mean_curves({"plain": [[(1, 0.5), (2, 0.7)], [(2, 0.9), (1, 0.6)]]}, y_label="accuracy")
    lines = figure.axes[0].lines
    assert len(lines) == 3
    np.testing.assert_allclose(lines[-1].get_xydata(), [[1, 0.55], [2, 0.8]])
    with pytest.raises(ValueError, match="runs of 'plain' have different x"):
        mean_curves({"plain": [[(1, 0.5)], [(2, 0.6)]]}, y_label="accuracy")
    with pytest.raises(ValueError, match="at least one arm"):
        mean_curves({}, y_label="accuracy")
