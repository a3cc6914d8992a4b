import numpy as np
import pytest
import torch

from stratcore.analysis import (
    Resampling,
    assignment_histogram,
    gate_statistics,
    mean_gate,
    sample_entropy,
    sparsity_against_untrained,
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


def _random_gate(scale, seed, per=80):
    """Softmax of a random linear map of five clusters: a gate that was never trained."""
    rng = np.random.default_rng(seed)
    x = 2 * np.repeat(rng.standard_normal((5, 32)), per, axis=0) + rng.standard_normal((5 * per, 32))
    logits = scale * x @ rng.standard_normal((32, 7)) / np.sqrt(32)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), np.repeat(np.arange(5), per)


def test_even_gate_differs_nowhere():
    found = sparsity_against_untrained(np.full((30, 7), 1 / 7), LEVELS, np.repeat([0, 1, 2], 10), [1, 2, 3])
    assert (found.untrained, found.num_different) == (20.0, 0)
    assert found.dimension_correlation is None and found.dimension_p_value is None
    assert found.answer == "No stratum's weighted sparsity differs from 20, the value of an untrained gate."


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_even_gate_differs_nowhere_in_any_precision(dtype):
    rng = np.random.default_rng(0)
    exact = np.exp(rng.standard_normal((3000, 1)) + np.zeros((3000, 7)))  # equal logits
    p = (exact / exact.sum(axis=1, keepdims=True)).astype(dtype)
    p[:, 0] = np.nextafter(p[:, 0], dtype(1)) if dtype == np.float32 else p[:, 0]  # and unequal by rounding
    found = sparsity_against_untrained(p, LEVELS, np.repeat([0, 1, 2], 1000), [1, 2, 3])
    assert found.num_different == 0
    assert found.dimension_correlation is None and found.dimension_p_value is None


def test_even_gate_of_bfloat16_differs_nowhere():
    logits = 1e-3 * torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(logits, dim=-1).to(torch.bfloat16).requires_grad_()
    found = sparsity_against_untrained(p, LEVELS, np.repeat([0, 1, 2], 100), [1, 2, 3])
    assert found.num_different == 0 and found.dimension_p_value is None


def test_float64_tells_more_than_float32():
    p = np.full((30, 7), 1 / 7) + 1e-7 * np.linspace(-1, 1, 7) + 1e-10 * np.arange(30)[:, None] * np.eye(7)[0]
    found = sparsity_against_untrained(p / p.sum(axis=1, keepdims=True), LEVELS, np.repeat([0, 1, 2], 10))
    assert found.num_different == 3 and found.num_dimensions == 0


def test_strata_of_unknown_dimension_have_no_part_in_the_correlation():
    strata = np.repeat(np.arange(6), 20)
    p = 0.8 * np.eye(7)[np.array([0, 1, 3, 5, 6, 2])[strata]] + 0.2 / 7
    found = sparsity_against_untrained(p, LEVELS, strata, [4, 8, 12, 16, 24, np.nan])
    known = strata < 5
    same = sparsity_against_untrained(p[known], LEVELS, strata[known], [4, 8, 12, 16, 24])
    assert found.dimension_correlation == same.dimension_correlation == pytest.approx(1)
    assert found.num_dimensions == same.num_dimensions == 5
    assert found.dimension_p_value == pytest.approx(same.dimension_p_value, abs=0.02)
    nothing = sparsity_against_untrained(p, LEVELS, strata, [np.nan] * 5 + [3])
    assert nothing.dimension_correlation is None and nothing.dimension_p_value is None
    with pytest.raises(ValueError, match="dimensions: expected one for each of 6 strata"):
        sparsity_against_untrained(p, LEVELS, strata, [1, 2])


def test_random_gate_differs_by_its_rows_but_not_from_its_exchanged_levels():
    """The artefact: the strata of a gate that was never trained lie apart from 20 and from each other."""
    p, strata = _random_gate(0.2, seed=0)
    found = sparsity_against_untrained(p, LEVELS, strata, [4, 8, 12, 16, 24])
    assert found.num_different >= 3
    for each, plain in zip(found.strata, weighted_sparsity(p, LEVELS, strata), strict=True):
        assert (
            each.weighted_sparsity == plain.weighted_sparsity
            and each.low < plain.weighted_sparsity < each.high
        )
        assert each.difference == pytest.approx(each.weighted_sparsity - 20)
        assert each.differs == (not each.low <= 20 <= each.high)
        assert each.exchanged_low < 20 < each.exchanged_high
    assert "by more than the same gate shows by chance" in found.answer


def test_random_gates_pass_the_test_of_dimension_as_often_as_they_should():
    values = [
        sparsity_against_untrained(
            *_with_levels(_random_gate(1.0, seed, per=10)), [4, 8, 12, 16, 24]
        ).dimension_p_value
        for seed in range(120)
    ]
    assert sum(value <= 0.1 for value in values) <= 20  # 12 expected, standard deviation 3.3


def _with_levels(gate):
    return gate[0], LEVELS, gate[1]


def test_gate_that_gives_large_strata_more_atoms_is_found():
    strata = np.repeat(np.arange(5), 20)
    p = 0.8 * np.eye(7)[np.array([0, 1, 3, 5, 6])[strata]] + 0.2 / 7
    found = sparsity_against_untrained(p, LEVELS, strata, [4, 8, 12, 16, 24])
    assert found.dimension_correlation == pytest.approx(1) and found.dimension_p_value == pytest.approx(
        1 / 120
    )
    assert [each.differs for each in found.strata] == [True, True, False, True, True]
    backwards = sparsity_against_untrained(p, LEVELS, strata, [24, 16, 12, 8, 4])
    assert backwards.dimension_correlation == pytest.approx(-1) and backwards.dimension_p_value == 1


def test_more_than_seven_experts_take_random_orders():
    p = np.random.default_rng(0).dirichlet(np.ones(12), size=60)
    few = Resampling(num_resamples=200, seed=4)
    first, again = (
        sparsity_against_untrained(p, np.arange(1, 13), np.repeat([0, 1, 2], 20), None, few) for _ in "ab"
    )
    assert first == again and first.untrained == 6.5
    assert all(each.exchanged_low < 6.5 < each.exchanged_high for each in first.strata)


def test_one_row_has_no_interval():
    found = sparsity_against_untrained(np.eye(7)[[0, 0, 6]], LEVELS, ["a", "a", "b"])
    assert np.isnan(found.strata[1].low) and not found.strata[1].differs


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
        (lambda: assignment_histogram([0, 1], [1.0, np.nan], 7), "groups: row 1 has no label, got nan"),
        (lambda: assignment_histogram([], [], 7), "groups: expected at least one row"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()
