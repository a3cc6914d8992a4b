"""Legend: N rows, d features, C clusters."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from stratcore.analysis.subspaces import subspace_clusters


def planes(
    dims: tuple[int, ...] = (2, 3, 4), per: int = 80, ambient: int = 24, noise: float = 0.01, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Random subspaces through one center, rows on their unit spheres, in random order."""
    rng = np.random.default_rng(seed)
    parts = []
    for dim in dims:
        basis = np.linalg.qr(rng.standard_normal((ambient, dim)))[0]
        local = rng.standard_normal((per, dim))
        parts.append((local / np.linalg.norm(local, axis=1, keepdims=True)) @ basis.T)
    x = np.concatenate(parts) + noise * rng.standard_normal((per * len(dims), ambient))
    order = rng.permutation(len(x))
    return x[order].astype(np.float32), np.repeat(np.arange(len(dims)), per)[order]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subspaces_that_share_a_center_come_apart(seed):
    x, truth = planes(seed=seed)
    rows, cluster = subspace_clusters(x, 3, seed=seed)
    assert adjusted_rand_score(truth[rows], cluster) > 0.95
    assert len(rows) == len(cluster) >= 0.9 * len(x)


def test_the_sign_and_the_length_of_a_row_do_not_matter():
    x, _ = planes()
    factors = np.random.default_rng(5).choice([-1.0, 1.0, 0.25, -8.0], size=(len(x), 1)).astype(np.float32)
    rows, cluster = subspace_clusters(x, 3)
    rows_scaled, cluster_scaled = subspace_clusters(factors * x, 3)
    assert np.array_equal(rows, rows_scaled)
    assert adjusted_rand_score(cluster, cluster_scaled) == 1.0


def test_x_and_minus_x_are_one_line():
    """Two far caps on each of three lines are three clusters, not six."""
    rng = np.random.default_rng(3)
    line = np.repeat(np.arange(3), 40)
    x = rng.choice([-1.0, 1.0], 120)[:, None] * np.eye(12)[line] + 0.05 * rng.standard_normal((120, 12))
    rows, cluster = subspace_clusters(x.astype(np.float32), 3)
    assert len(rows) == 120 and adjusted_rand_score(line, cluster) == 1.0


def test_one_call_like_another():
    x, _ = planes()
    np.random.seed(1)
    first = subspace_clusters(x, 3, seed=4)
    np.random.seed(2)
    second = subspace_clusters(x, 3, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_many_rows_are_thinned_to_max_rows():
    x, truth = planes(per=200)
    rows, cluster = subspace_clusters(x, 3, max_rows=180)
    assert 162 <= len(rows) <= 180 and np.array_equal(rows, np.unique(rows)) and rows.max() < 600
    assert adjusted_rand_score(truth[rows], cluster) > 0.95
    other, _ = subspace_clusters(x, 3, max_rows=180, seed=1)
    assert not np.array_equal(rows, other)


@pytest.mark.parametrize("count", [3, 7, 40])
def test_every_cluster_has_rows_even_without_structure(count):
    x = np.random.default_rng(count).standard_normal((count, 10)).astype(np.float32)
    rows, cluster = subspace_clusters(x, 3)
    assert np.bincount(cluster, minlength=3).min() >= 1 and cluster.max() == 2 and len(rows) == len(cluster)


def test_a_single_cluster():
    x, _ = planes()
    assert not subspace_clusters(x, 1)[1].any()


def test_too_few_rows_is_one_clear_line():
    with pytest.raises(ValueError, match="subspace_clusters: expected at least 7 rows, got 6"):
        subspace_clusters(np.ones((6, 4)), 7)
