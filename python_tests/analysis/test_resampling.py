import numpy as np
import pytest

from stratcore.analysis import Resampling, mean_interval


def test_interval_is_the_percentile_interval():
    assert Resampling(level=0.9).interval(np.arange(101.0)) == pytest.approx((5.0, 95.0))


def test_generator_starts_afresh():
    resampling = Resampling(seed=3)
    assert resampling.generator().random() == resampling.generator().random()


def test_interval_of_a_mean_is_students():
    found = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    half = 3.182446305284263 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    single = mean_interval(np.array([7.0]))
    assert single.value == 7 and np.isnan(single.low) and np.isnan(single.high)
