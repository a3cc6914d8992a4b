from __future__ import annotations

import pytest

from stratcore.recipes import compare_dictionaries
from stratcore.recipes.compare_dictionaries_results import summarize


def test_differences_are_paired_by_seed_whatever_the_order_of_the_trials() -> None:
    fvu = {("mixture", 0): 0.1, ("mixture", 1): 0.5, ("pca", 0): 0.2, ("pca", 1): 0.61}
    zero = dict.fromkeys(("active_atoms", "parameters", "fit_seconds", "code_microseconds"), 0.0)
    trials = [
        {"seed": s, "k": 8, "method": m, "fvu": fvu[m, s], "r2": 1 - fvu[m, s], **zero}
        for m, s in (("pca", 1), ("mixture", 0), ("pca", 0), ("mixture", 1))
    ]
    run = type(compare_dictionaries())(
        base=compare_dictionaries().base, seeds=(0, 1), sparsities=(8,), methods=("mixture", "pca")
    )
    pca = list(summarize(run, trials))[1]
    assert pca["above_mixture"].value == pytest.approx(0.105)
    assert pca["above_mixture"].high - pca["above_mixture"].low == pytest.approx(
        2 * 12.7062 * 0.005, rel=1e-4
    )
