"""Legend: N rows, B batch rows, E experts, D input size, M atoms."""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.training.toy import finished_files, timeless_records
from stratcore.data.synthetic import StrataOptions, union_of_strata
from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import Intervals, OptimizerOptions, Runtime, Stage, Trainer, TrainingInterrupted
from stratcore.training.optimizer import build_optimizer
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")
LEVELS = (8, 12, 16, 20, 24, 28, 32)
SMALL = DictionaryMoEOptions(
    input_dim=6, atoms=10, sparsities=(1, 2, 3), query_dim=4, energy_rank=2, num_steps=2, backward="masked"
)


def drawn(count: int = 40, dim: int = 6, seed: int = 2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(count, dim, generator=generator), torch.arange(count) % 3)


def small_task(
    options: DictionaryMoEOptions = SMALL, rows: int = 40, batch_size: int = 8, **objective: Any
) -> DictionaryMoETask:
    torch.manual_seed(0)
    return DictionaryMoETask(
        DictionaryMoE(options),
        drawn(rows),
        drawn(20, seed=3),
        ObjectiveOptions(**objective),
        Runtime.create("cpu"),
        batch_size=batch_size,
        seed=5,
    )


# ---- every parameter learns


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


# ---- the objective


def by_hand(task: DictionaryMoETask, batch: Tensor) -> dict[str, Tensor]:
    """The terms of the loss in plain sums."""
    train = drawn()
    x, domain, output = train.x[batch], train.domain[batch], task.model(train.x[batch])
    prior = output.logits.softmax(-1)
    load, pairs = prior.mean(0), torch.zeros(())
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                gap = (output.projection[i] - output.projection[j]).norm()
                pairs = pairs + (gap**2 if domain[i] == domain[j] else (0.5 - gap).clamp_min(0) ** 2)
    gram = task.model.experts.atoms.mT @ task.model.experts.atoms
    return {
        "mixture": -(prior * (-output.cost).exp()).sum(-1).log().mean() / 6,
        "expected": (output.weights * output.cost).sum(-1).mean() / 6,
        "balance": 3 * (load**2).sum() - 1,
        "contrastive": pairs / (len(x) * (len(x) - 1)),
        "coherence": (gram - torch.eye(10)).square().sum((1, 2)).mean() / 90,
    }


@pytest.mark.parametrize("kind", ["mixture", "expected"])
def test_the_loss_is_the_weighted_sum_of_its_terms(kind):
    options = replace(SMALL, head=(5, 4), rate=0.1)
    weights = {"balance": 0.3, "contrastive": 0.7, "coherence": 0.2}
    task = small_task(options, kind=kind, margin=0.5, **weights)
    batch = torch.tensor([0, 3, 4, 7, 11])
    result = task.step(task.model, batch, 0)
    terms = by_hand(task, batch)
    total = terms[kind] + sum(weight * terms[name] for name, weight in weights.items())
    assert result.weight.item() == 5.0
    torch.testing.assert_close(result.loss_sum, 5 * total)
    assert set(result.metrics) == {"loss", "fit", "balance", "contrastive", "coherence"}
    torch.testing.assert_close(result.metrics["fit"], terms[kind].detach())
    for name in weights:
        torch.testing.assert_close(result.metrics[name], terms[name].detach())
    assert not any(metric.requires_grad for metric in result.metrics.values())


def test_noise_has_the_stated_size_and_is_off_in_evaluation():
    """A share of the rows' own root mean square, whatever their scale."""
    rows = Rows(100 * torch.randn(4000, 6), torch.zeros(4000, dtype=torch.long))
    task = DictionaryMoETask(
        small_task().model,
        rows,
        drawn(20, seed=3),
        ObjectiveOptions(noise=0.5),
        Runtime.create("cpu"),
        batch_size=8,
        seed=0,
    )
    seen = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task.step(task.model, torch.arange(4000), 0)
    noise = seen[0] - task._splits["train"].x
    share = (noise.square().mean() / task._splits["train"].x.square().mean()).sqrt()
    assert float(share) == pytest.approx(0.5, rel=0.05)
    task.evaluate(task.model, "validation")
    assert torch.equal(seen[1], drawn(20, seed=3).x)


# ---- batches


