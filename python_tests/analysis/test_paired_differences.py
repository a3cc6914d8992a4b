from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from stratcore.analysis.paired_differences import paired_difference


def test_against_the_definition_and_scipy() -> None:
    values = np.random.default_rng(0).standard_normal(8) + 0.7
    found = paired_difference(values)
    means = [abs(np.mean(np.array(signs) * values)) for signs in itertools.product((-1, 1), repeat=8)]
    assert found.p_value == np.mean(np.array(means) >= abs(values.mean()) - 1e-15)
    peer = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert found.p_value == pytest.approx(peer.pvalue)
    bca = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(0))
    assert (found.low, found.high) == (bca.confidence_interval.low, bca.confidence_interval.high)
    assert found.value == pytest.approx(values.mean()) and found.num_pairs == 8


def test_all_of_one_sign_gives_the_least_p() -> None:
    assert paired_difference([0.5, 0.1, 0.3, 0.2]).p_value == 2 / 16
    assert paired_difference([0.5, 0.1, 0.3, -0.2]).p_value > 2 / 16


def test_equal_differences_and_single_pairs() -> None:
    same = paired_difference([0.25] * 5)
    assert (same.value, same.low, same.high, same.p_value) == (0.25, 0.25, 0.25, 2 / 32)
    one = paired_difference([0.25])
    assert (one.low, one.high, one.p_value) == (None, None, 1.0)
    none = paired_difference([0.0] * 6)
    assert (none.value, none.low, none.p_value) == (0.0, 0.0, 1.0)


def test_size_of_the_test_and_coverage_of_the_interval() -> None:
    rng = np.random.default_rng(1)
    found = [paired_difference(rng.standard_normal(12), draws=400, seed=i) for i in range(400)]
    assert 0.02 < np.mean([f.p_value <= 0.05 for f in found]) < 0.08
    assert 0.88 < np.mean([f.low <= 0 <= f.high for f in found]) < 0.97


def test_many_pairs_draw_signs() -> None:
    values = np.random.default_rng(2).standard_normal(40) + 0.35
    found = paired_difference(values)
    assert found == paired_difference(values)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert paired_difference(np.ones(40)).p_value >= 2**-16


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ([], 0.95, "at least one number"),
        ([1.0, float("nan")], 0.95, "finite numbers, got nan"),
        ([1.0, 2.0], 1.0, "level: expected a share"),
    ],
)
def test_bad_arguments(values: list[float], level: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_difference(values, level)
