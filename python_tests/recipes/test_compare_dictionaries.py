from __future__ import annotations

from dataclasses import replace

import pytest

from stratcore.recipes import compare_dictionaries
from stratcore.recipes.compare_dictionaries import METHODS, CompareDictionariesRun, compact_mixture


def test_the_recipe_names_itself_and_takes_six_seeds_and_every_method() -> None:
    run = compare_dictionaries()
    assert run.recipe == "compare_dictionaries" and run == compare_dictionaries()
    assert len(run.seeds) == 6 and run.sparsities == (8, 16, 32) and run.methods == tuple(METHODS)
    assert run.base == compact_mixture() and run.base.data.source == "bundled"
    assert len(run.base.model.sparsities) == 4 and run.base.model.atoms == 64 and not run.base.baselines


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, "seeds: expected different numbers >= 0"),
        ({"seeds": (1, 1)}, "seeds: expected different"),
        (
            {"methods": ("mixture", "magic")},
            "methods: expected 'mixture' and others of .* got mixture, magic",
        ),
        ({"methods": ("pca",)}, "methods: expected 'mixture'"),
        ({"sparsities": (8, 65)}, r"sparsities: expected numbers in \[1, 64\]"),
        ({"rounds": 0}, "rounds: expected a number >= 1"),
        ({"base": replace(compact_mixture(), seed=3)}, "base.seed: expected 0, the key seeds is used; got 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CompareDictionariesRun(**{"base": compact_mixture(), **settings})
