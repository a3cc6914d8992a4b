import pytest

from python_tests.training.toy import ToyTask
from stratcore.training import (
    AverageOptions,
    Intervals,
    Numerics,
    OptimizerOptions,
    Retention,
    Runtime,
    Stage,
    Task,
)


def test_the_toy_is_a_task():
    assert isinstance(ToyTask(Runtime.create("cpu")), Task)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(steps=0), r"stage\.steps: expected an integer >= 1, got 0"),
        (lambda: Stage(steps=1, name=""), r"stage\.name"),
        (lambda: Stage(steps=1, accumulate=0), r"stage\.accumulate"),
        (lambda: Stage(steps=1, seed=-1), r"stage\.seed"),
        (
            lambda: Stage(steps=3, optimizer=OptimizerOptions(warmup_steps=4)),
            r"optimizer\.warmup_steps.*3.*4",
        ),
        (lambda: Intervals(log_every=-1), r"intervals\.log_every"),
        (
            lambda: Numerics(precision="fp8"),
            r"numerics\.precision: expected one of fp32, bf16, fp16, got 'fp8'",
        ),
        (lambda: Numerics(max_bad_steps=0), r"numerics\.max_bad_steps"),
        (lambda: Retention(save_total_limit=0), r"retention\.save_total_limit"),
        (lambda: Retention(best_mode="low"), r"retention\.best_mode"),
        (lambda: AverageOptions(decay=1.0), r"average\.decay"),
    ],
)
def test_options_out_of_range_name_their_key(make, message):
    with pytest.raises(ValueError, match=message):
        make()
