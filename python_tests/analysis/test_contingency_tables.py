"""Legend: G domains, E labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, mutual_info_score, normalized_mutual_info_score

from stratcore.analysis import (
    adjusted_rand_index,
    concentration,
    contingency,
    mutual_information,
    normalized_mutual_information,
    purity,
)
from stratcore.analysis.contingency_tables import one_row_less, shuffled_tables


@pytest.mark.parametrize("seed", range(5))
def test_indices_equal_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(4, size=200), rng.integers(6, size=200)
    b[:100] = a[:100]
    table, _, _ = contingency(a, b)
    assert adjusted_rand_index(table) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert normalized_mutual_information(table) == pytest.approx(
        normalized_mutual_info_score(a, b), abs=1e-12
    )
    stack = np.stack([table, table[::-1]])
    np.testing.assert_allclose(adjusted_rand_index(stack), adjusted_rand_index(table))


def test_purity_and_concentration():
    table = [[3, 1, 0], [1, 3, 0]]
    np.testing.assert_allclose(purity(table), [0.75, 0.75, np.nan])
    np.testing.assert_allclose(concentration([[3, 1, 0], [0, 0, 5]]), [0.75, 1.0])


def test_contingency_counts_rows_by_sorted_names():
    table, domains, labels = contingency(["b", "a", "b"], [5, 5, 2])
    assert table.tolist() == [[0, 1], [1, 1]]
    assert (domains.tolist(), labels.tolist()) == (["a", "b"], [2, 5])


def test_plain_information_equals_scikit_learns_in_bits():
    rng = np.random.default_rng(0)
    a, b = rng.integers(4, size=300), rng.integers(5, size=300)
    table, _, _ = contingency(a, b)
    plain = mutual_information(table[None], miller_madow=False)
    assert plain[0] == pytest.approx(mutual_info_score(a, b) / np.log(2), abs=1e-12)
    assert mutual_information(np.diag([10, 10, 10, 10]), miller_madow=False) == pytest.approx(2.0)


def test_correction_takes_away_what_independent_labels_show():
    """240 rows of independent labels in 6 x 5: the plug-in estimate has 20 / (2 N ln 2) = .060 bits too many."""
    rng = np.random.default_rng(1)
    tables = rng.multinomial(240, np.full(30, 1 / 30), size=2000).reshape(-1, 6, 5)
    plain, corrected = (mutual_information(tables, miller_madow=on).mean() for on in (False, True))
    assert plain == pytest.approx(20 / (2 * 240 * np.log(2)), rel=0.05)
    assert corrected == pytest.approx(0, abs=0.003)


def test_shuffled_tables_keep_their_margins():
    table, rng = np.array([[5, 1, 0], [2, 3, 9]]), np.random.default_rng(0)
    shuffled = shuffled_tables(table, 50, rng)
    assert (shuffled.sum(axis=2) == table.sum(axis=1)).all() and (
        shuffled.sum(axis=1) == table.sum(axis=0)
    ).all()
    assert (shuffled_tables(table[:1], 3, rng) == table[:1]).all()


def test_one_row_less_of_each_cell_in_use():
    tables, shares = one_row_less(np.array([[2, 0], [1, 1]]))
    assert tables.tolist() == [[[1, 0], [1, 1]], [[2, 0], [0, 1]], [[2, 0], [1, 0]]]
    assert shares.tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "statistic", [adjusted_rand_index, normalized_mutual_information, mutual_information, purity]
)
def test_tables_may_be_tensors_of_any_type(statistic):
    table = torch.tensor([[4.0, 1.0], [0.0, 3.0]], requires_grad=True)
    assert np.array_equal(statistic(table), statistic([[4, 1], [0, 3]]))
    assert np.array_equal(statistic(table.to(torch.bfloat16)), statistic([[4, 1], [0, 3]]))


@pytest.mark.parametrize("table", [np.zeros((0, 0)), np.zeros((2, 2)), np.ones(3)])
@pytest.mark.parametrize(
    "statistic", [adjusted_rand_index, normalized_mutual_information, mutual_information]
)
def test_empty_tables_are_refused(statistic, table):
    with pytest.raises(ValueError, match="table: expected counts"):
        statistic(table)
