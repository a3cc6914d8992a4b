import math

import pytest
import torch

from stratcore.training import OptimizerOptions, build_optimizer, build_schedule

STEPS = 20


def reference_factors(scheduler_of) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = scheduler_of(optimizer)
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize(
    ("options", "scheduler_of"),
    [
        (
            {"schedule": "cosine", "final_lr_fraction": 0.1},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1),
        ),
        (
            {"schedule": "linear", "final_lr_fraction": 0.2},
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, STEPS),
        ),
        (
            {"schedule": "step", "step_size": 6, "gamma": 0.5},
            lambda o: torch.optim.lr_scheduler.StepLR(o, 6, 0.5),
        ),
        ({"schedule": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_equal_torch(options, scheduler_of):
    factor = build_schedule(OptimizerOptions(**options), STEPS)
    assert [factor(t) for t in range(STEPS)] == pytest.approx(reference_factors(scheduler_of), abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_warmup_rises_linearly_to_the_peak_and_the_schedule_starts_there(schedule):
    options = OptimizerOptions(schedule=schedule, warmup_steps=4, step_size=5, gamma=0.5)
    factor = build_schedule(options, STEPS)
    assert [factor(t) for t in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    after_eight = (8 / 16, 0.5 * (1 + math.cos(math.pi / 2)), 1.0, 0.5)
    expected = dict(zip(["linear", "cosine", "constant", "step"], after_eight, strict=True))
    assert factor(12) == pytest.approx(expected[schedule])


def test_warmup_may_fill_the_stage():
    factor = build_schedule(OptimizerOptions(schedule="cosine", warmup_steps=STEPS), STEPS)
    assert factor(STEPS - 1) == 1.0


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (
            {"name": "adam", "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6},
            lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        ),
        ({"name": "adamw", "weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1)),
        (
            {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
        ),
    ],
)
def test_update_rules_equal_torch(options, reference):
    own, other = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    built = build_optimizer([{"params": [own]}], OptimizerOptions(lr=0.02, **options))
    plain = reference([other])
    for step in range(6):
        for parameter, optimizer in ((own, built), (other, plain)):
            parameter.grad = torch.sin(torch.arange(5.0) + step)
            optimizer.step()
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_flagged_first_step_leaves_no_trace(name):
    runs = []
    for flagged in (False, True):
        parameter = torch.nn.Parameter(torch.ones(4))
        options = OptimizerOptions(name=name, lr=0.1, momentum=0.9)
        optimizer = build_optimizer([{"params": [parameter]}], options)
        if flagged:
            parameter.grad = torch.full((4,), math.nan)
            optimizer.found_inf = torch.ones(())
            torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
            try:
                optimizer.step()
            finally:
                torch.use_deterministic_algorithms(False)
        optimizer.found_inf = torch.zeros(())
        for _ in range(3):
            parameter.grad = torch.arange(4.0)
            optimizer.step()
        runs.append(parameter.detach().clone())
    assert torch.equal(*runs)


def test_groups_keep_their_own_rate_and_drop_frozen_parameters():
    trained, frozen = (
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
    )
    groups = [{"params": [trained, frozen], "lr": 0.5}, {"params": [frozen]}]
    optimizer = build_optimizer(groups, OptimizerOptions(lr=0.1))
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 1)]


def test_nothing_to_train_and_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        build_optimizer([{"params": []}], OptimizerOptions())
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="float32 or float64.*bfloat16"):
        build_optimizer([{"params": [half]}], OptimizerOptions())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "lion"},
        {"lr": 0.0},
        {"lr": math.inf},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1.0},
        {"eps": 0.0},
        {"momentum": 1.0},
        {"warmup_steps": -1},
        {"schedule": "cos"},
        {"final_lr_fraction": 1.5},
        {"schedule": "step"},
        {"gamma": 0.0},
        {"clip_norm": 0.0},
    ],
)
def test_options_out_of_range_name_their_key(wrong):
    key = "step_size" if wrong == {"schedule": "step"} else next(iter(wrong))
    with pytest.raises(ValueError, match=rf"^optimizer\.{key}: expected .*, got .*$"):
        OptimizerOptions(**wrong)
