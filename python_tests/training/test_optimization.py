import math

import pytest
import torch
from torch import nn

from python_tests.training.toy import ToyTask, toy_trainer
from stratcore.training import (
    Intervals,
    NonFiniteError,
    Numerics,
    OptimizerOptions,
    Retention,
    Runtime,
    StepResult,
)

QUIET = {"intervals": Intervals(log_every=1), "retention": Retention(), "average": None}


def runtime() -> Runtime:
    return Runtime.create("cpu")


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_accumulating_micro_batches_equals_one_batch(tmp_path, name):
    ends = []
    options = OptimizerOptions(name=name, lr=0.02, clip_norm=0.5)
    for batch_size, accumulate in ((12, 1), (6, 2), (3, 4)):
        task = ToyTask(runtime(), batch_size=batch_size, dropout=0.0)
        folder = tmp_path / f"{accumulate}"
        toy_trainer(folder, task, steps=12, accumulate=accumulate, optimizer=options, **QUIET).fit()
        ends.append(weights(task.model))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ends[2], ends[0], rtol=0, atol=1e-6)


class UnevenTask(ToyTask):
    """Masks rows: micro-batches carry different weights, the first of each step none."""

    def step(self, model, batch, micro):
        x_BD, y_B = batch
        mask_B = (torch.arange(len(y_B)) < micro).float()
        error_B = (model(x_BD).squeeze(1) - y_B).square() * mask_B
        return StepResult(loss_sum=error_B.sum(), weight=mask_B.sum())


def test_micro_batches_weigh_by_their_weight(tmp_path):
    task = UnevenTask(runtime(), dropout=0.0)
    reference = ToyTask(runtime(), dropout=0.0)
    batches = [batch for _, batch in zip(range(3), reference.batches(0, 0), strict=False)]
    x_BD = torch.cat([x[:micro] for micro, (x, _) in enumerate(batches)])
    y_B = torch.cat([y[:micro] for micro, (_, y) in enumerate(batches)])
    (reference.model(x_BD).squeeze(1) - y_B).square().mean().backward()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter -= 0.1 * parameter.grad
    options = OptimizerOptions(name="sgd", lr=0.1)
    toy_trainer(tmp_path, task, steps=1, accumulate=3, optimizer=options, **QUIET).fit()
    torch.testing.assert_close(weights(task.model), weights(reference.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_clipping_equals_torch(tmp_path, limit):
    task, reference = (ToyTask(runtime(), dropout=0.0) for _ in range(2))
    x_BD, y_B = next(iter(reference.batches(0, 0)))
    (reference.model(x_BD).squeeze(1) - y_B).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), limit)
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter -= 10.0 * parameter.grad
    options = OptimizerOptions(name="sgd", lr=10.0, clip_norm=limit)
    trainer = toy_trainer(tmp_path, task, steps=1, accumulate=1, optimizer=options, **QUIET)
    trainer.fit()
    torch.testing.assert_close(weights(task.model), weights(reference.model), rtol=0, atol=2e-5)
    assert trainer._optimization._gradient_norm.item() == pytest.approx(norm.item(), rel=1e-6)


class FaultyTask(ToyTask):
    """Plants a non-finite value in the loss, its gradient, a weight or the input at chosen calls of `step`."""

    def __init__(self, faults: dict[int, tuple[str, float]], place: Runtime | None = None) -> None:
        super().__init__(place or runtime(), dropout=0.0)
        self.faults = faults
        self.calls = 0

    def step(self, model, batch, micro):
        kind, value = self.faults.get(self.calls, ("none", 0.0))
        self.calls += 1
        x_BD, y_B = batch
        if kind == "input":
            x_BD = x_BD.clone()
            x_BD[0, 0] = value
        result = super().step(model, (x_BD, y_B), micro)
        loss, weight = result.loss_sum, result.weight
        if kind == "loss":
            loss = loss.detach() * value + 0 * loss
        if kind == "gradient":
            loss.register_hook(lambda gradient: gradient * value)
        if kind == "weight":
            weight = weight * value
        return StepResult(loss_sum=loss, weight=weight, metrics=result.metrics)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_injected_faults_never_reach_the_weights(tmp_path, precision):
    kinds, values = ("input", "loss", "gradient", "weight"), (math.nan, math.inf, -math.inf)
    generator = torch.Generator().manual_seed(0)
    calls = torch.randperm(240, generator=generator)[:50].tolist()
    faults = {call: (kinds[i % 4], values[i % 3]) for i, call in enumerate(calls)}
    task = FaultyTask(faults)
    finite = []
    task.after_step = lambda step: finite.append(torch.isfinite(weights(task.model)).all().item())
    options = OptimizerOptions(lr=0.01, clip_norm=1.0)
    numerics = Numerics(precision=precision)
    trainer = toy_trainer(tmp_path, task, steps=120, optimizer=options, numerics=numerics, **QUIET)
    result = trainer.fit()
    assert result.skipped_steps == len({call // 2 for call in calls})
    assert len(finite) == 120 and all(finite)
    moments = trainer._optimization.optimizer.state_dict()["state"].values()
    assert all(torch.isfinite(tensor).all() for state in moments for tensor in state.values())


def test_skipped_steps_leave_weights_and_moments_bitwise(tmp_path):
    ends = []
    for faults in ({}, {call: ("loss", math.nan) for call in range(20, 26)}):
        task = FaultyTask(faults)
        steps = 10 if not faults else 13
        trainer = toy_trainer(
            tmp_path / str(steps), task, steps=steps, optimizer=OptimizerOptions(lr=0.01), **QUIET
        )
        trainer.fit()
        moments = trainer._optimization.optimizer.state_dict()["state"]
        ends.append([weights(task.model), *(t for state in moments.values() for t in state.values())])
    for own, other in zip(*ends, strict=True):
        assert torch.equal(own, other)


def test_ten_bad_steps_in_a_row_stop_with_the_culprit(tmp_path):
    task = FaultyTask({call: ("input", math.nan) for call in range(10, 100)})
    trainer = toy_trainer(tmp_path, task, steps=40, **QUIET)
    with pytest.raises(NonFiniteError, match="stopped at step 15: .* in 10 steps in a row; module '0'"):
        trainer.fit()
    assert torch.isfinite(weights(task.model)).all()


def test_a_loss_that_reaches_no_parameter_is_named(tmp_path):
    class Detached(ToyTask):
        def step(self, model, batch, micro):
            return StepResult(loss_sum=torch.zeros((), requires_grad=True), weight=torch.ones(()))

    with pytest.raises(ValueError, match=r"Detached\.step: the loss reaches no trainable parameter"):
        toy_trainer(tmp_path, Detached(runtime())).fit()


def test_gradient_checkpointing_is_handed_to_the_model(tmp_path):
    numerics = Numerics(gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"gradient_checkpointing.*got Sequential"):
        toy_trainer(tmp_path, numerics=numerics)
    task, calls = ToyTask(runtime()), []
    task.model.gradient_checkpointing_enable = lambda: calls.append(True)
    toy_trainer(tmp_path, task, numerics=numerics)
    assert calls == [True]