def test_batches_cover_each_row_once_an_epoch():
    task = small_task()
    epochs = [torch.cat(list(task.batches(epoch, 0))) for epoch in (0, 1)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(40))
    assert not torch.equal(*epochs) and torch.equal(epochs[0], torch.cat(list(task.batches(0, 0))))
    assert [len(batch) for batch in small_task(rows=39).batches(0, 0)] == [8] * 4


def test_batches_depend_on_the_seed_and_not_on_global_generators():
    first = torch.cat(list(small_task().batches(3, 0)))
    torch.rand(9)
    assert torch.equal(first, torch.cat(list(small_task().batches(3, 0))))
    other = small_task()
    other._seed = 6
    assert not torch.equal(first, torch.cat(list(other.batches(3, 0))))


def test_starting_inside_an_epoch_is_a_jump_and_no_replay():
    task = small_task()
    whole = list(task.batches(2, 0))
    for start in range(6):
        assert [b.tolist() for b in task.batches(2, start)] == [b.tolist() for b in whole[start:]]
    rows = Rows(torch.zeros(1_000_000, 1), torch.zeros(1_000_000, dtype=torch.long))
    tiny = DictionaryMoE(DictionaryMoEOptions(input_dim=1, atoms=1, sparsities=(1,), candidates=1))
    many = DictionaryMoETask(
        tiny, rows, rows, ObjectiveOptions(), Runtime.create("cpu"), batch_size=1, seed=0
    )
    seconds = []
    for start in (0, 999_999) * 3:
        begun = time.perf_counter()
        next(many.batches(0, start))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds[1::2]) < min(seconds[::2]) + 0.3  # a replay of a million batches costs more


@dataclass(frozen=True)
class OneOfTwo:
    rank: int
    world_size: int = 2
    device: torch.device = torch.device("cpu")


def test_ranks_take_disjoint_halves_of_every_batch():
    tasks = [small_task(rows=39)]
    for rank in (0, 1):
        tasks.append(
            DictionaryMoETask(
                tasks[0].model, drawn(39), drawn(9), ObjectiveOptions(), OneOfTwo(rank), batch_size=8, seed=5
            )
        )
    batches = [list(task.batches(1, 1)) for task in tasks]
    assert len({len(b) for b in batches}) == 1 and len(batches[0]) == 3
    for whole, first, second in zip(*batches, strict=True):
        assert torch.equal(whole, torch.cat([first, second])) and len(first) == len(second) == 4
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 2 ranks"):
        DictionaryMoETask(
            tasks[0].model, drawn(), drawn(), ObjectiveOptions(), OneOfTwo(0), batch_size=7, seed=5
        )


# ---- after a step


def test_atoms_have_unit_norm_after_every_step():
    task = small_task()
    with torch.no_grad():
        task.model.experts.atoms.mul_(3)
    task.after_step(1)
    torch.testing.assert_close(task.model.experts.atoms.norm(dim=1), torch.ones(3, 10))


def test_use_is_noted_for_the_chosen_expert():
    task = small_task(kind="mixture")
    batch = torch.arange(0, 30, 3)
    task.step(task.model, batch, 0)
    output = task.model(drawn().x[batch])
    wanted = torch.zeros(3, 10, dtype=torch.bool)
    for b in range(10):
        expert = int(task.model.choose(output)[b])
        wanted[expert] |= output.codes[expert, b] != 0
    assert torch.equal(task.state_dict()["used"], wanted) and 0 < wanted.sum() < 30
    task.step(task.model, torch.arange(30, 40), 0)
    assert (task.state_dict()["used"] & wanted).sum() == wanted.sum()


def test_revival_replaces_exactly_the_dead_atoms_by_the_worst_residuals():
    task = small_task(replace(SMALL, rate=0.0), rows=60, revive_every=10)
    task.after_step(9)
    with torch.no_grad():
        output = task.model(drawn(60).x)
        residual = drawn(60).x - task.model.experts(drawn(60).x)[1]
    chosen = output.cost.argmin(-1)
    own_rows = chosen.bincount(minlength=3)
    first, second = own_rows.argsort(descending=True)[:2].tolist()
    dead = {first: [2, 7], second: [0]}
    assert own_rows[first] >= 2 and own_rows[second] >= 1
    used = torch.ones(3, 10, dtype=torch.bool)
    for expert, atoms in dead.items():
        used[expert, atoms] = False
    task.load_state_dict({"used": used.clone()})
    before = task.model.experts.atoms.detach().clone()
    task.after_step(10)
    atoms = task.model.experts.atoms.detach()
    assert torch.equal((atoms - before).abs().amax(1) > 1e-6, ~used)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(3, 10))
    for expert, places in dead.items():
        own = residual[expert][chosen == expert]
        worst = own[own.norm(dim=1).argsort(descending=True)[: len(places)]]
        cosine = torch.nn.functional.cosine_similarity(atoms[expert, :, places].mT, worst)
        torch.testing.assert_close(cosine, torch.ones(len(places)))
    assert not task.state_dict()["used"].any()


