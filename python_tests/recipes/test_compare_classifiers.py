from __future__ import annotations

from dataclasses import replace

import pytest

from stratcore.models.stratified_classifier_config import ROUTED_VARIANTS
from stratcore.recipes import compare_classifiers
from stratcore.recipes.compare_classifiers import PLAIN, VARIANTS, TextOptions


def test_the_recipe_has_every_arm_and_its_controls() -> None:
    run = compare_classifiers()
    assert run == compare_classifiers() and run.recipe == "compare_classifiers"
    assert tuple(VARIANTS) == ROUTED_VARIANTS == run.variants
    arms = run.arms()
    assert len(arms) == 1 + 3 * 5 + 2 and next(iter(arms)) == PLAIN
    for variant in VARIANTS:
        assert run.controls(variant) == (PLAIN, f"{variant}/mlp", f"{variant}/frozen")
        assert run.controls(f"{variant}/mlp") == (PLAIN,)
    assert run.controls(PLAIN) == ()
    assert set(replace(run, matched_controls=False, negative_controls=False).arms()) == {PLAIN, *VARIANTS}
    assert run.data.sets == ("sentiment",) and run.data.split.least_test_rows == 2000
    assert run.data.split.test_rows == 500


def test_its_seeds_can_show_a_difference_after_holm() -> None:
    run = compare_classifiers()
    comparisons = sum(len(run.controls(arm)) for arm in run.arms())
    assert comparisons * 2 / 2 ** len(run.seeds) < 0.05
    assert len(run.seeds) >= 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, "seeds: expected different numbers >= 0"),
        ({"variants": ("magic",)}, "variants: expected some of .*, got 'magic'"),
        ({"variants": (), "negative_controls": False}, "variants: expected at least one"),
        ({"learning_rates": ()}, "learning_rates: expected numbers"),
        ({"block_options": {"magic": {}}}, "block_options: expected names of variants, got 'magic'"),
        ({"stage": replace(compare_classifiers().stage, seed=1)}, "stage.seed: expected 0"),
        ({"workers": 0}, "workers: expected a number >= 1, got 0"),
        ({"num_strata": 0}, "num_strata: expected a number >= 1, got 0"),
        ({"margin": 0.0}, "margin: expected points > 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(compare_classifiers(), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sets": ()}, "data.sets: expected at least one"),
        ({"rows": 0}, "data.rows: expected a number >= 1 or None, got 0"),
        ({"max_length": 3}, "data.max_length: expected a number >= 4, got 3"),
    ],
)
def test_texts_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextOptions(**settings)
