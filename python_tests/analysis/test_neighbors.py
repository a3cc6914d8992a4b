"""Nearest neighbors against a full search in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.analysis import nearest_neighbors


def full_search(x, k, period=None):
    """Distances from differences of all pairs; of equal ones the lower index first."""
    distances, indices = [], []
    for row in range(len(x)):
        gap = np.abs(x - x[row])
        if period is not None:
            gap = np.mod(gap, period)
            gap = np.minimum(gap, period - gap)
        distance = np.sqrt((gap**2).sum(axis=1))
        distance[row] = np.inf
        order = np.argsort(distance, kind="stable")[:k]
        distances.append(distance[order])
        indices.append(order)
    return np.array(distances), np.array(indices)


def assert_equal(found, expected, queries=slice(None)):
    np.testing.assert_allclose(found.distances, expected[0][queries], rtol=1e-12, atol=1e-13)
    assert (found.indices == expected[1][queries]).all()


@pytest.mark.parametrize("shape", [(2, 1), (40, 1), (301, 3), (257, 64), (130, 801)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_a_full_search(shape, offset):
    x = np.random.default_rng(0).normal(size=shape) + offset
    k = min(20, shape[0] - 1)
    assert_equal(nearest_neighbors(x, k), full_search(x, k))
    assert_equal(nearest_neighbors(x, k, block_rows=7), full_search(x, k))


def test_far_clusters_of_near_points():
    """Where float32 products know nothing of the distances within a cluster."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 12)) * 1e-3 + 1e3 * rng.integers(0, 2, size=(300, 1))
    assert_equal(nearest_neighbors(x, 15), full_search(x, 15))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_any_unit_of_length(scale):
    x = np.random.default_rng(8).normal(size=(120, 9))
    found = nearest_neighbors(x * scale, 11)
    assert_equal(found, full_search(x * scale, 11))
    assert (found.indices == full_search(x, 11)[1]).all()


def test_copies_are_neighbors_at_distance_0_and_ties_go_to_the_lower_index():
    x = np.repeat(np.random.default_rng(2).normal(size=(12, 5)), 25, axis=0)
    found = nearest_neighbors(x, 30)
    assert_equal(found, full_search(x, 30))
    assert (found.distances[:, :24] == 0).all()
    assert list(found.indices[3, :4]) == [0, 1, 2, 4]


def test_a_lattice_is_all_ties():
    x = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    assert_equal(nearest_neighbors(x, 10), full_search(x, 10))
    assert_equal(nearest_neighbors(x, 10, period=12), full_search(x, 10, 12))


@pytest.mark.parametrize("period", [1.0, np.array([1.0, 2.0, 0.7])])
def test_torus(period):
    x = np.random.default_rng(3).random((200, 3)) * period
    expected = full_search(x, 12, period)
    assert_equal(nearest_neighbors(x, 12, period=period), expected)
    shifted = x + np.array([3, -2, 5]) * period  # other representatives of the same points
    found = nearest_neighbors(shifted, 12, period=period)
    np.testing.assert_allclose(found.distances, expected[0], atol=1e-12)


def test_queries_are_the_rows_of_a_full_answer():
    x = np.random.default_rng(4).normal(size=(150, 6))
    queries = np.array([149, 3, 3, 70])
    assert_equal(nearest_neighbors(x, 9, queries=queries), full_search(x, 9), queries)
    assert nearest_neighbors(x, 9, queries=np.array([], dtype=int)).distances.shape == (0, 9)


def test_precision_of_the_process_is_left_as_it_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        x = np.random.default_rng(5).normal(size=(200, 64))
        assert_equal(nearest_neighbors(x, 5), full_search(x, 5))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_torch_rows_of_any_precision():
    x = torch.randn(100, 7, dtype=torch.bfloat16)
    assert_equal(nearest_neighbors(x, 5), full_search(x.double().numpy(), 5))


@pytest.mark.cuda
@pytest.mark.parametrize("period", [None, 1.0])
def test_a_gpu_gives_the_same(period):
    x = np.random.default_rng(6).random((3000, 40 if period is None else 4))
    on_cpu = nearest_neighbors(x, 50, period=period)
    on_gpu = nearest_neighbors(x, 50, period=period, device="cuda")
    assert_equal(on_gpu, (on_cpu.distances, on_cpu.indices))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: nearest_neighbors(x, 0), "k: expected 1 to 9 neighbors of 10 rows, got 0"),
        (lambda x: nearest_neighbors(x, 10), "k: expected 1 to 9 neighbors of 10 rows, got 10"),
        (lambda x: nearest_neighbors(x[:1], 1), "k: expected 1 to 0"),
        (lambda x: nearest_neighbors(x + np.nan, 3), "row 0 holds NaN"),
        (lambda x: nearest_neighbors(x, 3, queries=[0.5]), "queries: expected row indices"),
        (
            lambda x: nearest_neighbors(x, 3, queries=[10]),
            "queries: expected indices from 0 to 9, got 10 to 10",
        ),
        (lambda x: nearest_neighbors(x, 3, period=0), "period: expected finite numbers > 0, got 0"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.random.default_rng(0).normal(size=(10, 2)))


def test_rows_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("stratcore.analysis.neighbors._CPU_BLOCK_BYTES", 1000)
    with pytest.raises(
        ValueError, match="distances of one query to 100 rows need 2,400 bytes of 1,000 on cpu"
    ):
        nearest_neighbors(np.random.default_rng(0).normal(size=(100, 2)), 3)
