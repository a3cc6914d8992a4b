"""Figures of an analysis draw what they are given, with every value that may be missing."""

from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis.plots import png_bytes
from stratcore.analysis.plots.stratification import (
    GrowthCurve,
    dimension_forest,
    growth_curves,
    p_value_map,
    p_value_ranks,
    strata_choice,
    value_by_group,
    views_2d,
    views_3d,
)

N = 60


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(N, 3))


@pytest.fixture
def groups():
    rng = np.random.default_rng(1)
    return {"domain": np.array(["a", "b"])[rng.integers(2, size=N)], "stratum": rng.integers(12, size=N)}


def test_views_have_one_panel_a_grouping(points, groups):
    assert [axes.get_title(loc="left") for axes in views_2d(points, [0.5, 0.2], groups).axes] == [
        "by domain",
        "by stratum",
    ]
    assert len(views_3d(points, groups).axes) == 2


def test_p_values_of_points_that_were_not_tested_are_no_color(points):
    p_N = np.random.default_rng(0).random(N)
    p_N[:20] = np.nan
    figure = p_value_map(points, {"ours": p_N, "nothing tested": np.full(N, np.nan)}, [0.5, 0.2])
    gray, colored = figure.axes[0].collections
    assert len(gray.get_offsets()) == 20 and len(colored.get_offsets()) == 40
    assert len(figure.axes[1].collections[1].get_offsets()) == 0
    ranks = p_value_ranks({"ours": p_N, "nothing tested": np.full(N, np.nan)}, 0.05)
    assert len(ranks.axes[0].lines[0].get_xdata()) == 40


def test_growth_curves_mark_the_change():
    radii = np.linspace(0.1, 1, 50)
    still = GrowthCurve(name="row 1", radii=radii, change=None, inside=2.0, outside=None, p_value=0.4)
    broken = GrowthCurve(name="row 2", radii=radii, change=20, inside=2.0, outside=5.0, p_value=1e-5)
    left, right = growth_curves([still, broken]).axes
    assert len(left.lines) == 1 and len(right.lines) == 2
    assert right.lines[1].get_xdata()[0] == pytest.approx(radii[19])
    assert right.get_title(loc="left") == "row 2\n2.0 → 5.0, p = 1e-05"


def test_a_forest_leaves_out_what_is_unknown():
    rows = [
        {"stratum": "all", "estimator": "MLE", "value": 4.0, "low": 3.5, "high": 4.5, "warning": None},
        {"stratum": "S0", "estimator": "MLE", "value": None, "low": None, "high": None, "warning": "few"},
        {"stratum": "S0", "estimator": "PCA", "value": 40.0, "low": None, "high": None, "warning": "edge"},
    ]
    axes = dimension_forest(rows).axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "S0"]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1 and hollow[0].get_xdata()[0] == 40.0


def test_choice_and_groups():
    table = [{"num_strata": k, "value": -k, "low": -k - 1, "high": -k + 1} for k in (1, 2, 4)]
    assert strata_choice(table, 1, "score").axes[0].get_title(loc="left") == "Number of strata: 1 taken"
    one = [{"group": "a", "num_rows": 1, "median": 3.0, "low": None, "high": None}]
    two = [*one, {"group": "b", "num_rows": 5, "median": 4.0, "low": 3.0, "high": 5.0}]
    figure = value_by_group({"domain": one, "stratum": two}, "perplexity")
    assert [len(axes.lines) for axes in figure.axes] == [1, 3]
    assert png_bytes(figure).startswith(b"\x89PNG")
