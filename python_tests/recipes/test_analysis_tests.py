"""The neighborhood tests of an analysis: which ran, what they counted, which points they name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.data.singular import plane_union_line
from stratcore.recipes.analysis import TestOptions
from stratcore.recipes.analysis_tests import curves_of, find_neighborhoods, run_tests, singular_points

CPU = torch.device("cpu")
OPTIONS = TestOptions(window=(10, 100), published_window=(10, 150), points=7)


@pytest.fixture(scope="module")
def space():
    return plane_union_line(500)


@pytest.fixture(scope="module")
def found(space):
    neighborhoods = find_neighborhoods(space.points, OPTIONS, CPU)
    strata = np.array(["plane", "line"])[space.stratum]
    tests, notes = run_tests(neighborhoods, OPTIONS, strata)
    return neighborhoods, strata, tests, notes


def test_five_tests_in_reading_order(found):
    _, _, tests, notes = found
    assert [(test.result["procedure"], test.result["null"]) for test in tests] == [
        ("spacings", "fiber bundle"),
        ("spacings", "manifold"),
        ("reference", "fiber bundle"),
        ("reference", "manifold"),
        ("source", "fiber bundle"),
    ]
    assert notes == []
    for test in tests:
        result = test.result
        assert result["num_tested"] + result["num_refused"] == 500
        assert sum(each["num_rejected"] for each in result["per_stratum"]) == result["num_rejected"]
    ours = tests[0].result
    assert ours["num_rejected"] == ours["num_holm"] <= ours["num_bh"] <= ours["num_below_level"]
    assert ours["num_holm"] > 0 and tests[2].result["num_holm"] is None


def test_points_are_those_of_the_smallest_p_values(found):
    neighborhoods, strata, tests, _ = found
    names = [f"point {row}" for row in range(500)]
    points = singular_points(tests[1], neighborhoods, names, strata, 7)
    assert len(points) == 7
    p_values = [point["p_value"] for point in points]
    assert p_values == sorted(p_values) and p_values[0] == pytest.approx(np.nanmin(tests[1].found.p_value))
    first = points[0]
    assert first["name"] == f"point {first['row']}" and first["stratum"] == strata[first["row"]]
    assert first["radius"] == neighborhoods.radii[neighborhoods.place[first["row"]], first["rank"] - 1]
    curves = curves_of(tests[1], neighborhoods, names, seed=0)
    assert curves[0].name == first["name"] and curves[0].change == first["rank"]


def test_local_dimension_is_that_of_the_strata(space, found):
    dimension = found[0].local_dimension
    far = space.singular_distance > 0.6
    assert np.median(dimension[far & (space.stratum == 1)]) == pytest.approx(1, abs=0.15)


def test_copies_share_a_neighborhood():
    points = np.random.default_rng(0).normal(size=(120, 3))
    doubled = np.concatenate([points, points[:20]])
    neighborhoods = find_neighborhoods(doubled, OPTIONS, CPU)
    assert neighborhoods.radii.shape[0] == 120
    assert (neighborhoods.place[120:] == neighborhoods.place[:20]).all()
    assert (neighborhoods.radii[:, 0] > 0).all()


def test_a_published_scan_without_positions_is_left_out_and_said():
    points = np.random.default_rng(0).normal(size=(40, 3))
    options = TestOptions(window=(3, 30))
    tests, notes = run_tests(find_neighborhoods(points, options, CPU), options, np.full(40, "S0"))
    assert [test.result["procedure"] for test in tests] == ["spacings", "spacings", "source"]
    assert len(notes) == 1 and "the scan is empty and can never reject" in notes[0]
