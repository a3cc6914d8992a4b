import pytest
import torch

from python_tests.training.toy import ToyTask, toy_trainer
from stratcore.training import Intervals, Numerics, Runtime
from stratcore.training.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_run_in_the_precision_and_weights_stay_float32(name, dtype):
    layer = torch.nn.Linear(3, 2)
    precision = Precision(name, CPU)
    precision.loss_unit = unit = 8.0 if name == "fp16" else 1.0
    with precision.autocast():
        output = layer(torch.ones(1, 3))
    assert output.dtype == dtype
    precision.backward(output.float().sum())
    precision.unscale(torch.optim.SGD(layer.parameters(), lr=0.1))
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad * unit, torch.ones(2, 3))


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 3e-2), ("fp16", 3e-2)])
def test_half_precision_training_stays_near_float32(tmp_path, name, tolerance):
    errors = {}
    for precision in ("fp32", name):
        task = ToyTask(Runtime.create("cpu"), dropout=0.0)
        numerics = Numerics(precision=precision)
        result = toy_trainer(tmp_path / precision, task, numerics=numerics).fit()
        errors[precision] = result.metrics["error"]
        assert result.skipped_steps <= 3
        assert all(p.dtype == torch.float32 for p in task.model.parameters())
    assert errors[name] == pytest.approx(errors["fp32"], rel=tolerance)


def test_fp16_state_holds_scale_and_unit(tmp_path):
    numerics = Numerics(precision="fp16")
    toy_trainer(tmp_path, numerics=numerics, steps=30, intervals=Intervals()).fit()
    trainer = toy_trainer(tmp_path, numerics=numerics, steps=34, intervals=Intervals())
    trainer.fit("auto")
    state = trainer._optimization.precision.state_dict()
    skipped = trainer._optimization.guard.skipped_steps()
    assert state["loss_unit"] == 4.0
    assert state["scaler"]["scale"] == 2.0 ** (16 - skipped)
    assert skipped > 0 or state["scaler"]["_growth_tracker"] == 34
