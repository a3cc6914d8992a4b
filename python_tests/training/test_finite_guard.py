import math

import pytest
import torch
from torch import nn

from stratcore.training.finite_guard import FiniteGuard, find_non_finite

GOOD, CPU = torch.tensor(1.0), torch.device("cpu")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_either_value_is_judged(bad):
    guard = FiniteGuard(CPU, 3)
    assert not guard.check(torch.ones(2), GOOD)
    assert guard.check(torch.tensor([1.0, bad]), GOOD)
    assert guard.check(GOOD, torch.tensor(abs(bad)))
    assert guard.state_dict() == {"in_a_row": 2, "skipped": 2}


def test_a_good_step_ends_the_row_and_the_limit_stops():
    guard = FiniteGuard(CPU, 2)
    seen = []
    for step, value in enumerate([math.nan, 1.0, math.nan, math.nan], start=1):
        guard.check(torch.tensor(value), GOOD)
        seen.append(guard.exhausted(step))
    assert seen == [False, False, False, True] and guard.skipped_steps() == 3
    restored = FiniteGuard(CPU, 2)
    restored.load_state_dict(guard.state_dict())
    assert restored.exhausted(4)


def test_new_skips_are_logged_once(caplog):
    guard = FiniteGuard(CPU, 5)
    guard.check(torch.tensor(math.nan), GOOD)
    assert guard.skipped_steps() == guard.skipped_steps() == 1
    assert len(caplog.records) == 1 and "1 step(s) skipped" in caplog.text


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def test_the_culprit_is_named():
    model = nn.Sequential(nn.Linear(2, 2), Log(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[0].bias.zero_()
    ones = torch.ones(1, 2)
    assert find_non_finite(model, lambda: model(ones).sum()) == (
        "module '1' gave a non-finite output for finite input"
    )
    assert find_non_finite(model, lambda: model(ones * math.nan).sum()) == (
        "module '0' gave a non-finite output for non-finite input"
    )
    fine = nn.Linear(2, 1)
    assert "loss is not finite" in find_non_finite(fine, lambda: fine(ones).sum() * math.inf)
    assert find_non_finite(fine, lambda: Root.apply(fine(ones)).sum()) == (
        "the gradient of parameter 'weight' is not finite"
    )
    assert "alone is finite" in find_non_finite(fine, lambda: fine(ones).sum())
    with torch.no_grad():
        fine.bias.fill_(math.nan)
    assert find_non_finite(fine, lambda: fine(ones).sum()) == "parameter 'bias' holds a non-finite value"
