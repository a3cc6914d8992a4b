from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from stratcore.models.dual_stream_vit import DualStreamViT
from stratcore.models.plain_vit import PlainViT, plain_options
from stratcore.recipes.compare_images import ARMS, TWO_VIEWS, WHOLE, compare_images


def changes(before: dict, after: dict, path: str = "") -> dict:
    """Keys that differ, by path."""
    found = {}
    for name, value in after.items():
        if isinstance(value, dict):
            found |= changes(before[name], value, f"{path}{name}.")
        elif value != before[name]:
            found[path + name] = value
    return found


@pytest.mark.parametrize(
    ("arm", "control", "wanted"),
    [
        ("plain", WHOLE, {"architecture": "plain", "objective.geometric": 0.0}),
        ("no_simplices", WHOLE, {"model.channel": "perceptron"}),
        ("no_anchors", WHOLE, {"model.readout": "perceptron"}),
        ("radial_gradient", WHOLE, {"model.tangential": 0.0}),
        ("repel", WHOLE, {"model.separation": 0.01}),
        ("attract", WHOLE, {"model.separation": 0.01, "model.separation_sign": "reference"}),
        (
            "no_balance",
            WHOLE,
            {"objective.spread": 0.0, "objective.usage": 0.0, "objective.revive_every": 0},
        ),
        ("cv", WHOLE, {"objective.cv": 0.1}),
        ("mastery", TWO_VIEWS, {"objective.mastery": 1.0}),
    ],
)
def test_an_arm_differs_from_its_control_in_one_thing(arm: str, control: str, wanted: dict) -> None:
    run = compare_images()
    assert ARMS[arm].control == control
    assert changes(asdict(run.of(control, 3)), asdict(run.of(arm, 3))) == wanted


def test_two_views_are_as_many_views_a_step() -> None:
    run = compare_images()
    own, whole = run.of(TWO_VIEWS, 0), run.of(WHOLE, 0)
    assert own.batch_size * own.objective.views == whole.batch_size
    assert not own.augmentation.mixes and own.objective.info_nce


def test_arms_have_as_many_parameters() -> None:
    base = compare_images().base.model
    counts = {
        name: DualStreamViT(compare_images().of(name, 0).model).num_parameters()["total"]
        for name in (WHOLE, "no_simplices", "no_anchors")
    }
    counts["plain"] = PlainViT(plain_options(base)).num_parameters()["total"]
    assert all(count == pytest.approx(counts[WHOLE], rel=0.02) for count in counts.values()), counts


def test_seeds_and_pairs() -> None:
    run = replace(compare_images(), arms=("whole", "plain"), seeds=(4, 5))
    assert run.pairs() == [("plain", "whole")]
    assert run.of("plain", 5).seed == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arms": ("whole", "other")}, "arms: expected different ones of .*, got 'other'"),
        ({"arms": ("plain",)}, "arms: expected 'whole', the control of 'plain', among them"),
        ({"arms": ("whole", "mastery")}, "expected 'two_views', the control of 'mastery'"),
        ({"seeds": ()}, "seeds: expected different numbers >= 0"),
        ({"neighbors": 0}, "neighbors: expected a number >= 1, got 0"),
        ({"references": 5}, "neighbors: expected at most references = 5, got 20"),
        ({"margin": 0.0}, "margin: expected points > 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(compare_images(), **settings)


def test_bases_that_are_refused() -> None:
    run = compare_images()
    with pytest.raises(ValueError, match="base.seed: expected 0, the key seeds is used; got 1"):
        replace(run, base=replace(run.base, seed=1))
    with pytest.raises(ValueError, match="base: expected architecture dual_stream and one view"):
        replace(run, base=replace(run.base, architecture="plain"))
