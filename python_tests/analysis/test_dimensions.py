import numpy as np
import pytest

from stratcore.analysis import DANCo, DimensionRow, dimension_table
from stratcore.analysis._manifolds import sphere
from stratcore.analysis.dimensions import _linear

NAMES = [
    "PCA, 75 % of variance",
    "participation ratio",
    "effective rank",
    "MLE, calibrated",
    "TwoNN",
    "MLE, k = 20",
    "local PCA, k = 100",
    "simplex CV",
]


def _cloud():
    rng = np.random.default_rng(0)
    plane = np.pad(rng.standard_normal((500, 2)), ((0, 0), (0, 6))) + 9
    ball = np.pad(sphere(rng, 500, 5), ((0, 0), (0, 2)))
    return np.concatenate([ball, plane, plane[:2]]), np.repeat(["b", "a", "c"], [500, 500, 2])


def test_table_of_strata():
    rows, labels = _cloud()
    table = dimension_table(rows, labels)
    assert all(isinstance(row, DimensionRow) for row in table)
    assert [row.estimator for row in table] == NAMES * 4
    assert list(dict.fromkeys(row.stratum for row in table)) == ["all rows", "a", "b", "c"]
    found = {(row.stratum, row.estimator): row for row in table}
    assert found["b", "MLE, calibrated"].value == pytest.approx(5, rel=0.05)
    assert found["b", "participation ratio"].value == pytest.approx(6, rel=0.02)
    assert found["a", "participation ratio"].value == pytest.approx(2, rel=0.02)
    assert found["a", "local PCA, k = 100"].value == 2
    for row in table:
        if row.stratum == "c":
            assert row.num_rows == 2
            assert row.value is None and row.low is None and "distinct rows" in row.warning
        elif row.value is not None and row.low is not None and row.high is not None:
            assert row.low <= row.value <= row.high
    assert table == dimension_table(rows, labels)


def test_without_labels_and_calibration():
    rows, _ = _cloud()
    table = dimension_table(rows, variance=0.9, calibrated=False)
    assert [row.estimator for row in table] == ["PCA, 90 % of variance", *NAMES[1:3], *NAMES[4:]]


def test_linear_intervals_lie_about_the_value_and_cover():
    rng, scales = np.random.default_rng(3), np.sqrt(np.linspace(2, 0.2, 12))
    found = [
        _linear(rng.standard_normal((400, 12)) * scales, 0.75, 0)["participation ratio"] for _ in range(60)
    ]
    values, low, high = np.array(found).T
    # 57 of 60 expected to hold the mean over clouds; what few rows do to the value itself is not in the interval.
    assert ((low <= values.mean()) & (values.mean() <= high)).sum() >= 53
    assert (high - low).mean() == pytest.approx(2 * 1.96 * values.std(ddof=1), rel=0.3)
    np.testing.assert_allclose(values - low, high - values)


def test_few_rows_have_linear_dimensions_without_an_interval():
    table = dimension_table(np.random.default_rng(0).standard_normal((19, 4)), calibrated=False)[:3]
    assert all(row.value is not None and row.low is None and row.high is None for row in table)


def test_danco_is_added_where_it_is_asked_for():
    rows, _ = _cloud()
    row = dimension_table(rows[:500], calibrated=False, danco=True)[-1]
    assert row.estimator == "DANCo" and row.value == DANCo().fit(rows[:500]).dimension_
    assert row.low is None and row.high is None


def test_bad_input():
    with pytest.raises(ValueError, match="variance: expected a share"):
        dimension_table(np.eye(4), variance=0)
    with pytest.raises(ValueError, match="labels: expected a label for each of 4 rows"):
        dimension_table(np.eye(4), [1, 2])


def test_rounding_is_no_dimension():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, 40)) + 100).astype(np.float32)
    row = dimension_table(rows, variance=1.0, calibrated=False)[0]
    assert (row.value, row.low, row.high) == (3, 3, 3)
