from __future__ import annotations

from dataclasses import replace

import pytest

from stratcore.models.sequence_transformer import POSITIONS
from stratcore.recipes import compare_positions
from stratcore.recipes.compare_positions import RIVALS, TASKS, TWO_AXES, Setting


def test_the_recipe_has_every_arm_where_it_has_a_meaning() -> None:
    run = compare_positions()
    assert run == compare_positions() and run.recipe == "compare_positions"
    assert set(run.tasks) == set(TASKS) - {"bytes", "next_mark"} and run.arms == tuple(POSITIONS)
    assert set(RIVALS) == set(POSITIONS) - {"none", "open", "torus"}
    for task in TASKS:
        axial = {arm for arm in run.arms_of(task) if arm.endswith("_axial")}
        assert len(axial) == (3 if task in TWO_AXES else 0)
        assert set(run.arms_of(task)) - axial == {"none", "rope", "alibi", "t5", "open", "torus"}
    assert run.size_of("bytes") is run.bytes and run.size_of("ring_copy") is run.small


def test_every_arm_has_the_same_learning_rates_and_as_many_settings() -> None:
    run = compare_positions()
    rates = run.small.learning_rates
    plain = tuple(Setting(learning_rate=rate, rope_base=10_000.0, slope=None) for rate in rates)
    for arm in ("none", "alibi", "t5_axial"):
        assert run.settings_of("day_week", arm) == plain
    for arm in ("rope", "rope_axial", "open", "torus"):  # the torus is tuned over no more than its rival
        settings = run.settings_of("day_week", arm)
        assert len(settings) == 3 * len(rates) and set(plain) < set(settings)
    assert run.settings_of("ring_copy", "rope")[1].words("rope") == "0.001, base 100"
    assert run.settings_of("ring_copy", "torus")[0].words("torus") == "0.001, slopes ALiBi"
    assert plain[0].words("t5") == "0.001"


def test_its_seeds_can_show_a_difference_after_holm() -> None:
    run = compare_positions()
    assert len(run.tasks) * 2 / 2 ** len(run.seeds) < 0.05
    assert len(run.seeds) >= 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ()}, "tasks: expected different ones of ring_copy"),
        ({"tasks": ("magic",)}, "tasks: expected different ones of .*, got 'magic'"),
        ({"arms": ("torus", "rope", "rope")}, "arms: expected different ones"),
        ({"arms": ("torus", "open")}, "arms: expected 'torus' and one of rope, alibi and t5"),
        ({"arms": ("rope",)}, "arms: expected 'torus' and one of"),
        ({"seeds": (1, 1)}, "seeds: expected different numbers >= 0"),
        ({"tuning_seeds": 9}, r"tuning_seeds: expected a number in \[1, 8\], got 9"),
        ({"rope_bases": (1.0,)}, "rope_bases: expected numbers > 1"),
        ({"slope_starts": (0.0,)}, "slope_starts: expected numbers > 0 or None"),
        ({"margin": 1.0}, r"margin: expected a share in \(0, 1\)"),
        ({"rollout": 0}, "rollout: expected a number >= 1"),
        ({"workers": 0}, "workers: expected a number >= 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(compare_positions(), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dim": 0}, "dim: expected a number >= 1"),
        ({"evaluation_sequences": 7}, "evaluation_sequences: expected a multiple of batch_size = 32, got 7"),
        ({"learning_rates": ()}, "learning_rates: expected numbers"),
        ({"stage": replace(compare_positions().small.stage, seed=1)}, "stage.seed: expected 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(compare_positions().small, **settings)
