import pytest
import torch
from torch import nn

from stratcore.training import AverageOptions, WeightAverage


def test_average_equals_its_formula_with_warmup():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, AverageOptions(decay=0.8))
    expected = model.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model.weight.add_(1.0)
        decay = min(0.8, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update()
    torch.testing.assert_close(average.state_dict()["weights"]["weight"], expected, rtol=1e-6, atol=1e-6)


def test_applied_holds_the_average_and_gives_the_weights_back_bitwise():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, AverageOptions(decay=0.5, warmup=False))
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(1 / 3)
    own = model.weight.detach().clone()
    average.update()
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        torch.testing.assert_close(model.weight.detach(), (start + own) / 2)
        raise RuntimeError("inside")
    assert torch.equal(model.weight, own)


def test_state_of_another_model_is_refused():
    state = WeightAverage(nn.Linear(3, 2), AverageOptions()).state_dict()
    with pytest.raises(ValueError, match="other parameters"):
        WeightAverage(nn.Linear(3, 2, bias=False), AverageOptions()).load_state_dict(state)
