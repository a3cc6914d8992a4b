from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from stratcore.analysis import fit_strata, stability
from stratcore.analysis.strata.stability import _pairwise_interval, subsample_agreement


def _blobs(count=4, per=40, spread=1.0):
    rng = np.random.default_rng(0)
    return np.repeat(np.eye(6)[:count] * 20, per, axis=0) + spread * rng.standard_normal((count * per, 6))


def test_distant_blobs_are_found_again_and_a_cloud_is_not():
    clear = stability(_blobs(), "kmeans", 4, seeds=4, pairs=4)
    assert (clear.seeds.value, clear.seeds.low, clear.seeds.high) == pytest.approx((1, 1, 1))
    assert clear.subsamples.value == pytest.approx(1)
    cloud = stability(np.random.default_rng(0).standard_normal((160, 6)), "kmeans", 4, seeds=4, pairs=4)
    assert cloud.subsamples.value < 0.8 and cloud.subsamples.high < 1


def test_the_mean_runs_over_all_pairs_of_seeds():
    x = np.random.default_rng(0).standard_normal((120, 3))
    found = stability(x, "spherical_kmeans", 5, seeds=4, pairs=2)
    labels = [fit_strata(x, "spherical_kmeans", 5, seed=seed).labels for seed in range(4)]
    pairs = [adjusted_rand_score(labels[a], labels[b]) for a in range(4) for b in range(a)]
    assert found.seeds.value == pytest.approx(np.mean(pairs), abs=1e-12)
    assert found.seeds.low < found.seeds.value < found.seeds.high


def test_jackknife_interval_covers_the_mean_of_pairs():
    """Pairs of one seed go together: scores h(u_a, u_b) = (u_a + u_b) / 2 have the mean of u and its error."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        u = rng.standard_normal(10)
        found = _pairwise_interval((u[:, None] + u) / 2, 0.95)
        assert found.value == pytest.approx(u.mean(), abs=1e-12)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_no_interval_reaches_beyond_full_agreement():
    scores = np.array([[1, 0.98, 0.6], [0.98, 1, 0.62], [0.6, 0.62, 1]])
    found = _pairwise_interval(scores, 0.95)
    assert found.value == pytest.approx(2.2 / 3)
    assert found.low < found.value < found.high == 1.0


def test_a_method_without_seed_agrees_with_itself():
    found = stability(_blobs(spread=8.0), "agglomerative", 4, seeds=3, pairs=3)
    assert found.seeds.value == 1 and found.subsamples.value < 0.95


def test_parts_share_rows_and_depend_on_the_seed():
    x = np.random.default_rng(0).standard_normal((100, 3))
    first, again, other = (subsample_agreement(x, "kmeans", 3, pairs=3, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any() and first.shape == (3,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "given"}, "method: labels that are given cannot be found again"),
        ({"seeds": 1}, "seeds, pairs, share: expected >= 2"),
        ({"share": 0.5}, "seeds, pairs, share: expected >= 2"),
        ({"num_strata": 200}, r"num_strata: expected 1 to 160 \(the rows\), got 200"),
    ],
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=words):
        stability(_blobs(), **{"method": "kmeans", "num_strata": 4, **options})
