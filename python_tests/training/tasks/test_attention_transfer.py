"""Legend: B rows, L tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.huggingface.hosts import host
from python_tests.training.tasks.token_cases import token_rows
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.models.toroidal_lm import copy_attentions
from stratcore.training import OptimizerOptions, Runtime, Stage, Trainer
from stratcore.training.tasks import AttentionTransferTask

pytestmark = pytest.mark.usefixtures("single_thread")
LAYERS = (0, 2)


def task(name: str = "llama", projections: str = "host", **torus: Any) -> AttentionTransferTask:
    own = host(name)
    teachers = copy_attentions(own, LAYERS)
    form = ToroidalBranchOptions(**{"gate": "open", "lambda_distance": 0.3, **torus})
    model = ToroidalLM(own, ToroidalLMOptions(layers=LAYERS, torus=form, projections=projections))
    model.train_only("replaced")
    rows, held = token_rows(), token_rows(8, seed=1)
    return AttentionTransferTask(
        model, model.attentions(), teachers, rows, held, Runtime.create("cpu"), batch_size=4, seed=0
    )


def test_the_error_is_that_of_each_layer_on_the_hosts_own_stream() -> None:
    own, plain = task(), host("llama")
    ids = next(iter(own.batches(0, 0)))
    seen: dict[int, tuple[Any, Any]] = {}
    for index in LAYERS:
        plain.model.layers[index].self_attn.register_forward_hook(
            lambda module, args, kwargs, out, index=index: seen.update({index: (kwargs, out[0])}),
            with_kwargs=True,
        )
    with torch.no_grad():
        plain(ids, use_cache=False)
        students = own.model.attentions()  # type: ignore[operator]
        expected = sum(float((students[i](**seen[i][0])[0] - seen[i][1]).square().mean()) for i in LAYERS)
    result = own.step(own.model, ids, 0)
    assert float(result.metrics["loss"]) == pytest.approx(expected, rel=1e-5) and expected > 1e-3
    assert (result.loss_sum / result.weight).item() == pytest.approx(expected, rel=1e-5)


def test_no_error_of_one_layer_reaches_another() -> None:
    own = task()
    ids = next(iter(own.batches(0, 0)))

    def second_error() -> tuple[float, torch.Tensor]:
        own.model.zero_grad()
        result = own.step(own.model, ids, 0)
        result.loss_sum.backward()
        gradient = own.model.host.model.layers[2].self_attn.q_proj.weight.grad  # type: ignore[union-attr]
        return float(result.metrics["relative_error/2"]), gradient.clone()  # type: ignore[operator]

    before = second_error()
    with torch.no_grad():
        own.model.host.model.layers[0].self_attn.o_proj.weight.mul_(3)  # type: ignore[union-attr, operator]
    after = second_error()
    assert before[0] == after[0] and torch.equal(before[1], after[1])


def test_a_step_in_a_graph_gives_teacher_and_student_caches_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = task()
    ids = next(iter(own.batches(0, 0)))
    expected = own.step(own.model, ids, 0)
    for name in ("is_available", "is_current_stream_capturing"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: True)
    assert torch.equal(own.step(own.model, ids, 0).loss_sum, expected.loss_sum)


def test_only_replaced_attentions_get_gradients() -> None:
    own = task()
    own.step(own.model, next(iter(own.batches(0, 0))), 0).loss_sum.backward()
    reached = {name for name, p in own.model.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in own.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[3] for name in reached if name.startswith("host.")} == {"0", "2"}


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_it_brings_drawn_layers_near_the_host(name: str, tmp_path: Path) -> None:
    own = task(name, projections="random")
    own.model.eval()
    with torch.no_grad():
        start = own.evaluate(own.model, "validation")
    stage = Stage(steps=60, optimizer=OptimizerOptions(lr=1e-2))
    end = Trainer(own, stage, Runtime.create("cpu"), tmp_path).fit().metrics
    for number in LAYERS:
        assert end[f"relative_error/{number}"] < 0.6 * start[f"relative_error/{number}"]


def test_layers_without_a_teacher_are_refused() -> None:
    own = host("llama")
    teachers = copy_attentions(own, (0,))
    model = ToroidalLM(own, ToroidalLMOptions(layers=LAYERS))
    with pytest.raises(ValueError, match=r"teachers: expected layers \[0, 2\], got \[0\]"):
        AttentionTransferTask(
            model, model.attentions(), teachers, token_rows(), token_rows(), Runtime.create("cpu"),
            batch_size=4, seed=0,
        )  # fmt: skip
