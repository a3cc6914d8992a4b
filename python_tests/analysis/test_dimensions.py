import numpy as np
import pytest

from stratcore.analysis import LevinaBickel, PCADimension, dimension_table
from stratcore.analysis.manifolds import sphere


def _strata():
    rng = np.random.default_rng(0)
    ball = np.pad(sphere(rng, 300, 4), ((0, 0), (0, 3)))
    plane = np.pad(rng.standard_normal((300, 2)), ((0, 0), (0, 6))) + 20
    rows = np.concatenate([ball, plane, np.ones((30, 8))])
    return rows, np.repeat(["ball", "plane", "point"], [300, 300, 30])


def test_every_number_has_an_interval_or_a_reason():
    rows, labels = _strata()
    table = dimension_table(rows, labels, calibrated=False, variance=0.9)
    assert [row.stratum for row in table[::7]] == ["ball", "plane", "point"]
    values = {(row.stratum, row.estimator): row for row in table}
    for row in table:
        if row.stratum == "point":
            assert np.isnan(row.value) and row.warning
        else:
            assert row.low <= row.value <= row.high, row
    assert values["ball", "pca"].value == PCADimension(0.9).fit(rows[:300]).dimension_ == 5
    assert values["plane", "participation_ratio"].value == pytest.approx(2, abs=0.05)
    assert values["ball", "levina_bickel"].value == LevinaBickel().fit(rows[:300]).dimension_
    assert values["plane", "two_nn"].value == pytest.approx(2, rel=0.15)
    assert values["ball", "simplex_cv"].value == pytest.approx(5, rel=0.1)


def test_calibrated_rows_follow_the_raw_ones_and_are_nearer():
    rows, labels = _strata()
    raw, calibrated = dimension_table(rows[labels == "ball"], estimators=["levina_bickel"])
    assert (raw.stratum, calibrated.estimator) == ("all", "levina_bickel_calibrated")
    assert abs(calibrated.value - 4) < abs(raw.value - 4)
    assert calibrated.low <= 4 <= calibrated.high


def test_rejects():
    with pytest.raises(ValueError, match="estimators: expected some of pca, .*got 'hill'"):
        dimension_table(np.eye(3), estimators=["hill"])
