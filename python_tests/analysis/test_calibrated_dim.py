import numpy as np
import pytest

from stratcore.analysis import CalibratedDimension, DANCo, LevinaBickel, TwoNN
from stratcore.analysis.calibrated_dim import calibration
from stratcore.analysis.manifolds import calibration_manifolds, sphere, spheres, stiefel

NUM_ROWS = 1000


def _rows(name):
    rng = np.random.default_rng(17)
    return {
        "two spheres": lambda: spheres(rng, NUM_ROWS, [4, 4]),
        "S^4 x S^4 x S^4": lambda: spheres(rng, NUM_ROWS, [4] * 3),
        "S^20 x S^20": lambda: spheres(rng, NUM_ROWS, [20, 20]),
        "rotations": lambda: stiefel(rng, NUM_ROWS, 3, 2),
        "cube": lambda: rng.random((NUM_ROWS, 5)),
        "roll": lambda: _roll(rng),
        "noisy": lambda: (
            np.pad(rng.standard_normal((NUM_ROWS, 5)), ((0, 0), (0, 20)))
            + 0.1 * rng.standard_normal((NUM_ROWS, 25))
        ),
    }[name]()


def _roll(rng):
    turn = 1.5 * np.pi * (1 + 2 * rng.random(NUM_ROWS))
    return np.stack([turn * np.cos(turn), 21 * rng.random(NUM_ROWS), turn * np.sin(turn)], axis=1)


@pytest.mark.parametrize(
    ("name", "dimension", "tolerance"),
    [
        ("rotations", 3, 0.05),
        ("two spheres", 8, 0.05),
        ("S^4 x S^4 x S^4", 12, 0.1),
        ("S^20 x S^20", 40, 0.1),
    ],
)
def test_closed_manifolds_that_were_not_simulated(name, dimension, tolerance):
    found = CalibratedDimension(leave_out=("rotations",)).fit(_rows(name))
    assert found.dimension_ == pytest.approx(dimension, rel=tolerance)
    low, high = found.interval_
    assert low <= dimension <= high
    assert found.displaced_share_ < 0.02
    if dimension > 10:
        assert found.raw_dimension_ < (0.95 if dimension < 20 else 0.7) * dimension


@pytest.mark.parametrize("name", ["cube", "roll", "noisy"])
def test_boundary_and_noise_raise_the_word_of_warning(name):
    found = CalibratedDimension(leave_out=("rotations",)).fit(_rows(name))
    assert "lie to one side" in found.warning_
    assert found.displaced_share_ > 0.05


def test_a_sphere_of_low_dimension_raises_no_warning():
    found = CalibratedDimension(leave_out=("rotations",)).fit(sphere(np.random.default_rng(2), NUM_ROWS, 2))
    assert found.warning_ == ""
    assert found.dimension_ == pytest.approx(2, rel=0.05)


def test_the_answer_repeats_and_copies_of_rows_do_not_count():
    rows = _rows("two spheres")
    first = CalibratedDimension(leave_out=("rotations",)).fit(rows)
    again = CalibratedDimension(leave_out=("rotations",)).fit(np.concatenate([rows, rows[:100]]))
    assert (first.dimension_, first.interval_) == (again.dimension_, again.interval_)
    assert again.num_duplicates_ == 100


def test_residuals_are_of_left_out_families():
    """Kriging with its own family would leave next to no error; what is kept is the honest one."""
    table = calibration("LevinaBickel", 20, NUM_ROWS, frozenset({"rotations"}), 0)
    torus = (table.family == "torus") & (table.dimension == 25)
    assert abs(table.residual[torus][0]) > 0.1
    correction, _ = table.predict(table.features[torus])
    assert abs(correction[0] - table.correction[torus][0]) < abs(table.residual[torus][0])
    assert "rotations" not in table.family
    assert set(table.family) | {"rotations"} == set(calibration_manifolds())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: CalibratedDimension().fit(np.random.rand(40, 3)), ValueError, "more than 50 distinct rows"),
        (lambda: CalibratedDimension(DANCo()).fit(np.random.rand(60, 3)), TypeError, "got DANCo"),
        (
            lambda: CalibratedDimension(leave_out=("S2",)).fit(np.random.rand(60, 3)),
            ValueError,
            r"got \['S2'\]",
        ),
    ],
)
def test_rejects(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [TwoNN(), LevinaBickel(10)], ids=["two_nn", "levina_bickel"])
def test_other_estimators_are_debiased_too(estimator):
    rows = spheres(np.random.default_rng(1), 2500, [10, 10])
    found = CalibratedDimension(estimator).fit(rows)
    assert found.dimension_ == pytest.approx(20, rel=0.1)
