import numpy as np
import pytest

from stratcore.analysis import (
    assignment_histogram,
    gate_statistics,
    mean_gate,
    sample_entropy,
    weighted_sparsity,
)

LEVELS = [8, 12, 16, 20, 24, 28, 32]


def test_uniform_gate_has_sparsity_exactly_twenty_and_says_nothing():
    p = np.full((30, 7), 1 / 7)
    strata = np.repeat([0, 1, 2], 10)
    assert [stratum.weighted_sparsity for stratum in weighted_sparsity(p, LEVELS, strata)] == [20.0] * 3
    found = gate_statistics(p)
    assert found.entropy_per_sample == pytest.approx(1)
    assert found.entropy_of_mean == pytest.approx(1)
    assert found.mutual_information_nats == pytest.approx(0, abs=1e-12)
    assert found.effective_experts == pytest.approx(7)
    assert found.load_cv == pytest.approx(0, abs=1e-12)


def test_balanced_hard_gate_has_the_most_mutual_information():
    found = gate_statistics(np.eye(7))
    assert (found.entropy_per_sample, found.entropy_of_mean) == pytest.approx((0, 1))
    assert found.mutual_information_nats == pytest.approx(np.log(7))
    assert found.mutual_information_fraction == pytest.approx(1)


def test_collapsed_gate_uses_one_expert():
    found = gate_statistics(np.tile([0.0, 1.0, 0.0, 0.0], (5, 1)))
    assert found.effective_experts == pytest.approx(1)
    assert found.mutual_information_nats == 0
    assert found.load == [0, 1, 0, 0]
    assert found.load_cv == pytest.approx(np.sqrt(3))


def test_information_is_the_difference_of_the_entropies():
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=200)
    found = gate_statistics(p)
    difference = found.entropy_of_mean - found.entropy_per_sample
    assert found.mutual_information_fraction == pytest.approx(difference, abs=1e-12)
    assert found.mutual_information_nats == pytest.approx(difference * np.log(5), abs=1e-12)
    kl = (p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()
    assert found.mutual_information_nats == pytest.approx(kl, abs=1e-12)
    assert sample_entropy(p).mean() == pytest.approx(found.entropy_per_sample)


def test_weighted_sparsity_of_each_stratum():
    first, second = weighted_sparsity(np.eye(7)[[0, 0, 6, 5]], LEVELS, ["a", "a", "b", "b"])
    assert (first.stratum, first.num_rows, first.weighted_sparsity) == ("a", 2, 8.0)
    assert second.weighted_sparsity == 30.0


def test_histogram_keeps_experts_without_rows():
    found = assignment_histogram([0, 2, 2, 0], ["x", "x", "x", "y"], 4)
    assert found.groups == ["x", "y"]
    assert found.counts == [[1, 0, 2, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(found.shares, [[1 / 3, 0, 2 / 3, 0], [1, 0, 0, 0]])


def test_mean_gate_by_group():
    means, names = mean_gate([[1.0, 0], [0, 1], [0.5, 0.5]], ["b", "b", "a"])
    assert names == ["a", "b"]
    assert means.tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gate_statistics([[0.5, 0.5], [0.9, 0.9]]), "row 1 is no distribution, its sum is 1.8"),
        (lambda: gate_statistics([[1.5, -0.5]]), "row 0 is no distribution"),
        (lambda: weighted_sparsity(np.eye(3), [1, 2], [0, 0, 0]), "a level for each of 3 experts"),
        (lambda: assignment_histogram([0, 7], ["a", "b"], 7), "expected experts 0 to 6, got 0 to 7"),
        (lambda: assignment_histogram([0.5, 1], ["a", "b"], 7), "integer expert numbers"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
