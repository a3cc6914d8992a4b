"""The objective of the dictionary task, its evaluation and state, bad calls, whole runs."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.training.tasks.dictionary_moe_cases import SMALL, drawn, small_task
from python_tests.training.toy import finished_files, timeless_records
from stratcore.models import DictionaryMoE
from stratcore.training import Intervals, OptimizerOptions, Runtime, Stage, Trainer, TrainingInterrupted
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")


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
