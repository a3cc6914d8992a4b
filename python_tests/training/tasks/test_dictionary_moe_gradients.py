"""Every parameter of the dictionary task learns."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from stratcore.data.synthetic import StrataOptions, union_of_strata
from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import Runtime
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")
LEVELS = (8, 12, 16, 20, 24, 28, 32)


@dataclass(frozen=True)
class Recipe:
    model: DictionaryMoEOptions
    objective: ObjectiveOptions
    batch_size: int
    initialized: bool


OURS = Recipe(
    DictionaryMoEOptions(
        input_dim=64,
        atoms=256,
        sparsities=LEVELS,
        backward="masked",
        energy_rank=16,
        selection="soft",
    ),
    ObjectiveOptions(),
    batch_size=256,
    initialized=True,
)
SEED = Recipe(
    DictionaryMoEOptions(
        input_dim=64,
        atoms=32,
        sparsities=LEVELS,
        num_steps=4,
        form="classic",
        per_step=True,
        threshold=None,
        backward="straight_through",
        centers=False,
        query_dim=128,
        energy_rank=0,
        selection="threshold",
        rate=0.0,
        head=(32, 64),
    ),
    ObjectiveOptions(kind="expected", contrastive=1.0),
    batch_size=8,
    initialized=False,
)
RECIPES = {
    "ours": OURS,
    "ours_fresh": replace(OURS, initialized=False),
    "ours_tied": replace(OURS, model=replace(OURS.model, tied=True)),
    "seed": SEED,
}


@functools.cache
def gradients_of_one_step(recipe: Recipe) -> dict[str, Tensor]:
    """Gradient of each trainable parameter in the first step, in float64; zeros where there is none."""
    # So noisy that the strata overlap: a gate that is certain of every row has nothing to learn.
    strata = union_of_strata(
        StrataOptions(
            kinds=("plane",) * 7, dims=(2, 4, 6, 8, 10, 12, 14), ambient=64, points=700, radius=6.0, noise=1.0
        )
    )
    x, stratum = torch.from_numpy(strata.points).double(), torch.from_numpy(strata.stratum).long()
    rows = Rows(x, stratum)
    torch.manual_seed(0)
    model = DictionaryMoE(recipe.model).double()
    if recipe.initialized:
        model.initialize(x, stratum)
    task = DictionaryMoETask(
        model, rows, rows, recipe.objective, Runtime.create("cpu"), batch_size=recipe.batch_size, seed=0
    )
    task.step(model, next(task.batches(0, 0)), 0).loss_sum.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    listed = [p for group in task.parameter_groups() for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in trained.values()}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_parameter_gets_a_finite_gradient_in_one_step(recipe):
    gradients = gradients_of_one_step(RECIPES[recipe])
    scale = max(float(g.abs().max()) for g in gradients.values())
    # What is less than this share of the largest gradient is rounding, not learning.
    untrained = [name for name, g in gradients.items() if not float(g.abs().max()) > 1e-12 * scale]
    assert untrained == [] and all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("recipe", ["ours", "ours_tied", "seed"])
def test_every_expert_gets_a_gradient_in_one_step(recipe):
    starved = {}
    for name, gradient in gradients_of_one_step(RECIPES[recipe]).items():
        if name.startswith("experts."):
            axis = 1 if name.startswith("experts.encoder.") else 0
            largest_E = gradient.movedim(axis, 0).flatten(1).abs().amax(1)
            if not (largest_E > 0).all():
                starved[name] = (largest_E == 0).nonzero().squeeze(1).tolist()
    assert starved == {}, f"experts without gradient: {starved}"