def test_nothing_is_revived_after_the_last_step_of_revival():
    task = small_task(replace(SMALL, rate=0.0), rows=60, revive_every=10, revive_until=10)
    before = task.model.experts.atoms.detach().clone()
    task.after_step(20)
    torch.testing.assert_close(task.model.experts.atoms.detach(), before)
    task.after_step(10)
    assert (task.model.experts.atoms.detach() - before).abs().max() > 1e-3


def test_step_sizes_learn_at_their_own_rate():
    task = small_task(SMALL, rows=60, step_lr_scale=3.0)
    optimizer = build_optimizer(task.parameter_groups(), OptimizerOptions(name="adam", lr=1e-3))
    others, steps = optimizer.param_groups
    assert (others["lr"], steps["lr"]) == (1e-3, 3e-3)
    assert steps["params"] == [task.model.experts.encoder.log_step]


def test_revival_makes_at_most_one_atom_a_row():
    task = small_task(replace(SMALL, rate=0.0), rows=9, batch_size=9, revive_every=1)
    with torch.no_grad():
        own_rows = task.model(drawn(9).x).cost.argmin(-1).bincount(minlength=3)
    before = task.model.experts.atoms.detach().clone()
    task.after_step(1)  # all atoms count as dead: no step has used any
    replaced = ((task.model.experts.atoms.detach() - before).abs().amax(1) > 1e-6).sum(1)
    assert torch.equal(replaced, own_rows)


def test_nothing_is_revived_between_times_or_when_off():
    for every, step in ((10, 9), (0, 10)):
        task = small_task(revive_every=every)
        before = task.model.experts.atoms.detach().clone()
        task.after_step(step)
        torch.testing.assert_close(task.model.experts.atoms.detach(), before)


def test_a_perfectly_reconstructed_row_revives_no_empty_atom():
    """Residuals of 0 have no direction."""
    task = small_task(replace(SMALL, centers=False, rate=0.0, threshold=None), revive_every=1)
    task._splits["train"] = Rows(torch.zeros(40, 6), torch.zeros(40, dtype=torch.long))
    task.after_step(1)
    torch.testing.assert_close(task.model.experts.atoms.norm(dim=1), torch.ones(3, 10))


# ---- evaluation and state


@pytest.mark.parametrize("selection", ["soft", "threshold"])
@pytest.mark.parametrize("candidates", [1, 2])
def test_evaluate_against_a_hand_computation(selection, candidates):
    task = small_task(replace(SMALL, selection=selection, rate=0.3, eligibility=0.3, candidates=candidates))
    with torch.no_grad():
        task.model.gate.keys.mul_(6)
        output = task.model(drawn(20, seed=3).x)
        metrics = task.evaluate(task.model, "validation")
    x, mean = drawn(20, seed=3).x.double().numpy(), drawn().x.double().mean(0).numpy()
    total = ((x - mean) ** 2).sum()
    residuals, cost = output.residuals.double().numpy(), output.cost.double().numpy()
    prior = output.probabilities.double().numpy()
    weights = output.weights.double().numpy()
    each = task.model.experts(drawn(20, seed=3).x)[1].detach().double().numpy()
    mixed = np.einsum("be,ebd->bd", weights, each)
    every = np.arange(20)
    among = np.argsort(-(weights + prior), axis=1, kind="stable")[:, :candidates]
    chosen = among[every, np.take_along_axis(cost, among, 1).argmin(1)]
    wanted = {
        "fvu": residuals[every, chosen].sum() / total,
        "fvu_gate": residuals[every, weights.argmax(1)].sum() / total,
        "fvu_best_expert": residuals[every, cost.argmin(1)].sum() / total,
        "fvu_mixture": ((x - mixed) ** 2).sum() / total,
        "cost": -np.log((prior * np.exp(-cost)).sum(1)).mean() / 6,
    }
    assert metrics == pytest.approx(wanted, rel=1e-5)
    if selection == "threshold":
        assert (weights.argmax(1) != prior.argmax(1)).any(), "the rule must matter here"


