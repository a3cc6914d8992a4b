import numpy as np
import pytest

from stratcore.analysis import Resampling


def test_interval_is_the_percentile_interval():
    assert Resampling(level=0.9).interval(np.arange(101.0)) == pytest.approx((5.0, 95.0))


def test_generator_starts_afresh():
    resampling = Resampling(seed=3)
    assert resampling.generator().random() == resampling.generator().random()
