"""The NumPy face of the simplex measures against the torch ops. Legend: B simplices, k order, D dimension, N rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from stratcore import array, ops

FIELDS = array.SimplexMeasures._fields


def draw(k: int = 4, dim: int = 6, dtype: type = np.float64, count: int = 9) -> np.ndarray:
    return np.random.default_rng(k).normal(size=(count, k + 1, dim)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k, dim", [(1, 1), (2, 7), (3, 2), (4, 33), (8, 16)])
def test_equals_the_torch_op(k, dim, dtype):
    points = draw(k, dim, dtype)
    for result, wanted in zip(
        array.simplex_measures(points), ops.simplex_measures(torch.from_numpy(points)), strict=True
    ):
        assert type(result) is np.ndarray and result.dtype == dtype
        np.testing.assert_array_equal(result, wanted)
    table, rows = points.reshape(-1, dim), np.random.default_rng(1).integers(0, 9, (2, 5, k + 1))
    through_table = ops.simplex_measures(torch.from_numpy(table), torch.from_numpy(rows))
    for indices in (rows, rows.astype(np.int32), rows.tolist(), rows.astype(np.uint8)):
        for result, wanted in zip(array.simplex_measures(table, indices), through_table, strict=True):
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", range(1, 9))
def test_distances_equal_the_torch_op(k, dtype):
    given = array.simplex_measures(draw(k, k + 2, dtype)).squared_distances
    given[0] *= -1
    results = array.measures_from_distances(given)
    for result, wanted in zip(results, ops.measures_from_distances(torch.from_numpy(given)), strict=True):
        np.testing.assert_array_equal(result, wanted)
    assert results.volume.dtype == dtype and results.euclidean.dtype == bool
    assert results.euclidean.tolist() == [False] + [True] * 8


def test_outputs_shapes_and_memory():
    points = draw()
    everything = array.simplex_measures(points)
    for name in FIELDS:
        alone = array.simplex_measures(points, outputs=name)
        np.testing.assert_array_equal(getattr(alone, name), getattr(everything, name))
        assert [getattr(alone, other) for other in FIELDS if other != name] == [None] * 4
    shaped = array.simplex_measures(np.asfortranarray(points.reshape(3, 3, 5, 6)))
    assert shaped.volume.shape == (3, 3) and shaped.squared_distances.shape == (3, 3, 10)
    np.testing.assert_array_equal(shaped.volume.ravel(), everything.volume)
    np.testing.assert_array_equal(array.simplex_measures(torch.from_numpy(points)).volume, everything.volume)
    assert array.simplex_measures(points[2]).volume == everything.volume[2]
    empty = array.simplex_measures(points[:0])
    assert empty.volume.shape == (0,) and empty.squared_distances.shape == (0, 10)
    assert array.measures_from_distances(np.ones((2, 0, 3))).volume.shape == (2, 0)


def test_degenerate_and_nan():
    points = draw()
    points[1, 4] = points[1, 0]
    points[2, 3, 3] = np.nan
    measures = array.simplex_measures(points)
    assert measures.volume[1] == 0 and measures.log_volume[1] == -np.inf and np.isnan(measures.volume[2])
    assert np.isfinite(np.delete(measures.log_volume, [1, 2])).all()


REJECTED = {
    "outputs": (lambda: (draw(), None, ("area",)), "expected outputs among volume, .*, got 'area'"),
    "vertices": (lambda: (draw()[:, :1], None, FIELDS), "expected 2 to 9 vertices a simplex, got 1"),
    "vector": (
        lambda: (draw()[0, 0], None, FIELDS),
        r"expected points of shape \[..., k \+ 1, D\], got \[6\]",
    ),
    "table": (lambda: (draw(), [[0, 1]], FIELDS), r"expected points \[N, D\] with indices"),
    "index": (lambda: (draw()[0], [[0, 5]], FIELDS), r"expected indices in \[0, 5\), got 5"),
    "negative": (lambda: (draw()[0], [[0, -1]], FIELDS), r"expected indices in \[0, 5\), got -1"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejects(name):
    make, message = REJECTED[name]
    points, indices, outputs = make()
    with pytest.raises(ValueError, match=f"^cayley_menger: {message}"):
        array.simplex_measures(points, indices, outputs=outputs)


def test_rejects_types_and_numbers_of_distances():
    with pytest.raises(
        TypeError, match="^cayley_menger: expected points of dtype float64 or float32, got int64"
    ):
        array.simplex_measures(np.ones((3, 2), int))
    with pytest.raises(TypeError, match="^cayley_menger: expected indices of integers, got float64"):
        array.simplex_measures(draw()[0], [[0.0, 1.0]])
    for k, wanted in ((None, r"k \(k \+ 1\) / 2 with k in \[1, 8\]"), (2, r"2 \(2 \+ 1\) / 2")):
        with pytest.raises(ValueError, match=rf"^cayley_menger_distances: .* P = {wanted}, got \[4, 5\]"):
            array.measures_from_distances(np.ones((4, 5)), k)


def test_works_where_torch_is_not_installed():
    code = """
import sys
sys.modules["torch"] = None
from stratcore import array
print(array.simplex_measures([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]]).volume)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "6.0", finished.stderr
