from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLMOptions
from stratcore.recipes import toroidal_lm
from stratcore.recipes.toroidal_lm import ARMS, HOST, LanguageDataOptions


def test_the_default_can_show_a_difference_and_has_its_controls() -> None:
    run = toroidal_lm()
    assert run == toroidal_lm() and run.recipe == "toroidal_lm" and len(run.seeds) >= 6
    assert run.pairs()[:3] == [("toroidal", "lambda_0"), ("toroidal", "tuned"), ("toroidal", HOST)]
    assert all(control in (*run.arms, HOST) for _, control in run.pairs())


def test_every_arm_is_what_its_name_says() -> None:
    torus = ToroidalBranchOptions(depth=2, lambda_distance=0.3)
    run = replace(toroidal_lm(), arms=tuple(ARMS), model=ToroidalLMOptions(layers=(0, 3), torus=torus))
    found = {arm: run.options(arm, 5) for arm in ARMS}
    assert all(each.layers == (0, 3) and each.seed == 5 for each in found.values())
    assert all(each.torus.depth == (1 if arm == "fft_mixing" else 2) for arm, each in found.items())
    kinds = {arm: (o.attention, o.torus.gate, o.projections) for arm, o in found.items()}
    assert kinds == {
        "toroidal": ("toroidal", "zero", "host"),
        "open": ("toroidal", "open", "host"),
        "lambda_0": ("toroidal", "zero", "host"),
        "tuned": ("host", "open", "host"),
        "random": ("toroidal", "open", "random"),
        "standard_random": ("host", "open", "random"),
        "fft_mixing": ("fft_mixing", "open", "host"),
    }
    control = found["lambda_0"].torus
    assert control.lambda_distance == 0.0 and not control.learn_lambda
    assert [arm for arm in ARMS if run.starts_away(arm)] == [
        "open", "random", "standard_random", "fft_mixing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": ()}, "seeds: expected different numbers >= 0"),
        ({"seeds": (1, 1)}, "seeds: expected different numbers >= 0"),
        ({"arms": ("magic",)}, "arms: expected some of toroidal, open, .*, got 'magic'"),
        ({"arms": ()}, "arms: expected some of .*, got 'none'"),
        ({"trained": "bias"}, "trained: expected one of replaced, branches, lora, all, got 'bias'"),
        (
            {"trained": "branches"},
            "arms: expected none of tuned, random, standard_random with trained=branches",
        ),
        ({"host_dtype": "int8"}, "host_dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        (
            {"model": ToroidalLMOptions(projections="random")},
            "model: expected attention and projections at their",
        ),
        ({"model": ToroidalLMOptions(seed=1)}, "model.seed: expected 0, the key seeds is used; got 1"),
        ({"batch_size": 0}, "batch_size: expected a number >= 1, got 0"),
        ({"transfer": -1}, "transfer: expected a number >= 0, got -1"),
        ({"margin": 0.0}, "margin: expected a number > 0, got 0.0"),
        ({"branch_lr_scale": 0.0}, "branch_lr_scale: expected a number > 0, got 0.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(toroidal_lm(), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 1}, "data.length: expected a number >= 2, got 1"),
        ({"rows": 0}, "data.rows: expected a number >= 1, got 0"),
        ({"held_out": 1.0}, r"data.held_out: expected a share in \(0, 1\), got 1.0"),
    ],
)
def test_texts_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LanguageDataOptions(**settings)
