import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from stratcore.analysis import Resampling, agreement, quantile_bins, within_bins

FEW = Resampling(num_resamples=300)


def test_renamed_labels_agree_perfectly():
    domain = np.repeat(["a", "b", "c"], 40)
    found = agreement(np.repeat([2, 0, 1], 40), domain, FEW)
    assert (found.ari.value, found.nmi.value) == pytest.approx((1, 1))
    assert 0.9 < found.ari.low < found.ari.high == 1
    assert found.ari.p_value == pytest.approx(1 / 301)
    assert found.ari.floor_high < 0.1


def test_unrelated_labels_sit_on_their_floor():
    rng = np.random.default_rng(0)
    found = agreement(rng.integers(7, size=600), rng.integers(6, size=600), FEW)
    assert found.ari.value == pytest.approx(0, abs=0.01)
    assert found.ari.floor == pytest.approx(0, abs=0.002)
    assert 0.01 < found.nmi.floor < 0.03  # NMI's upward bias, which the floor shows
    assert found.nmi.value < found.nmi.floor_high * 1.2
    assert found.nmi.p_value > 0.01


def test_floor_equals_that_of_shuffled_rows():
    rng = np.random.default_rng(1)
    a, b = rng.integers(3, size=120), np.sort(rng.integers(5, size=120))
    found = agreement(a, b, Resampling(num_resamples=2000))
    shuffled = [normalized_mutual_info_score(rng.permutation(a), b) for _ in range(1000)]
    assert found.nmi.floor == pytest.approx(np.mean(shuffled), rel=0.05)
    assert found.nmi.floor_high == pytest.approx(np.quantile(shuffled, 0.95), rel=0.1)


def test_quintiles_are_even_and_never_split_ties():
    bins, edges = quantile_bins(np.random.default_rng(0).permutation(100), 5)
    assert np.bincount(bins).tolist() == [20] * 5
    assert edges[[0, -1]].tolist() == [0, 99]
    bins, edges = quantile_bins([1, 1, 1, 1, 1, 1, 1, 2, 3, 9], 5)
    assert len(np.unique(bins[:7])) == 1
    assert np.bincount(bins).sum() == 10
    assert quantile_bins([4.0, 4.0], 5)[0].tolist() == [0, 0]


def test_one_expert_is_no_agreement_and_its_floor_is_itself():
    found = agreement(np.zeros(40), np.repeat(["a", "b"], 20), FEW)
    assert (found.ari.value, found.ari.floor, found.ari.floor_high, found.ari.p_value) == (0, 0, 0, 1)
    assert (found.nmi.value, found.nmi.floor) == (0, 0)


def test_within_bins_removes_an_agreement_that_is_all_length():
    rng = np.random.default_rng(0)
    tokens = rng.uniform(0, 100, 3000)
    domain = np.digitize(tokens + 20 * rng.standard_normal(3000), [33, 66])
    expert = np.digitize(tokens + 20 * rng.standard_normal(3000), [33, 66])
    overall, inside = agreement(expert, domain, FEW), within_bins(expert, domain, tokens, 20, FEW)
    assert overall.nmi.value > 0.15
    assert overall.nmi.low > 0.1
    assert inside.nmi.value < 0.02
    assert inside.ari.low < 0 < inside.ari.high


def test_within_bins_keeps_an_agreement_that_is_not_length():
    rng = np.random.default_rng(0)
    domain = rng.integers(4, size=2000)
    found = within_bins(domain, domain, rng.uniform(size=2000), 5, FEW)
    assert (found.ari.value, found.nmi.value) == pytest.approx((1, 1))
    assert [bin.num_rows for bin in found.bins] == [400] * 5


def test_within_bins_weighs_by_rows_and_leaves_out_single_domains():
    values = np.r_[np.zeros(10), np.ones(30), np.full(20, 2.0)]
    domain = np.r_[np.zeros(10), np.repeat([0, 1], 15), np.repeat([0, 1], 10)]
    assign = np.r_[np.zeros(10), np.repeat([0, 1], 15), np.zeros(20)]
    found = within_bins(assign, domain, values, 6, FEW)
    assert [bin.num_rows for bin in found.bins if bin.num_rows] == [10, 30, 20]
    assert np.isnan(found.bins[0].nmi)
    assert found.num_rows == 50
    assert found.nmi.value == pytest.approx((30 * 1 + 20 * 0) / 50)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement([0, 1], ["a", "b", "c"]), "assign: expected a label for each of 3 rows"),
        (lambda: within_bins([0, 1], ["a", "b"], [1.0, np.nan]), "one finite number a row"),
        (lambda: within_bins([0, 1], ["a", "a"], [1.0, 2.0]), "every bin holds a single domain"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement([], []), "domain: expected at least one row, got none"),
        (lambda: agreement([0, 1, np.nan], [0, 1, 1]), "assign: row 2 has no label, got nan"),
        (lambda: agreement([0, 1, 1], ["a", None, "b"]), "domain: row 1 has no label, got None"),
        (lambda: agreement([0, 1], [0, 1, 1]), "assign: expected a label for each of 3 rows"),
        (lambda: within_bins([0, 1, 1], [0, 1], [1.0, 2.0]), "assign: expected a label for each of 2 rows"),
        (lambda: within_bins([0, 1], [0, 1, 1], [1.0, 2.0]), "domain: expected a label for each of 2 rows"),
        (
            lambda: within_bins([0, 1, 1], [0, 1, 1], [1.0, 2.0]),
            "values: expected a number for each of 3 rows",
        ),
        (lambda: agreement(["x", "y", np.nan], [0, 1, 1]), "assign: row 2 has no label, got nan"),
    ],
)
def test_rows_without_a_label_and_lists_of_unlike_length_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_tensors_of_any_type_are_labels() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.bfloat16, requires_grad=True)
    assert agreement(labels, labels.to(torch.bfloat16)).ari.value == 1.0
    assert within_bins(labels, labels, values, num_bins=2).ari.value == 1.0