def test_a_perfect_model_leaves_nothing_unexplained():
    orthonormal = replace(SMALL, atoms=6, sparsities=(6, 6, 6), threshold=None, centers=False)
    task = small_task(orthonormal)
    with torch.no_grad():
        task.model.experts.atoms.copy_(torch.linalg.qr(torch.randn(3, 6, 6)).Q)
    task.model.experts.search_step(drawn().x)
    metrics = task.evaluate(task.model, "validation")
    assert max(metrics[name] for name in ("fvu", "fvu_best_expert", "fvu_mixture")) < 1e-10


def test_state_dict_round_trip():
    first, second = small_task(), small_task()
    first.step(first.model, torch.arange(10), 0)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second.load_state_dict(state)
    assert torch.equal(second.state_dict()["used"], first.state_dict()["used"])
    assert second.state_dict()["used"].dtype == torch.bool and second.state_dict()["used"].any()


# ---- bad calls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sum"}, "objective.kind: expected 'mixture' or 'expected', got 'sum'"),
        ({"balance": -1.0}, "objective.balance: expected a number >= 0, got -1.0"),
        ({"coherence": float("nan")}, "objective.coherence"),
        ({"revive_every": -1}, "objective.revive_every"),
        ({"noise": -0.1}, "objective.noise"),
        ({"step_lr_scale": -1.0}, "objective.step_lr_scale"),
        ({"revive_until": -1}, "objective.revive_until: expected a step >= 0 or None, got -1"),
        ({"contrastive": 1.0}, r"objective.contrastive: expected 0 for a model without a head"),
    ],
)
def test_bad_objectives_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        small_task(**changes)


@pytest.mark.parametrize("batch_size", [0, 41])
def test_a_batch_size_that_does_not_fit_the_rows(batch_size):
    with pytest.raises(ValueError, match=r"multiple of 1 ranks in \[1, 40\] training rows, got"):
        small_task(batch_size=batch_size)


# ---- whole runs


class KilledTask(DictionaryMoETask):
    """Sends itself SIGTERM after one step."""

    killed_after = 0

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step == self.killed_after:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder: Path, killed_after: int = 0, seed: int = 5) -> None:
    torch.manual_seed(0)
    model = DictionaryMoE(replace(SMALL, head=(5, 4)))
    train = drawn()
    model.initialize(train.x, train.domain)
    runtime = Runtime.create("cpu")
    objective = ObjectiveOptions(balance=0.1, contrastive=0.1, coherence=0.1, noise=0.1, revive_every=7)
    task = KilledTask(model, train, drawn(20, seed=3), objective, runtime, batch_size=8, seed=seed)
    task.killed_after = killed_after
    stage = Stage(
        steps=30,
        optimizer=OptimizerOptions(name="adam", lr=1e-2, schedule="cosine", clip_norm=1.0),
        intervals=Intervals(log_every=4, eval_every=10, save_every=12),
    )
    Trainer(task, stage, runtime, folder).fit("auto")


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("through")
    run(folder)
    return folder


def test_one_seed_gives_equal_bits_and_another_does_not(tmp_path, through):
    torch.rand(5)
    run(tmp_path / "again")
    run(tmp_path / "other", seed=6)
    assert finished_files(tmp_path / "again") == finished_files(through)
    assert timeless_records(tmp_path / "again") == timeless_records(through)
    weights = "model.safetensors"
    assert finished_files(tmp_path / "other")[weights] != finished_files(through)[weights]


@pytest.mark.parametrize("step", [3, 7, 14, 29])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, through, step):
    with pytest.raises(TrainingInterrupted) as stopped:
        run(tmp_path, killed_after=step)
    assert stopped.value.step == step
    run(tmp_path)
    assert finished_files(tmp_path) == finished_files(through)
    assert timeless_records(tmp_path) == timeless_records(through)


def test_training_lowers_the_loss(through):
    losses = [r["values"]["loss"] for r in timeless_records(through) if r["split"] == "train"]
    assert losses[-1] < losses[0] - 0.1
