"""The search by blocks and products gives what a search over all pairs in float64 gives, ties included.

Legend: N rows, Q queries, D features, k neighbors.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.analysis import nearest_neighbors
from stratcore.analysis import neighbors as module


def brute_force(x_ND, k, queries=None, period=None):
    """All pairs by differences; a query is left out by its index, never by its distance."""
    x_ND = np.asarray(x_ND, dtype=np.float64)
    queries = np.arange(len(x_ND)) if queries is None else np.asarray(queries)
    distances, indices = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    for place, query in enumerate(queries):
        difference_ND = x_ND - x_ND[query]
        if period is not None:
            difference_ND = difference_ND - period * np.round(difference_ND / period)
        distance_N = np.sqrt((difference_ND**2).sum(axis=1))
        distance_N[query] = np.inf
        order = np.argsort(distance_N, kind="stable")[:k]
        distances[place], indices[place] = distance_N[order], order
    return distances, indices


def check(found, expected):
    np.testing.assert_array_equal(found.indices, expected[1])
    np.testing.assert_allclose(found.distances, expected[0], rtol=1e-14, atol=0)
    assert found.distances.dtype == np.float64 and found.indices.dtype == np.int64
    assert (np.diff(found.distances, axis=1) >= 0).all()


@pytest.mark.parametrize(
    "shape, k", [((301, 1), 7), ((523, 2), 100), ((257, 17), 256), ((401, 800), 33), ((2, 3), 1)]
)
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equals_a_search_over_all_pairs(shape, k, offset, dtype):
    x_ND = (np.random.default_rng(1).standard_normal(shape) + offset).astype(dtype)
    check(nearest_neighbors(x_ND, k), brute_force(x_ND, k))
    check(nearest_neighbors(torch.from_numpy(x_ND), k, block_rows=17), brute_force(x_ND, k))


def test_equal_distances_stand_in_the_order_of_their_index():
    rng = np.random.default_rng(2)
    grid_ND = rng.integers(0, 5, size=(700, 3)).astype(float)  # each place of 125 about six times
    check(nearest_neighbors(grid_ND, 40), brute_force(grid_ND, 40))
    check(nearest_neighbors(grid_ND + 1e4, 40), brute_force(grid_ND, 40))
    copies_ND = np.repeat(rng.standard_normal((3, 50)), 90, axis=0)
    found = nearest_neighbors(copies_ND, 60)
    check(found, brute_force(copies_ND, 60))
    assert not found.distances.any()
    assert not (found.indices == np.arange(270)[:, None]).any()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_any_unit_of_length(scale):
    x_ND = np.random.default_rng(3).standard_normal((120, 5))
    expected = brute_force(x_ND, 9)
    found = nearest_neighbors(x_ND * scale, 9)
    np.testing.assert_array_equal(found.indices, expected[1])
    np.testing.assert_allclose(found.distances, expected[0] * scale, rtol=1e-13)


def test_tight_clusters_far_apart_are_settled_in_float64(monkeypatch):
    """Distances of 1e-6 under an offset of 1e3 of each cluster from the mean: far below float32."""
    rng = np.random.default_rng(4)
    x_ND = np.repeat([[1e3], [-1e3]], 200, axis=0) + 1e-6 * rng.standard_normal((400, 6))
    tried = []
    by_products = module._Search.by_products
    monkeypatch.setattr(
        module._Search,
        "by_products",
        lambda self, q, dtype: tried.append(dtype) or by_products(self, q, dtype),
    )
    check(nearest_neighbors(x_ND, 12), brute_force(x_ND, 12))
    assert tried == [torch.float32, torch.float64]


def test_the_bound_is_needed_and_not_wasteful(monkeypatch):
    """Without the proof the same rows get wrong neighbors; on ordinary rows no query needs a second search."""
    rng = np.random.default_rng(5)
    tight_ND = np.repeat([[1e3], [-1e3]], 200, axis=0) + 1e-6 * rng.standard_normal((400, 6))
    plain_ND = rng.standard_normal((2000, 64))
    search = module._Search(torch.from_numpy(plain_ND), 50, None)
    assert search.by_products(torch.arange(2000), torch.float32)[2].all()
    monkeypatch.setattr(
        module._Search, "certify", lambda self, left_out_B, *_: torch.ones_like(left_out_B) > 0
    )
    with pytest.raises(AssertionError):
        check(nearest_neighbors(tight_ND, 12), brute_force(tight_ND, 12))


def test_the_error_of_the_product_keeps_below_its_bound():
    """Keys in float32 against the same in float64, for rows far from the mean and near it."""
    rng = np.random.default_rng(6)
    x_ND = rng.standard_normal((400, 300)) * np.geomspace(1e-3, 1, 400)[:, None]
    search = module._Search(torch.from_numpy(x_ND), 20, None)
    y = search.centered_ND.float()
    exact = y.double().square().sum(1) - 2 * y.double() @ y.double().T
    rounded = torch.addmm(y.double().square().sum(1).float(), y, y.T, alpha=-2).double()
    norm = y.double().norm(dim=1)
    growth = (300 + 6) * 2.0**-24
    bound = growth * (norm**2 + 2 * norm[:, None] * norm)
    assert ((rounded - exact).abs() <= bound).all()


def test_reduced_precision_of_the_process_changes_nothing(monkeypatch):
    x_ND = torch.randn(600, 40) + 30
    expected = nearest_neighbors(x_ND, 20)
    seen, addmm = [], torch.addmm

    def watched(*factors, **options):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return addmm(*factors, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nearest_neighbors(x_ND, 20)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False)]
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)


def test_queries_are_rows_and_not_their_own_neighbors():
    x_ND = np.random.default_rng(7).standard_normal((300, 4))
    x_ND[250] = x_ND[3]
    queries = np.array([250, 3, 3, 0])
    found = nearest_neighbors(x_ND, 5, queries=queries)
    check(found, brute_force(x_ND, 5, queries))
    assert found.indices[0, 0] == 3 and found.indices[1, 0] == 250 and found.distances[0, 0] == 0
    np.testing.assert_array_equal(found.indices[1], found.indices[2])
    assert nearest_neighbors(x_ND, 5, queries=np.array([], dtype=int)).distances.shape == (0, 5)


@pytest.mark.parametrize("period", [1.0, [1.0, 2.5, 0.5]])
def test_intrinsic_distance_of_a_flat_torus(period):
    """Any representative of a point is that point."""
    rng = np.random.default_rng(8)
    x_ND = rng.random((500, 3)) * np.asarray(period)
    expected = brute_force(x_ND, 30, period=np.asarray(period))
    check(nearest_neighbors(x_ND, 30, period=period, block_rows=64), expected)
    around = x_ND + np.asarray(period) * rng.integers(-3, 4, size=(500, 3))
    moved = nearest_neighbors(around, 30, period=period, queries=[4, 499])
    np.testing.assert_array_equal(moved.indices, expected[1][[4, 499]])
    np.testing.assert_allclose(moved.distances, expected[0][[4, 499]], rtol=1e-9)
    corners = np.array([[0.01] * 3, [0.99] * 3, [0.5] * 3])
    assert nearest_neighbors(corners, 1, period=1.0).distances[0, 0] == pytest.approx(0.02 * np.sqrt(3))


@pytest.mark.parametrize(
    "x, options, words",
    [
        (np.zeros((4, 2)), {"k": 4}, "k: expected 1 to 3 neighbors of 4 rows, got 4"),
        (np.zeros((4, 2)), {"k": 0}, "got 0"),
        (np.zeros((4, 2)), {"k": True}, "got True"),
        (np.zeros((4, 2)), {"k": 1.5}, "got 1.5"),
        (np.zeros((0, 2)), {"k": 1}, r"non-empty array \[rows, columns\], got shape \(0, 2\)"),
        (np.zeros(4), {"k": 1}, r"got shape \(4,\)"),
        (np.array([[0.0], [np.nan], [np.inf]]), {"k": 1}, "X: row 1 holds NaN or infinity"),
        (torch.zeros(4, 2, dtype=torch.complex64), {"k": 1}, "got complex ones"),
        (np.zeros((4, 2)), {"k": 1, "queries": [0, 4]}, "queries: expected indices from 0 to 3, got 0 to 4"),
        (np.zeros((4, 2)), {"k": 1, "queries": [0.5]}, "queries: expected row indices, got float64"),
        (np.zeros((4, 2)), {"k": 1, "queries": [[0]]}, r"of shape \(1, 1\)"),
        (np.zeros((4, 2)), {"k": 1, "period": [1.0, 0.0]}, "period: expected finite numbers > 0"),
        (np.zeros((4, 2)), {"k": 1, "period": [1.0] * 3}, "one for each of 2 columns"),
        (np.zeros((4, 2)), {"k": 1, "block_rows": 0}, "block_rows: expected at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_calls(x, options, words):
    with pytest.raises(ValueError, match=words):
        nearest_neighbors(x, **options)


def test_memory_is_measured_first(monkeypatch):
    x_ND = np.random.default_rng(9).standard_normal((1000, 3))
    monkeypatch.setattr(module, "free_memory", lambda device: 10_000)
    with pytest.raises(
        ValueError, match="X: one query among 1,000 rows needs 16,000 bytes, 10,000 are free on cpu"
    ):
        nearest_neighbors(x_ND, 5)
    monkeypatch.setattr(module, "free_memory", lambda device: 40_000)
    check(nearest_neighbors(x_ND, 5), brute_force(x_ND, 5))


def test_never_a_matrix_of_all_pairs(monkeypatch):
    largest = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **o: largest.append(addmm(*a, **o)) or largest[-1])
    nearest_neighbors(np.random.default_rng(10).standard_normal((900, 3)), 5, block_rows=100)
    assert len(largest) == 9 and max(key.numel() for key in largest) == 100 * 900


def test_free_memory_is_a_sensible_number():
    assert 1 << 20 < module.free_memory(torch.device("cpu")) < 1 << 50


def test_torch_rows_of_any_precision():
    x_ND = torch.randn(100, 7, dtype=torch.bfloat16)
    check(nearest_neighbors(x_ND, 5), brute_force(x_ND.double().numpy(), 5))


@pytest.mark.cuda
@pytest.mark.parametrize("shape, k", [((3001, 5), 64), ((2050, 768), 200)])
def test_the_gpu_finds_what_the_cpu_finds(shape, k):
    x_ND = torch.randn(shape, dtype=torch.float64) + 100
    x_ND[7] = x_ND[1234]
    on_cpu, on_gpu = nearest_neighbors(x_ND, k), nearest_neighbors(x_ND.cuda(), k)
    np.testing.assert_array_equal(on_gpu.indices, on_cpu.indices)
    np.testing.assert_allclose(on_gpu.distances, on_cpu.distances, rtol=1e-14)
    again = nearest_neighbors(x_ND.numpy(), k, device="auto", block_rows=333)
    np.testing.assert_array_equal(again.distances, on_gpu.distances)


@pytest.mark.cuda
def test_ties_and_tori_on_the_gpu():
    grid_ND = torch.randint(0, 5, (1500, 3)).double()
    np.testing.assert_array_equal(
        nearest_neighbors(grid_ND.cuda(), 50).indices, nearest_neighbors(grid_ND, 50).indices
    )
    torus_ND = torch.rand(1500, 2, dtype=torch.float64)
    options = {"period": 1.0, "queries": np.arange(0, 1500, 7)}
    np.testing.assert_array_equal(
        nearest_neighbors(torus_ND.cuda(), 50, **options).indices,
        nearest_neighbors(torus_ND, 50, **options).indices,
    )
