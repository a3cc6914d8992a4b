"""The artefacts in the headline numbers of the source documents: each test fails on their rule and passes on ours.

Legend: B rows, E experts, M atoms.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stratcore.analysis.gating import weighted_sparsity
from stratcore.data.synthetic import StrataOptions, union_of_strata
from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import OptimizerOptions, Runtime, Stage, StepResult, Trainer
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")
LEVELS = (8, 12, 16, 20, 24, 28, 32)


# ---- D0: a gate without gradient has mean sparsity 20.0 in every stratum


class SourceRuleTask(DictionaryMoETask):
    """The step of the source documents' code planted in our task.

    The expert is chosen by its index among the eligible, the loss is contrastive on a head over its code alone,
    and no reconstruction enters it.
    """

    def step(self, model: nn.Module, batch: Tensor, micro: int) -> StepResult:
        rows = self._splits["train"]
        x, label = rows.x[batch], rows.domain[batch]
        p_BE = model.gate(x).softmax(-1)
        eligible_BE = p_BE >= 0.5 * p_BE.amax(-1, keepdim=True)
        chosen_B = [
            min((LEVELS[e], e) for e in range(len(LEVELS)) if eligible[e])[1] for eligible in eligible_BE
        ]
        codes_EBM = model.experts.encode(x)
        selected_BM = torch.stack([codes_EBM[e, row] for row, e in enumerate(chosen_B)])
        embedding = model.head(selected_BM)
        distance_BB = (embedding[:, None] - embedding[None]).square().sum(-1).clamp_min(1e-12).sqrt()
        same_BB = label[:, None] == label[None]
        loss = torch.where(same_BB, distance_BB**2, (1 - distance_BB).clamp_min(0) ** 2).mean()
        weight = torch.tensor(float(len(x)))
        return StepResult(loss_sum=loss * weight, weight=weight, metrics={"loss": loss.detach()})


def strata() -> Rows:
    """Flat strata of dimension 2, 8, 16 and 32 in 64: they need sparsities as unlike."""
    drawn = union_of_strata(
        StrataOptions(
            kinds=("plane",) * 4,
            dims=(2, 8, 16, 32),
            ambient=64,
            points=400,
            radius=3.0,
            center_distance=4.0,
            noise=0.05,
        )
    )
    return Rows(torch.from_numpy(drawn.points).float(), torch.from_numpy(drawn.stratum).long())


def new_task(kind: type[DictionaryMoETask], rows: Rows) -> DictionaryMoETask:
    """The architecture of the source documents at a random start."""
    torch.manual_seed(0)
    options = DictionaryMoEOptions(
        input_dim=64,
        atoms=32,
        sparsities=LEVELS,
        num_steps=4,
        form="classic",
        per_step=True,
        threshold=None,
        centers=False,
        query_dim=128,
        energy_rank=0,
        selection="threshold",
        rate=0.0,
        head=(32, 64),
    )
    model = DictionaryMoE(options)
    model.experts.search_step(rows.x)
    objective = ObjectiveOptions(kind="expected", contrastive=1.0)
    return kind(model, rows, rows, objective, Runtime.create("cpu"), batch_size=8, seed=0)


def sparsity_of_strata(model: DictionaryMoE, rows: Rows) -> list[float]:
    """Mean over each stratum of sum_k p_k s_k, as the source documents' table has it."""
    with torch.no_grad():
        p_BE = model.gate(rows.x).double().softmax(-1).numpy()
    return [row.weighted_sparsity for row in weighted_sparsity(p_BE, LEVELS, rows.domain.numpy())]


def check_gate_is_trained(kind: type[DictionaryMoETask], model: DictionaryMoE, rows: Rows) -> None:
    """Raises unless a step of this kind of task reaches gate and dictionary, and the gate has left its start."""
    probe = new_task(kind, rows)
    probe.step(probe.model, torch.arange(8), 0).loss_sum.backward()
    for name, parameter in [*probe.model.gate.named_parameters(), ("atoms", probe.model.experts.atoms)]:
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"
    for name, parameter in model.gate.named_parameters():
        assert not torch.equal(parameter, probe.model.gate.get_parameter(name)), f"{name} is at its start"
    found = sparsity_of_strata(model, rows)
    assert max(abs(value - 20) for value in found) > 3, f"as a uniform gate: {found}"
    assert max(found) - min(found) > 3, f"the same in every stratum: {found}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[type, DictionaryMoETask]:
    """Our task and the planted one after the same 300 steps."""
    tasks = {}
    for kind in (DictionaryMoETask, SourceRuleTask):
        tasks[kind] = new_task(kind, strata())
        stage = Stage(steps=300, optimizer=OptimizerOptions(name="adam", lr=3e-3))
        Trainer(tasks[kind], stage, Runtime.create("cpu"), Path(tmp_path_factory.mktemp("run"))).fit()
    return tasks


def test_d0_untrained_gate(trained):
    rows, start = strata(), new_task(SourceRuleTask, strata())
    start.step(start.model, torch.arange(8), 0).loss_sum.backward()
    untouched = {name for name, p in start.model.named_parameters() if p.requires_grad and p.grad is None}
    assert {"experts.atoms", "gate.keys", "gate.query.weight", "gate.query.bias"} <= untouched

    source = trained[SourceRuleTask].model
    for name, parameter in start.model.gate.named_parameters():
        assert torch.equal(source.gate.get_parameter(name), parameter), name
    assert not torch.equal(source.head[0].weight, start.model.head[0].weight), "something was trained"
    assert sparsity_of_strata(source, rows) == pytest.approx([20.0] * 4, abs=1.0)

    check_gate_is_trained(DictionaryMoETask, trained[DictionaryMoETask].model, rows)


def test_d0_is_red_on_the_source_rule_and_on_a_gate_put_back(trained):
    rows = strata()
    with pytest.raises(AssertionError, match="gets no gradient"):
        check_gate_is_trained(SourceRuleTask, trained[DictionaryMoETask].model, rows)
    with pytest.raises(AssertionError, match="is at its start"):
        check_gate_is_trained(DictionaryMoETask, trained[SourceRuleTask].model, rows)
    put_back = DictionaryMoE(trained[DictionaryMoETask].model.options)
    put_back.load_state_dict(trained[DictionaryMoETask].model.state_dict())
    put_back.gate.load_state_dict(new_task(DictionaryMoETask, rows).model.gate.state_dict())
    with pytest.raises(AssertionError, match="is at its start"):
        check_gate_is_trained(DictionaryMoETask, put_back, rows)
    with torch.no_grad():
        for parameter in put_back.gate.parameters():
            parameter.add_(1e-4 * torch.randn_like(parameter))
    with pytest.raises(AssertionError, match="as a uniform gate"):
        check_gate_is_trained(DictionaryMoETask, put_back, rows)
