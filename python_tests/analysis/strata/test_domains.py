"""Legend: G domains, E strata."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from stratcore.analysis import Resampling, domain_information, domain_table

FEW = Resampling(num_resamples=300)


def test_shares_counts_and_intervals_of_each_stratum():
    labels = np.repeat([0, 1, -1], [10, 30, 5])
    domain = np.r_[np.repeat(["a", "b"], [8, 2]), np.repeat(["a", "b"], [3, 27]), ["a"] * 5]
    found = domain_table(labels, domain, FEW)
    assert found.domains == ["a", "b"] and found.overall == pytest.approx([16 / 45, 29 / 45])
    noise, zero, one = found.strata
    assert [each.stratum for each in found.strata] == ["-1", "0", "1"]
    assert (zero.num_rows, zero.counts, zero.purity) == (10, [8, 2], 0.8)
    assert one.shares[1].value == pytest.approx(0.9) and noise.shares[1].value == 0
    low, high = proportion_confint(27, 30, method="wilson")
    assert (one.shares[1].low, one.shares[1].high) == pytest.approx((low, high))
    assert noise.shares[0].high == pytest.approx(1) and noise.shares[0].low > 0.5


def test_purity_stands_beside_that_of_shuffled_labels():
    rng = np.random.default_rng(0)
    labels, domain = np.repeat([0, 1], [300, 6]), rng.integers(3, size=306)
    large, small = domain_table(labels, domain, FEW).strata
    shuffled = [np.bincount(rng.permutation(domain)[300:]).max() / 6 for _ in range(3000)]
    assert (
        small.purity_floor == pytest.approx(np.quantile(shuffled, 0.95), abs=0.17)
        and small.purity_floor >= 0.6
    )
    assert large.purity_floor < 0.45


def test_information_of_a_copy_is_the_entropy():
    domain = np.repeat(np.arange(4), 50)
    found = domain_information(domain, domain, resampling=FEW)
    assert found.uncorrected_bits == found.domain_entropy == found.label_entropy == pytest.approx(2)
    # Miller-Madow adds (G - 1) / (2 N ln 2) to each of the three entropies, one of them taken away.
    assert found.bits.value == pytest.approx(2 + 3 / (2 * 200 * np.log(2)))
    assert found.bits.p_value == pytest.approx(1 / 301) and found.within_length is None


def test_unrelated_labels_have_no_bits():
    values = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found = domain_information(rng.integers(5, size=150), rng.integers(6, size=150), resampling=FEW)
        values.append(found.bits.value)
        assert found.uncorrected_bits > found.bits.value
        assert abs(found.bits.floor) < 0.02
    assert np.mean(values) == pytest.approx(0, abs=0.02)


def test_interval_holds_the_true_information():
    p = np.array([[0.2, 0.05, 0.05], [0.05, 0.2, 0.05], [0.1, 0.1, 0.2]])
    q = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    truth, hits, rng = (p * np.log2(p / q)).sum(), 0, np.random.default_rng(0)
    for _ in range(150):
        cell = rng.choice(9, size=200, p=p.ravel())
        bits = domain_information(cell % 3, cell // 3, resampling=FEW).bits
        hits += bits.low <= truth <= bits.high
    assert 0.88 <= hits / 150 <= 0.99


def test_information_that_is_all_length_vanishes_at_equal_length():
    rng = np.random.default_rng(0)
    length = rng.uniform(0, 100, 3000)
    domain, label = (np.digitize(length + 10 * rng.standard_normal(3000), [33, 66]) for _ in range(2))
    found = domain_information(label, domain, length=length, num_bins=30, resampling=FEW)
    assert found.bits.value > 0.5 and found.within_length.value < 0.03
    assert found.within_length.value < found.within_length.floor_high + 0.02
    assert found.num_rows == 3000 and 2000 < found.num_rows_within < 3000  # bins of one domain say nothing


def test_bins_of_a_single_domain_are_left_out():
    domain, length = np.repeat([0, 0, 1], 20), np.repeat([1.0, 2.0, 2.0], 20)
    found = domain_information(domain, domain, length=length, num_bins=3, resampling=FEW)
    assert found.num_rows_within == 40 and found.within_length.value > 0.9
    apart = domain_information(domain, domain, length=domain.astype(float), resampling=FEW)
    assert apart.within_length is None and apart.num_rows_within == 0


def test_one_stratum_tells_nothing():
    found = domain_information(np.zeros(40), np.repeat(["a", "b"], 20), resampling=FEW)
    assert found.bits.value == found.uncorrected_bits == 0 and found.bits.p_value == 1


def test_rejects():
    with pytest.raises(ValueError, match="assign: expected a label for each of 3 rows"):
        domain_table([0, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="values: expected one finite number a row"):
        domain_information([0, 1], ["a", "b"], length=[1.0, np.nan])
