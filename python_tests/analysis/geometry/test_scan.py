"""Scans of rows whose geometry is known, of degenerate rows, and of bad input."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from stratcore.analysis import describe_scan, scan_geometry
from stratcore.analysis.geometry._rows import fit_twin, take_rows
from stratcore.analysis.geometry._simplices import cv_measurements, estimate_cv, sphere_dim
from stratcore.analysis.schema import to_plain
from stratcore.data import load_bundled
from stratcore.ops import cv_gaussian, cv_uniform


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def uniform():
    """Uniform directions in 24 dimensions with labels and anchors that mean nothing."""
    rng = np.random.default_rng(0)
    rows, anchors = unit(rng.standard_normal((1200, 24))), rng.standard_normal((32, 24))
    return scan_geometry(rows, rng.integers(4, size=1200), anchors)


@pytest.fixture(scope="module")
def clustered():
    """Ten tight classes on the sphere in 48 dimensions, and anchors of which half point nowhere near."""
    rng = np.random.default_rng(1)
    centers = unit(rng.standard_normal((10, 48)) + 0.5)
    label = rng.integers(10, size=1000)
    rows = unit(centers[label] + 0.06 * rng.standard_normal((1000, 48)))
    return scan_geometry(rows, np.array(list("abcdefghij"))[label], np.concatenate([centers, -centers]))


# ---- random rows read as random


def test_every_figure_of_uniform_directions_is_its_baseline(uniform):
    for name in ("mean_cosine", "isotropy", "nearest_neighbor_accuracy", "cosine_gap", "hubness"):
        baseline = uniform[name].baselines[-1]
        slack = 0.6 * (baseline.high - baseline.low)  # ranges of 95 %, or of a few draws
        assert baseline.low - slack <= uniform[name].value <= baseline.high + slack, name
    for name, relative in {
        "cosine_spread": 0.01, "cosine_q99": 0.02, "participation_ratio": 0.01, "effective_rank": 0.01,
        "top_1_energy": 0.06, "top_5_energy": 0.03, "cv_directions": 0.03, "cv_dim_directions": 0.06,
        "class_cv_mean": 0.03, "anchor_entropy": 0.02,
    }.items():  # fmt: skip
        assert uniform[name].value == pytest.approx(uniform[name].baselines[0].value, rel=relative), name
    assert uniform["norm_spread"].value < 1e-12
    assert uniform["cv_dim_directions"].low < 24 < uniform["cv_dim_directions"].high
    assert uniform["cv_directions"].baselines[0].value == cv_uniform(24)
    assert uniform["cv_rows"].baselines[0].value == cv_gaussian(24)


def test_normal_rows_have_the_normal_curve():
    rows = np.random.default_rng(3).standard_normal((1500, 20)) * 7 + 3
    scan = scan_geometry(rows)
    assert scan["cv_dim_rows"].value == pytest.approx(20, rel=0.06)
    assert scan["cv_dim_rows"].low < 20 < scan["cv_dim_rows"].high
    assert scan["cv_rows"].value == pytest.approx(scan["cv_rows"].baselines[1].value, rel=0.04)
    for name in ("norm_mean", "norm_spread", "norm_tail"):
        assert scan[name].value == pytest.approx(scan[name].baselines[0].value, rel=0.05), name


@pytest.mark.parametrize("dim, num_rows, num_simplices", [(16, 400, 4000), (64, 300, 5000), (8, 80, 2000)])
def test_cv_interval_covers_as_often_as_stated(dim, num_rows, num_simplices):
    covered = [0, 0]
    for seed in range(120):
        normal = np.random.default_rng(seed).standard_normal((num_rows, dim))
        for index, (rows, truth) in enumerate(((unit(normal), cv_uniform(dim)), (normal, cv_gaussian(dim)))):
            cv = estimate_cv(rows, num_simplices, 4, seed)
            covered[index] += cv.low <= truth <= cv.high
    # Two-sided binomial range of .999 around .95; what lies above is too wide an interval, which is no error.
    assert min(covered) >= 105, covered


# ---- planted geometry is seen


def test_planted_classes_are_seen(clustered):
    assert clustered["nearest_neighbor_accuracy"].value == 1
    assert clustered["nearest_neighbor_accuracy"].baselines[0].value == pytest.approx(0.1, abs=0.01)
    assert clustered["cosine_gap"].value > 10 * clustered["cosine_gap"].baselines[0].high
    assert clustered["mean_cosine"].low > clustered["mean_cosine"].baselines[0].high
    assert "share a direction" in clustered["mean_cosine"].reading
    assert clustered["isotropy"].value < 0.3
    assert clustered["cv_dim_directions"].high < 12 < 48
    assert "clusters or heavy tails" in clustered["cv_directions"].reading
    assert clustered["anchor_dead_share"].value == 0.5
    assert clustered["anchor_entropy"].value == pytest.approx(math.log(10) / math.log(20), rel=0.01)
    assert clustered["anchor_gini"].value > clustered["anchor_gini"].baselines[0].high
    assert [entry.label for entry in clustered.class_cv] == list("abcdefghij")
    # Noise in a small cap is normal in the 47 dimensions of the tangent plane; on the curve of the whole sphere the
    # same CV would be "in the band", at 16.
    assert np.mean([entry.normal_dim for entry in clustered.class_cv]) == pytest.approx(47, rel=0.1)
    assert np.mean([entry.dim for entry in clustered.class_cv]) == pytest.approx(15, abs=2)


def test_flat_rows_have_the_dimension_of_their_plane():
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((1000, 6)) @ np.linalg.qr(rng.standard_normal((40, 6)))[0].T
    scan = scan_geometry(rows)
    for name, relative in (("participation_ratio", 0.03), ("effective_rank", 0.02), ("cv_dim_rows", 0.06)):
        assert scan[name].value == pytest.approx(6, rel=relative), name
    assert scan["top_10_energy"].value == pytest.approx(1)
    assert scan.curves.eigenvalues[6:].max() < 1e-9


def test_figures_by_their_definitions():
    """Means over all pairs and leave-one-out neighbors, against the N x N matrix."""
    rng = np.random.default_rng(5)
    rows, label = rng.standard_normal((150, 7)) + 0.3, rng.integers(3, size=150)
    scan = scan_geometry(rows, label)
    cosine = unit(rows) @ unit(rows).T
    pairs = ~np.eye(150, dtype=bool)
    same = (label[:, None] == label) & pairs
    assert scan["mean_cosine"].value == pytest.approx(cosine[pairs].mean(), abs=1e-12)
    assert scan["cosine_spread"].value == pytest.approx(cosine[pairs].std(), abs=1e-12)
    assert scan["isotropy"].value == pytest.approx(1 / (7 * (cosine[pairs] ** 2).mean()), rel=1e-12)
    gap = cosine[same].mean() - cosine[pairs & ~same].mean()
    assert scan["cosine_gap"].value == pytest.approx(gap, abs=1e-12)
    nearest = np.where(pairs, cosine, -2).argmax(axis=1)
    assert scan["nearest_neighbor_accuracy"].value == (label[nearest] == label).mean()
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    assert scan["top_5_energy"].value == pytest.approx(singular[:5].sum() / singular.sum(), rel=1e-12)
    assert scan["norm_mean"].value == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-14)
    assert scan.curves.eigenvalues == pytest.approx(singular / 149, rel=1e-9)


def test_wide_rows_have_the_figures_of_their_rotation():
    """More features than rows goes through the other Gram matrix; zero columns change no figure of inner products."""
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((60, 30)) * np.linspace(1, 3, 30) + 1
    narrow = scan_geometry(rows)
    wide = scan_geometry(np.pad(rows, ((0, 0), (0, 50))))
    assert wide.num_constant_columns == 50
    for name in (
        "norm_spread",
        "mean_cosine",
        "participation_ratio",
        "effective_rank",
        "cv_rows",
        "cv_dim_rows",
    ):
        assert wide[name].value == pytest.approx(narrow[name].value, rel=1e-9), name
    assert wide["cv_rows"].baselines[1].value == pytest.approx(narrow["cv_rows"].baselines[1].value, rel=0.1)


def test_real_embeddings_read_as_measured():
    """The bundled table: 52 of 384 dimensions by CV, 99 by participation ratio, both far below random rows."""
    table = load_bundled()
    scan = scan_geometry(table.embeddings, np.array(table.domain_names)[np.asarray(table.domain)])
    assert scan["cv_directions"].value == pytest.approx(0.0947, abs=0.002)
    assert scan["cv_dim_directions"].low == pytest.approx(50.4, abs=1.5)
    assert scan["cv_dim_directions"].high == pytest.approx(54.4, abs=1.5)
    assert scan["participation_ratio"].value == pytest.approx(99.3, abs=0.1)
    assert scan["effective_rank"].value == pytest.approx(187.6, abs=0.1)
    assert scan["nearest_neighbor_accuracy"].value == pytest.approx(0.818, abs=1e-3)
    assert scan["cosine_gap"].value == pytest.approx(0.1256, abs=1e-4)
    assert scan.num_constant_columns == 2
    dims = {entry.label: entry.dim for entry in scan.class_cv}
    assert min(dims, key=dims.get) == "legal" and dims["legal"] == pytest.approx(12.3, abs=0.5)
    assert max(dims, key=dims.get) == "editorial"


# ---- answers


def test_same_seed_same_bits_whatever_the_kind_of_array():
    rows, label = np.random.default_rng(7).standard_normal((200, 6)), np.arange(200) % 3
    first = scan_geometry(rows, label, rows[:8], seed=3)
    for other in (rows.tolist(), torch.from_numpy(rows), np.asfortranarray(rows)):
        again = scan_geometry(other, label, rows[:8], seed=3)
        assert again.measurements == first.measurements
    assert scan_geometry(rows, seed=4)["cv_rows"].value != first["cv_rows"].value


def test_sampled_scan_is_close_to_the_whole(uniform):
    rng = np.random.default_rng(8)
    rows = unit(rng.standard_normal((5000, 24)))
    scan = scan_geometry(rows, max_rows=1000)
    assert (scan.num_rows, scan.num_scanned) == (5000, 1000)
    assert "1,000 of 5,000 rows" in scan.notes[0]
    assert scan["effective_rank"].value == pytest.approx(uniform["effective_rank"].value, rel=0.02)


def test_sentences_hold_the_numbers_and_their_baselines(clustered):
    lines = describe_scan(clustered)
    assert len(lines) == 1 + len(clustered.notes) + len(clustered.measurements)
    assert lines[0] == "1,000 rows of 48 features were scanned with seed 0."
    (accuracy,) = [line for line in lines if line.startswith("nearest neighbor accuracy")]
    assert "shuffled labels: 0.09" in accuracy or "shuffled labels: 0.1" in accuracy
    assert "95 % interval 0.99" in accuracy
    for line, measurement in zip(lines[-len(clustered.measurements) :], clustered.measurements, strict=True):
        assert f"{measurement.value:.4g}" in line
        assert all(baseline.name in line for baseline in measurement.baselines)
        assert line.endswith(".")


def test_every_figure_has_a_baseline_and_a_reading(uniform, clustered):
    for scan in (uniform, clustered):
        for measurement in scan.measurements:
            assert measurement.baselines, measurement.name
            assert all(math.isfinite(baseline.value) for baseline in measurement.baselines), measurement.name
            assert measurement.reading


def test_scan_is_frozen_and_json(clustered):
    with pytest.raises(dataclasses.FrozenInstanceError):
        clustered.seed = 1
    assert json.loads(json.dumps(to_plain(clustered), allow_nan=False))["num_features"] == 48
    with pytest.raises(KeyError, match="expected one of norm_mean"):
        clustered["curvature"]


# ---- degenerate rows


@pytest.mark.parametrize(
    "rows, label",
    [
        (np.ones((6, 3)), None),
        (np.zeros((4, 2)), [0, 0, 1, 1]),
        (np.array([[1.0], [-2.0]]), [0, 1]),
        (np.linspace(-1, 1, 30)[:, None], np.zeros(30)),
        (np.eye(4, 50), range(4)),
        (np.eye(3, 6).repeat(4, axis=0), np.arange(12) % 2),
        (np.random.default_rng(9).standard_normal((9, 200)), [0] * 9),
        (np.random.default_rng(9).standard_normal((60, 2)), np.arange(60) % 3),
        (np.pad(np.ones((50, 5)), ((0, 1), (0, 0))), None),
    ],
    ids=["equal", "zero", "two rows of one feature", "one feature", "orthonormal", "duplicates", "wide", "plane",
         "equal but one"],
)  # fmt: skip
def test_degenerate_rows_get_an_answer_for_every_figure(rows, label):
    scan = scan_geometry(rows, label, anchors=np.eye(rows.shape[1])[:7])
    for measurement in scan.measurements:
        assert measurement.reading
        assert math.isfinite(measurement.value) or "nan" not in measurement.reading, measurement
    assert all("nan" not in line.split() for line in describe_scan(scan))


def test_degenerate_rows_say_why():
    equal = scan_geometry(np.ones((6, 3)))
    assert "all rows are equal" in equal["participation_ratio"].reading
    assert equal.notes == ("5 rows repeat another row", "3 of 3 columns are constant")
    few = scan_geometry(np.random.default_rng(0).standard_normal((4, 9)), [0, 0, 1, 1])
    assert math.isnan(few["cv_rows"].value)
    assert "fewer than 5" in few["cv_rows"].reading
    assert "fewer than 5" in few["cv_dim_rows"].reading
    flat = scan_geometry(np.random.default_rng(0).standard_normal((50, 3)))
    assert "3 dimensions hold no simplex of order 4" in flat["cv_rows"].reading
    assert scan_geometry(np.random.default_rng(0).standard_normal((50, 3)), order=2)["cv_rows"].value > 0
    one = scan_geometry(np.random.default_rng(0).standard_normal((50, 8)), [1] * 50)
    assert "one class" in one["nearest_neighbor_accuracy"].reading
    assert math.isnan(one["cosine_gap"].value)


def test_repeated_rows_count_as_flat_simplices_and_not_as_invalid():
    rows = np.random.default_rng(0).standard_normal((40, 8)).repeat(3, axis=0)
    scan = scan_geometry(rows, np.arange(120) % 2)
    assert scan.num_duplicate_rows == 80
    assert scan["valid_share"].value == 1
    assert scan["degenerate_share"].value == pytest.approx(
        1 - 117 * 114 * 111 * 108 / (119 * 118 * 117 * 116), abs=0.03
    )
    assert "equal rows are each other's nearest" in scan["nearest_neighbor_accuracy"].reading


@pytest.mark.parametrize(
    "rows, options, words",
    [
        (np.ones(5), {}, r"X: expected a non-empty array \[rows, columns\], got shape \(5,\)"),
        (np.ones((0, 3)), {}, r"got shape \(0, 3\)"),
        (np.ones((1, 3)), {}, "expected at least 2 rows, got 1"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), {}, "X: row 1 holds NaN or infinity"),
        (np.array([[1.0, 2.0], [1e200, 0.0]]), {}, "between 1e-100 and 1e100 in size, got 1e.200"),
        (np.ones((3, 2)), {"labels": [0, 1]}, "labels: expected a label for each of 3 rows"),
        (np.ones((3, 2)), {"anchors": np.ones((2, 3))}, "anchors: expected 2 columns, as X has, got 3"),
        (np.ones((3, 2)), {"anchors": np.zeros((2, 2))}, "anchors: row 0 is 0"),
        (np.ones((3, 2)), {"anchors": np.full((2, 2), np.inf)}, "anchors: row 0 holds NaN"),
        (np.ones((3, 2)), {"order": 9}, "order: expected 1 to 8, got 9"),
        (np.ones((3, 2)), {"num_simplices": 3}, "num_simplices: expected at least 100"),
        (np.ones((3, 2)), {"top_k": (0,)}, "top_k"),
        (np.ones((3, 2)), {"max_rows": 1}, "max_rows: expected at least 2"),
    ],
)
def test_bad_input_is_named(rows, options, words):
    with pytest.raises(ValueError, match=words):
        scan_geometry(rows, **options)


def test_bad_row_beyond_the_first_block_is_named(monkeypatch):
    from stratcore.analysis.geometry import _rows

    monkeypatch.setattr(_rows, "_BLOCK", 8)
    rows = np.random.default_rng(0).standard_normal((50, 3))
    rows[37, 1] = np.inf
    for kind in (rows, torch.from_numpy(rows)):
        with pytest.raises(ValueError, match="X: row 37 holds NaN or infinity"):
            scan_geometry(kind, max_rows=10)


def test_dimension_of_a_cv_beyond_the_curve_is_no_number():
    assert math.isnan(sphere_dim(1.5, 4))
    assert sphere_dim(cv_uniform(14), 4) == pytest.approx(14)


@pytest.mark.parametrize(
    "num_rows, dim, power", [(1000, 46, 0.0), (1000, 46, 0.3), (200, 400, 0.0), (60, 8, 0.3)]
)
def test_noise_is_explained_by_its_covariance(num_rows, dim, power):
    """Normal rows are told from their twin in at most 2 of 40 figures: it has the dimension of their law."""
    called = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = take_rows(
            rng.standard_normal((num_rows, dim)) * np.arange(1, dim + 1) ** -power, None, num_rows, rng
        )
        found = cv_measurements(rows, fit_twin(rows.x_ND), 4000, 4, rng)
        called += sum("of this covariance" in measurement.reading for measurement in found)
    assert called <= 2
