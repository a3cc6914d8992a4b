from __future__ import annotations

import numpy as np
import pytest

from stratcore.analysis import gradient_starvation


def norms(num_steps=200, **scales):
    rng = np.random.default_rng(0)
    return {name: scale * rng.lognormal(0, 0.5, num_steps) for name, scale in scales.items()}


def test_a_module_without_gradient_is_flagged_and_no_other():
    found = gradient_starvation(norms(gate=1e-4, encoder=1.0, head=3.0))
    assert found.starved == ("gate",)
    gate, encoder, head = found.modules
    assert gate.first_starved == 49
    assert gate.share < 1e-3
    assert (encoder.starved, encoder.first_starved) == (False, None)
    assert encoder.baseline == pytest.approx(3**-0.5)
    assert (head.share, encoder.share) == (pytest.approx(0.9, abs=0.02), pytest.approx(0.37, abs=0.03))


def test_starvation_that_begins_late_and_ends_is_dated():
    rows = norms(gate=1.0, rest=1.0)
    rows["gate"][80:150] = 0
    found = gradient_starvation(rows, window=20)
    gate = found.modules[0]
    assert gate.first_starved == 99
    assert not gate.starved
    assert gate.lowest == 0
    assert gradient_starvation({name: row[:150] for name, row in rows.items()}, window=20).starved == (
        "gate",
    )


def test_one_silent_step_is_not_starvation():
    rows = norms(gate=1.0, rest=1.0)
    rows["gate"][100] = 0
    assert gradient_starvation(rows, window=20).modules[0].first_starved is None


def test_baseline_goes_with_the_number_of_parameters():
    """A bias of 10 among 10^6 parameters has its own small share of a gradient whose entries are alike."""
    counts = {"bias": 10, "weight": 10**6}
    rows = norms(bias=10**0.5, weight=10.0**3)
    assert gradient_starvation(rows).starved == ("bias",)
    found = gradient_starvation(rows, num_parameters=counts)
    assert found.starved == ()
    assert found.modules[0].share / found.modules[0].baseline == pytest.approx(1, rel=0.3)
    assert [m.baseline**2 for m in found.modules] == pytest.approx([1e-5, 1], rel=1e-4)


def test_shares_do_not_overflow_and_silence_starves_all():
    found = gradient_starvation({"a": [1e300, 1e300], "b": [1e300, 1e300]})
    assert [module.share for module in found.modules] == pytest.approx([0.5**0.5] * 2)
    silent = gradient_starvation({"a": [0.0] * 5, "b": [0.0] * 5})
    assert silent.num_silent_steps == 5
    assert silent.starved == ("a", "b")
    assert silent.window == 5


def test_healthy_runs_raise_no_alarm():
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = {f"m{i}": rng.lognormal(rng.normal(0, 1), 1, 120) for i in range(12)}
        alarms += bool(gradient_starvation(rows, window=30).starved)
    assert alarms == 0


@pytest.mark.parametrize(
    "rows, words",
    [
        ({}, "at least one module"),
        ({"a": []}, "'a': expected 0 steps, at least 1"),
        ({"a": [1.0, 2.0], "b": [1.0]}, r"'b': expected 2 steps, at least 1, got shape \(1,\)"),
        ({"a": [1.0, np.nan]}, "'a': step 1: expected a finite norm >= 0, got nan"),
        ({"a": [-1.0]}, "'a': step 0"),
    ],
)
def test_bad_norms_are_named(rows, words):
    with pytest.raises(ValueError, match=words):
        gradient_starvation(rows)


def test_bad_options_are_named():
    for options in ({"window": 0}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match="window and threshold"):
            gradient_starvation({"a": [1.0]}, **options)
    with pytest.raises(ValueError, match="num_parameters: 'b'"):
        gradient_starvation({"a": [1.0], "b": [1.0]}, num_parameters={"a": 3})
