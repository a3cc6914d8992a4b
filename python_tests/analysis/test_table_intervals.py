import numpy as np
import pytest

from stratcore.analysis.contingency_tables import adjusted_rand_index, mutual_information, shuffled_tables
from stratcore.analysis.table_intervals import (
    ADJUSTED_RAND_INDEX,
    MUTUAL_INFORMATION,
    NORMALIZED_MUTUAL_INFORMATION,
    TableStatistic,
    population_interval,
    without_chance,
)

STATISTICS = (ADJUSTED_RAND_INDEX, NORMALIZED_MUTUAL_INFORMATION, MUTUAL_INFORMATION)


def population(dependence: float, size: int = 7) -> np.ndarray:
    return (1 - dependence) * np.full((size, size), 1 / size**2) + dependence * np.eye(size) / size


def test_estimate_and_spread_are_those_of_the_jackknife_over_rows() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(3, size=60)
    b = np.where(rng.random(60) < 0.6, a, rng.integers(4, size=60))

    def counted(keep: np.ndarray) -> float:
        table = np.zeros((3, 4), dtype=int)
        np.add.at(table, (a[keep], b[keep]), 1)
        return float(adjusted_rand_index(table))

    rows = np.arange(60)
    value, left = counted(rows), np.array([counted(np.delete(rows, row)) for row in rows])
    table = np.zeros((3, 4), dtype=int)
    np.add.at(table, (a, b), 1)
    found, low, high = population_interval([table], ADJUSTED_RAND_INDEX, np.zeros(2), 0.95)
    assert found == pytest.approx(60 * value - 59 * left.mean(), rel=1e-12)
    assert high - found == pytest.approx(
        1.959964 * np.sqrt(59 / 60 * ((left - left.mean()) ** 2).sum()), rel=1e-6
    )
    assert low < found - (high - found)
    assert without_chance(table, ADJUSTED_RAND_INDEX) == found


@pytest.mark.parametrize(("dependence", "rows"), [(0.0, 500), (0.05, 500), (0.3, 200), (0.97, 200)])
def test_intervals_cover_the_population(dependence: float, rows: int) -> None:
    """Bootstrapped tables cover the mutual information of unrelated labels in no sample."""
    rng = np.random.default_rng(1)
    p = population(dependence)
    tables = rng.multinomial(rows, p.ravel(), size=60).reshape(-1, 7, 7)
    shuffled = [shuffled_tables(table, 100, rng) for table in tables]
    for statistic in STATISTICS:
        true = float(statistic.function(1e12 * p))
        ends = [
            population_interval([table], statistic, statistic.function(chance), 0.95)
            for table, chance in zip(tables, shuffled, strict=True)
        ]
        assert all(low <= estimate <= high for estimate, low, high in ends)
        assert sum(low - 1e-9 <= true <= high + 1e-9 for _, low, high in ends) >= 52  # 57 expected, error 1.7


@pytest.mark.parametrize("statistic", STATISTICS[:2])
def test_estimates_of_small_samples_lie_about_the_population_where_counts_lie_above(
    statistic: TableStatistic,
) -> None:
    p = population(0.3)
    tables = np.random.default_rng(2).multinomial(200, p.ravel(), size=200).reshape(-1, 7, 7)
    true = float(statistic.function(1e12 * p))
    assert np.mean([without_chance(table, statistic) for table in tables]) == pytest.approx(true, abs=0.01)
    if statistic is NORMALIZED_MUTUAL_INFORMATION:
        assert statistic.function(tables).mean() > true + 0.04


def test_tables_without_an_exception_leave_room_below() -> None:
    """The jackknife sees no variance in them; of 30 rows without an exception 3 / 30 may still be ones."""
    table = np.diag([10, 10, 10])
    for statistic in STATISTICS[:2]:
        shuffled = statistic.function(shuffled_tables(table, 200, np.random.default_rng(0)))
        estimate, low, high = population_interval([table], statistic, shuffled, 0.95)
        assert (estimate, high) == pytest.approx((1, 1))
        assert 0.6 < low < 0.95


def test_a_single_row_and_margins_that_fix_the_table() -> None:
    assert population_interval([np.array([[1]])], ADJUSTED_RAND_INDEX, np.ones(3), 0.95)[0] == 1
    one_label = np.array([[20], [30]])
    found = population_interval([one_label], NORMALIZED_MUTUAL_INFORMATION, np.zeros(3), 0.95)
    assert found == pytest.approx((0, 0, 0))


def test_means_over_tables_weigh_by_rows() -> None:
    first, second = np.diag([40, 40]), np.full((2, 2), 10)
    found, _, _ = population_interval([first, second], ADJUSTED_RAND_INDEX, np.zeros(3), 0.95)
    parts = [without_chance(table, ADJUSTED_RAND_INDEX) for table in (first, second)]
    assert found == pytest.approx(80 / 120 * parts[0] + 40 / 120 * parts[1])
    assert mutual_information(first) > 0.9
