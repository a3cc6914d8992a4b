"""What the dictionary task does after a step: unit norms, use, and the revival of dead atoms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from python_tests.training.tasks.dictionary_moe_cases import SMALL, drawn, small_task
from stratcore.training import OptimizerOptions
from stratcore.training.optimizer import build_optimizer
from stratcore.training.tasks import Rows

pytestmark = pytest.mark.usefixtures("single_thread")


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
