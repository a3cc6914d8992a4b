from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from python_tests.data.image_cases import table
from python_tests.models.dual_stream_cases import FUSED, small
from stratcore.models import ARCHITECTURES
from stratcore.recipes import RECIPES, DualStreamViTRun
from stratcore.recipes.dual_stream_vit_run import build, task_of
from stratcore.recipes.dual_stream_vit_source import SOURCE_RUNS
from stratcore.recipes.settings import load_run
from stratcore.training import Runtime
from stratcore.training.image_objective import WEIGHTS


def test_every_run_is_a_recipe_of_its_name() -> None:
    names = [recipe.__name__ for recipe in SOURCE_RUNS]
    assert names == [f"dual_stream_vit_run{index}" for index in range(1, 13)] + [
        f"dual_stream_vit_{name}" for name in ARCHITECTURES
    ]
    for recipe in SOURCE_RUNS:
        run = recipe()
        assert RECIPES[recipe.__name__] is recipe and run.recipe == recipe.__name__
        assert run.data.source == "cifar10" and not run.data.fit_model and run.data.control > 0
        assert (
            run.model.volume_feature == "squared_volume"
            and not run.objective.info_nce_symmetric
            or (run.objective.info_nce_pairs == "cross")
        )
        assert run.objective.classification == "bce" and run.objective.smoothing == 0.1
        assert run.objective.temperature == 0.07 and run.objective.usage == run.objective.revive_every == 0
    assert load_run(RECIPES, "dual_stream_vit_run10", None, []) == RECIPES["dual_stream_vit_run10"]()


def weights(name: str) -> dict[str, float]:
    run = RECIPES[f"dual_stream_vit_{name}"]()
    keys = ("info_nce", "mastery", "geometric", "diversity", "cv", "anchor_cv", "cm", "spread")
    return {key: getattr(run.objective, key) for key in keys if getattr(run.objective, key)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run1", {"info_nce": 0.5}),
        ("run4", {"info_nce": 1.0, "mastery": 1.0, "cv": 1.0, "cm": 1.0}),
        ("run5", {"info_nce": 0.5, "mastery": 1.0, "cv": 0.5, "cm": 0.5}),
        ("run7", {"info_nce": 0.1, "mastery": 1.0, "cv": 1.0, "cm": 0.5}),
        (
            "v6",
            {
                "info_nce": 0.1, "mastery": 1.0, "geometric": 0.3, "diversity": 0.5,
                "cv": 0.1, "anchor_cv": 0.05, "cm": 0.1, "spread": 0.001,
            },
        ),
    ],
)  # fmt: skip
def test_weights_of_the_documents(name: str, expected: dict[str, float]) -> None:
    assert weights(name) == expected


def test_what_sets_the_runs_apart() -> None:
    run = {index: RECIPES[f"dual_stream_vit_run{index}"]() for index in range(1, 13)}
    assert run[1].model == ARCHITECTURES["v1"] and run[1].batch_size == 128
    assert all(run[i].warm_start is not None and run[i].stage.optimizer.lr == 1e-4 for i in (2, 3))
    assert run[2].objective.mastery == 0.0 and run[3].objective.mastery == 1.0
    assert run[2].objective.cv_of == "geometric"
    assert (run[5].stage.optimizer.lr, run[5].batch_size, run[5].model.anchor_dropout) == (1e-3, 512, 0.1)
    assert run[5].objective.cv_target == 0.20 and run[7].objective.cv_target == 0.22
    assert run[7].model.tangential == 0.5 and run[7].warm_start is None
    assert not run[9].objective.info_nce_with_mastery and run[5].objective.info_nce_with_mastery
    assert run[10].model == ARCHITECTURES["v6"] and run[10].mastery.rule == "change"
    assert (run[10].stage.optimizer.lr, run[10].stage.optimizer.weight_decay) == (3e-4, 0.01)
    assert run[11].model.decouple and run[11].objective.info_nce_pairs == "geometric"
    assert run[12].architecture == "arbitration" and run[12].objective.gal and run[12].objective.experts
    assert (run[12].gal.interval, run[12].gal.rate, run[12].gal.capacity) == (25, 0.015, 50_000)
    assert RECIPES["dual_stream_vit_v5_bidir"]().objective.info_nce_pairs == "cross"


@pytest.mark.parametrize("recipe", SOURCE_RUNS)
def test_every_run_takes_a_step(recipe: Callable[[], DualStreamViTRun]) -> None:
    """Its objective and its kind of model, in small; every loss reaches what it is about and is finite."""
    whole = recipe()
    kept = (
        "geometric_output",
        "geometric_classifier",
        "separation",
        "separation_sign",
        "decouple",
        "anchor_dropout",
    )
    depth = {"num_fused_blocks": 0} if whole.model.bidirectional else FUSED
    kept_values = {name: getattr(whole.model, name) for name in kept}
    run = replace(whole, batch_size=12, model=small(**depth, **kept_values, standardize=False))
    parts = {name: table(24) for name in ("train", "validation", "control", "test")}
    with Runtime.create("cpu") as runtime:
        task = task_of(run, build(run, parts["train"]), parts, runtime)
        result = task.step(task.model, next(iter(task.batches(0, 0))), 0)
    result.loss_sum.backward()
    weighted = {name for name in WEIGHTS if getattr(run.objective, name)}
    assert weighted <= set(result.metrics) and bool(result.loss_sum.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in task.model.parameters())
