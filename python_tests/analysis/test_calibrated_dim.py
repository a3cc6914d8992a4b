import numpy as np
import pytest

from stratcore.analysis import CalibratedDimension
from stratcore.analysis._manifolds import calibration_manifolds, sphere, spheres, stiefel
from stratcore.analysis._neighborhoods import pair_statistics
from stratcore.analysis.calibrated_dim import LARGEST_ROWS, calibration

NUM_ROWS = 1000


def _rows(name):
    rng = np.random.default_rng(17)
    return {
        "S^4 x S^4": lambda: spheres(rng, NUM_ROWS, [4, 4]),
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


def _fit(rows):
    return CalibratedDimension(leave_out=("rotations",)).fit(rows)


@pytest.mark.parametrize(
    ("name", "dimension", "tolerance"),
    [("rotations", 3, 0.05), ("S^4 x S^4", 8, 0.05), ("S^4 x S^4 x S^4", 12, 0.1), ("S^20 x S^20", 40, 0.1)],
)
def test_closed_manifolds_that_were_not_simulated(name, dimension, tolerance):
    found = _fit(_rows(name))
    assert found.dimension_ == pytest.approx(dimension, rel=tolerance)
    assert found.low_ <= dimension <= found.high_
    assert found.displaced_share_ < 0.02
    if dimension > 10:
        assert found.raw_dimension_ < (0.95 if dimension < 20 else 0.7) * dimension


@pytest.mark.parametrize("name", ["cube", "roll", "noisy"])
def test_boundary_and_noise_raise_the_word_of_warning(name):
    found = _fit(_rows(name))
    assert "lie to one side" in found.warning_
    assert found.displaced_share_ > 0.05


def test_a_sphere_of_low_dimension_raises_no_warning():
    found = _fit(sphere(np.random.default_rng(2), NUM_ROWS, 2))
    assert found.warning_ is None
    assert found.dimension_ == pytest.approx(2, rel=0.05)


def test_the_answer_repeats_and_copies_of_rows_do_not_count():
    rows = _rows("S^4 x S^4")
    first, again = _fit(rows), _fit(np.concatenate([rows, rows[:100]]))
    assert (first.dimension_, first.low_, first.high_) == (again.dimension_, again.low_, again.high_)
    assert again.num_duplicates_ == 100


def test_the_curved_fit_undoes_the_curvature_of_a_sphere():
    """Within the nearest tenth of the pairs of S^10 the plain fit says 8, the curved one 10."""
    plain, curved, _ = pair_statistics(sphere(np.random.default_rng(0), 2000, 10)).reshape(3, 3)[2]
    assert 7.5 < plain < 8.5
    assert curved == pytest.approx(10, rel=0.06)


def test_residuals_are_of_left_out_families():
    """Kriging with its own family would leave next to no error; what is kept is the honest one."""
    table = calibration(NUM_ROWS, frozenset({"rotations"}))
    torus = (table.family == "torus") & (table.dimension == 25)
    assert abs(table.residual[torus][0]) > 0.1
    correction, _ = table.predict(table.features[torus])
    assert abs(correction[0] - table.correction[torus][0]) < abs(table.residual[torus][0])
    assert "rotations" not in table.family
    assert set(table.family) | {"rotations"} == set(calibration_manifolds())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CalibratedDimension().fit(np.random.rand(40, 3)), "more than 50 distinct rows"),
        (lambda: CalibratedDimension(leave_out=("S2",)).fit(np.random.rand(60, 3)), r"got \['S2'\]"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
def test_of_many_rows_a_sample_is_used():
    rows = sphere(np.random.default_rng(3), LARGEST_ROWS + 500, 6)
    assert CalibratedDimension().fit(rows).dimension_ == pytest.approx(6, rel=0.05)
