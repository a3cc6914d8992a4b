from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stratcore.recipes import sweep_toroidal_lm
from stratcore.recipes.sweep_toroidal_lm import GRIDS, LAYER_SETS, Value
from stratcore.recipes.toroidal_lm import ToroidalLMRun

SIZES = {"layers": 32, "period": 2048, "rows": 640}


def point(axis: str, value: Value) -> ToroidalLMRun:
    return replace(sweep_toroidal_lm(), axis=axis).point(value, **SIZES)


def test_the_grids_are_those_of_the_source_documents() -> None:
    assert GRIDS["depth"] == (2, 4, 8) and GRIDS["lambda"] == (0.0, 0.05, 0.1, 0.2, 0.5)
    assert GRIDS["fusion"] == ("low_rank", "attention", "mean") and GRIDS["rows"] == (200, 500, 1000, 5000)
    chosen = {name: choose(32) for name, choose in LAYER_SETS.items()}
    assert chosen == {
        "input_middle": (0, 16),
        "quarters": (0, 8, 16, 24),
        "first_four": (0, 1, 2, 3),
        "last_four": (28, 29, 30, 31),
        "ends": (0, 1, 30, 31),
    }
    assert all(choose(3)[0] == 0 and choose(3)[-1] <= 2 for choose in LAYER_SETS.values())


@pytest.mark.parametrize("axis", GRIDS)
def test_every_value_of_every_grid_changes_its_setting_alone(axis: str) -> None:
    base = sweep_toroidal_lm().base
    points = [point(axis, value) for value in GRIDS[axis]]
    assert len({repr(each) for each in points}) == len(points)
    for each in points:
        if axis in ("epochs", "lr", "schedule"):
            assert replace(each, stage=base.stage) == base
        elif axis == "rows":
            assert replace(each, data=base.data) == base
        else:
            assert replace(each, model=base.model) == base


def test_values_mean_what_they_say() -> None:
    assert point("lambda", 0.2).model.torus.lambda_distance == 0.2
    assert point("normalized_lambda", 0.2).model.torus.lambda_distance == 0.2 / 2048
    zero = point("lambda", 0.0).model.torus
    assert zero.lambda_distance == 0 and not zero.learn_lambda
    assert point("epochs", 2).stage.steps == 2 * 640 // 16
    assert point("epochs", 1).stage.optimizer.warmup_steps == 12
    assert point("layers", "quarters").model.layers == (0, 8, 16, 24)
    assert point("layers", "0-2").model.layers == "0-2" and point("layers", 5).model.layers == (5,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"axis": "width"}, "axis: expected one of depth, lambda, .*, got 'width'"),
        ({"values": (2, 2)}, r"values: expected different ones, got \(2, 2\)"),
        ({"values": ("two",)}, "values: expected int for axis depth, got 'two'"),
        ({"axis": "lr", "values": (True,)}, "values: expected int or float for axis lr, got True"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(sweep_toroidal_lm(), **settings)
