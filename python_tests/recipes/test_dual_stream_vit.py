from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stratcore.models import DualStreamViT, PlainViT, plain_options
from stratcore.recipes import RECIPES, DualStreamViTRun, dual_stream_vit
from stratcore.recipes.dual_stream_vit import ImageOptions, steps_of


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_the_one_worth_using_has_at_most_6_3_million_parameters(channels: int, size: int) -> None:
    """On Fashion-MNIST and on CIFAR-10, with a plain transformer of as many beside it."""
    run = dual_stream_vit()
    options = replace(run.model, channels=channels, image_size=size)
    with torch.device("meta"):
        total = DualStreamViT(options).num_parameters()["total"]
        plain = PlainViT(plain_options(options)).num_parameters()["total"]
    assert 5_000_000 < total <= 6_300_000 and abs(plain - total) <= 0.02 * total
    assert run.compile and run.stage.average is not None and run.stage.numerics.precision == "bf16"


@pytest.mark.parametrize("name", ["dual_stream_vit", "dual_stream_vit_digits"])
def test_recipes_are_named_and_fit_themselves_to_the_images(name: str) -> None:
    run = RECIPES[name]()
    assert run.recipe == name and run == RECIPES[name]() and run.data.fit_model


def changed(**changes: Any) -> DualStreamViTRun:
    """A run with options of its parts set, 'part.key' written part__key."""
    run = dual_stream_vit()
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        run = replace(
            run, **({part: replace(getattr(run, part), **{name: value})} if part else {name: value})
        )
    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size, seed, scan_every: expected >= 1, >= 0 and >= 0, got 0, 0 and"),
        ({"batch_size": 1}, "batch_size: expected at least 2 views a step for model.embedding_norm 'batch', got 1"),
        ({"stage__seed": 1}, "stage.seed: expected 0, the run's own seed is used; got 1"),
        ({"model__geometric_classifier": False}, "objective.geometric: expected 0 without"),
        ({"objective__views": 2}, "augmentation.mixup, cutmix: expected 0 with two views"),
        (
            {"objective__info_nce_pairs": "cross", "model__num_cross_blocks": 0, "model__num_fused_blocks": 2},
            "expected 0 beside num_fused_blocks|got 'cross'",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        changed(**changes)
    with pytest.raises(ValueError, match=r"data.validation: expected a share in \(0, 0.5\), got 0.5"):
        ImageOptions(validation=0.5)


def test_steps() -> None:
    assert steps_of(100, 45_000, 512) == 8700
