from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from python_tests.recipes.small_run import small_run
from stratcore.data import load_bundled, split_rows
from stratcore.models import DictionaryMoE
from stratcore.recipes import RECIPES, dictionary_moe, dictionary_moe_seed
from stratcore.recipes.dictionary_moe import METRICS, DataOptions
from stratcore.training import Runtime
from stratcore.training.tasks import DictionaryMoETask, Rows

LEVELS = (8, 12, 16, 20, 24, 28, 32)


@pytest.mark.parametrize("name", ["dictionary_moe", "dictionary_moe_seed"])
def test_a_recipe_is_complete_and_names_itself(name: str) -> None:
    run = RECIPES[name]()
    assert run.recipe == name and run == RECIPES[name]()
    assert run.data == DataOptions() and run.data.source == "bundled"
    assert run.baselines and run.seed == 0
    with pytest.raises(FrozenInstanceError):
        run.seed = 1


def test_dictionary_moe_has_seven_experts_of_256_atoms() -> None:
    model = dictionary_moe().model
    assert (model.input_dim, model.atoms, model.sparsities) == (64, 256, LEVELS)


def test_the_configuration_of_the_source_documents() -> None:
    run = dictionary_moe_seed()
    model, optimizer = run.model, run.stage.optimizer
    assert (model.input_dim, model.atoms, model.query_dim, model.sparsities) == (64, 32, 128, LEVELS)
    assert (model.selection, model.eligibility, model.candidates) == ("threshold", 0.5, 1)
    assert (model.form, model.threshold, model.backward) == ("classic", None, "straight_through")
    assert not model.centers and model.energy_rank == 0 and model.rate == 0.0
    assert (run.objective.contrastive, run.objective.margin) == (1.0, 1.0)
    assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adam", 1e-3, (0.9, 0.999))
    assert (optimizer.schedule, optimizer.weight_decay, optimizer.clip_norm) == ("constant", 0.0, None)
    assert run.batch_size == 8 and run.start == "random"


def test_five_layers_are_four_steps_after_the_first_code() -> None:
    encoder = DictionaryMoE(dictionary_moe_seed().model).experts.encoder
    assert encoder.directions.shape == (5, 7, 32, 64)
    assert encoder.recurrent.shape == (4, 7, 32, 32)


def test_thirty_epochs_of_the_bundled_training_rows() -> None:
    run = dictionary_moe_seed()
    split = split_rows(load_bundled(), run.data.fractions, seed=run.seed)
    assert len(split.train) == 2450
    assert run.stage.steps == 30 * (2450 // 8) == 9180


def test_the_metrics_that_can_be_best_are_those_of_the_task() -> None:
    run = small_run()
    rows = Rows(torch.randn(64, 8), torch.arange(64) % 3)
    task = DictionaryMoETask(
        DictionaryMoE(run.model),
        rows,
        rows,
        run.objective,
        Runtime.create("cpu"),
        batch_size=32,
        seed=0,
    )
    assert tuple(task.evaluate(task.model, "validation")) == METRICS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a number >= 0, got -1"),
        ({"stage": replace(dictionary_moe().stage, seed=3)}, "stage.seed: expected 0"),
        (
            {"objective": replace(dictionary_moe().objective, contrastive=0.5)},
            "objective.contrastive: expected 0 where model.head is null",
        ),
    ],
)
def test_options_that_contradict_each_other(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(dictionary_moe(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ("a.txt",)}, "data.encoder: expected the model that embeds data.texts"),
        ({"encoder": "bert"}, "data.texts: expected the text sets that data.encoder embeds"),
        ({"rows": 0}, "data.rows: expected a number >= 1 or None, got 0"),
        ({"fractions": (1.0, 0.0, 0.0)}, "data.fractions: expected three shares > 0 that sum to 1"),
        ({"fractions": (0.7, 0.2, 0.2)}, "data.fractions: expected three shares > 0 that sum to 1"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "data.fractions: expected three shares > 0"),
    ],
)
def test_data_options_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataOptions(**changes)
