"""A step as a CUDA graph: refused where it cannot be, and the same bits where it can."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from python_tests.training.toy import ToyTask, finished_files, timeless_records, toy_stage, toy_trainer
from stratcore.training import Numerics, OptimizerOptions, Runtime, StepResult, Trainer, TrainingInterrupted
from stratcore.training.step_graph import CapturedStep, _fill, _map

GRAPH = Numerics(cuda_graph=True)


class CapturableToy(ToyTask):
    """Without what the host keeps: no queue, no controller; shapes that stay."""

    capturable = True

    def step(self, model, batch, micro):
        x_BD, y_B = batch
        error_B = (model(x_BD).squeeze(1) - y_B).square()
        weight = x_BD.new_full((), len(x_BD))
        return StepResult(loss_sum=error_B.sum(), weight=weight, metrics={"error": error_B.detach().mean()})

    def after_control(self, metrics):
        pass


def test_refused_where_a_graph_cannot_hold_the_step(tmp_path):
    for other in ({"precision": "fp16"}, {"gradient_checkpointing": True}):
        with pytest.raises(
            ValueError, match="cuda_graph: expected False with precision fp16 or gradient_checkpointing, got"
        ):
            Numerics(cuda_graph=True, **other)
    with pytest.raises(ValueError, match="expected one process on a GPU, got 1 on cpu"):
        toy_trainer(tmp_path, numerics=GRAPH)


def test_batches_of_any_build_are_copied_and_compared():
    batch = {"x": torch.ones(2, 3), "rest": (torch.zeros(2), [torch.ones(1)], "name", 3)}
    own = [_map(torch.clone, batch)]
    batch["x"] += 1
    _fill(own, [batch])
    assert own[0]["x"] is not batch["x"] and torch.equal(own[0]["x"], batch["x"])
    assert own[0]["rest"][2:] == ("name", 3)
    batch["x"] = torch.ones(3, 3)
    with pytest.raises(
        ValueError, match=r"expected micro-batches that are all alike, .*\[2, 3\], got .*\[3, 3\]"
    ):
        _fill(own, [batch])


@pytest.mark.cuda
def test_cuda_refusals(tmp_path):
    runtime = Runtime.create("cuda")
    with pytest.raises(ValueError, match="expected a task that is capturable as it is set up, got ToyTask"):
        Trainer(ToyTask(runtime), toy_stage(numerics=GRAPH), runtime, tmp_path)
    stage = toy_stage(numerics=GRAPH, optimizer=OptimizerOptions(name="sgd", lr=0.1))
    with pytest.raises(ValueError, match="expected False with optimizer.name 'sgd'"):
        Trainer(CapturableToy(runtime), stage, runtime, tmp_path)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_replays_give_the_bits_of_the_step_and_resume(tmp_path, precision):
    runtime = Runtime.create("cuda")

    def train(name, graph, stop=None, resume=None):
        task = CapturableToy(runtime)
        task.after_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop else None
        stage = toy_stage(numerics=Numerics(precision=precision, cuda_graph=graph))
        return Trainer(task, stage, runtime, tmp_path / name).fit(resume)

    train("eager", False)
    train("graph", True)
    with pytest.raises(TrainingInterrupted):
        train("broken", True, stop=17)
    train("broken", True, resume="auto")
    assert timeless_records(tmp_path / "graph") == timeless_records(tmp_path / "eager")
    assert timeless_records(tmp_path / "broken") == timeless_records(tmp_path / "graph")
    whole, broken, eager = (finished_files(tmp_path / name) for name in ("graph", "broken", "eager"))
    assert whole == broken
    assert {name: whole[name] for name in whole if "model" in name or "average" in name} == {
        name: eager[name] for name in eager if "model" in name or "average" in name
    }


@pytest.mark.cuda
def test_cuda_replays_draw_new_random_numbers():
    weight = torch.zeros(4, device="cuda")

    def step(batches):
        weight.add_(torch.rand_like(weight) * batches[0])
        return weight.clone()

    run, seen = CapturedStep(step), []
    torch.manual_seed(0)
    for _ in range(6):
        seen.append(run([torch.ones(4, device="cuda")]).clone())
    torch.manual_seed(0)
    weight.zero_()
    assert all(torch.equal(step([torch.ones(4, device="cuda")]), each) for each in seen)
