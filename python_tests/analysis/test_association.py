"""Association of numbers with numbers and with groups, against SciPy and planted relations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kruskal, spearmanr

from stratcore.analysis import Resampling, group_association, rank_correlation

FEW = Resampling(num_resamples=200)


def columns(rows=300, seed=0):
    return np.random.default_rng(seed).normal(size=(3, rows))


def test_correlation_is_spearmans():
    a, b, _ = columns()
    b = a + b
    found = rank_correlation(a, np.exp(b), resampling=FEW)
    assert found.value == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert found.low < found.value < found.high
    assert found.p_value == pytest.approx(1 / 201)


def test_partial_correlation_removes_the_control():
    a, b, c = columns(2000)
    a, b = a + 3 * c, b + 3 * c
    assert rank_correlation(a, b, resampling=FEW).value > 0.8
    partial = rank_correlation(a, b, control=c, resampling=FEW)
    assert abs(partial.value) < 0.1
    assert partial.low < 0.05


def test_intervals_cover_and_null_p_values_are_even():
    covered, small = 0, 0
    for seed in range(100):
        a, b, _ = columns(80, seed)
        found = rank_correlation(a, b, resampling=FEW)
        covered += found.low <= 0 <= found.high
        small += found.p_value <= 0.1
    assert covered >= 88
    assert 3 <= small <= 18


def test_explained_share_is_that_of_kruskal_and_wallis():
    values, _, _ = columns()
    groups = np.repeat(["a", "b", "c"], 100)
    values[:100] += 1
    found = group_association(values, groups, resampling=FEW)
    statistic = kruskal(*(values[groups == name] for name in "abc")).statistic
    assert found.explained.value == pytest.approx(statistic / (len(values) - 1), rel=1e-12)
    assert found.explained.floor == pytest.approx(2 / 299, rel=0.25)
    assert found.groups[0].low > found.groups[1].high
    assert [group.num_rows for group in found.groups] == [100, 100, 100]


def test_a_control_that_explains_all_leaves_nothing():
    rng = np.random.default_rng(1)
    control = np.repeat(np.arange(5), 100)
    groups = (control + (rng.random(500) < 0.3)).astype(int) % 5  # groups follow the control only
    values = control * 10 + rng.normal(size=500)
    found = group_association(values, groups, control=control, resampling=FEW)
    assert found.explained.p_value < 0.01
    assert found.within_control.p_value > 0.05


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3]), "4 or more numbers"),
        (lambda: rank_correlation([1, 2, 3, np.nan], [1, 2, 3, 4]), "a: expected one finite number"),
        (lambda: rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]), "a: all 4 numbers are equal"),
        (lambda: rank_correlation([1, 2, 3, 4], [1, 2, 3, 4, 5]), "4 or more numbers each"),
        (lambda: group_association([1.0, 2.0], ["a", "a"]), "at least 2 different groups"),
        (lambda: group_association([1.0, 2.0], ["a"]), "a label for each of 2 rows"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_group_of_one_row_has_no_interval():
    found = group_association([1.0, 2.0, 3.0], ["a", "a", "b"], resampling=FEW)
    assert found.groups[1].low is None


@pytest.mark.parametrize("effect", [0.0, 0.2, 0.8])
def test_intervals_of_explained_shares_cover_the_population(effect):
    """Unmoved draws of unrelated groups lie above what there is in nearly all samples."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(8), 20)
    many = np.tile(groups, 500)
    one = Resampling(num_resamples=1)
    true = group_association(effect * many / 2.3 + rng.standard_normal(many.size), many, resampling=one)
    few = Resampling(num_resamples=100)
    found = [
        group_association(effect * groups / 2.3 + rng.standard_normal(160), groups, resampling=few).explained
        for _ in range(60)
    ]
    assert all(each.low <= each.corrected <= each.high for each in found)
    target = true.explained.corrected
    assert sum(each.low - 1e-3 <= target <= each.high for each in found) >= 51  # 57 expected, error 1.7
    assert np.mean([each.corrected for each in found]) == pytest.approx(target, abs=0.025)


def test_numbers_may_be_tensors_of_any_type():
    a, b, _ = (torch.from_numpy(each).requires_grad_() for each in columns())
    assert rank_correlation(a, b, resampling=FEW) == rank_correlation(
        a.detach().numpy(), b.detach().numpy(), resampling=FEW
    )
    rounded = a.to(torch.bfloat16)
    assert rank_correlation(rounded, b, resampling=FEW).value == pytest.approx(
        spearmanr(rounded.detach().double(), b.detach()).statistic
    )
