from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stratcore.data.periodic_series import DayWeekOptions, DayWeekSeries
from stratcore.data.sequences import seeded_generator

OPTIONS = DayWeekOptions(days=3, hours=4, weeks=2)


def covariance(lag: int, options: DayWeekOptions = OPTIONS) -> float:
    """By the words of the formula."""
    turns = (math.pi * lag / options.hours, math.pi * lag / (options.hours * options.days))
    daily, weekly = (math.exp(-2 * math.sin(turn) ** 2 / options.smoothness**2) for turn in turns)
    week = 1 - options.day - options.noise
    return options.day * daily + week * daily * weekly + options.noise * options.memory ** abs(lag)


def test_covariance_is_that_of_the_formula_and_of_the_draws() -> None:
    source, lags = DayWeekSeries(OPTIONS), torch.arange(-25, 26)
    wanted = torch.tensor([covariance(lag) for lag in lags.tolist()], dtype=torch.float64)
    torch.testing.assert_close(source.covariance(lags), wanted, rtol=0, atol=1e-14)
    assert covariance(0) == 1 and covariance(12) == pytest.approx(
        0.8, abs=1e-3
    )  # a week later all but the noise
    found = source.draw(40_000, seeded_generator("cpu", 0))
    series = torch.cat([found.inputs[..., 0], found.targets[:, -1:, 0]], 1).double()
    assert series.shape == (40_000, 25)
    sample = series.T @ series / len(series)
    wanted = torch.tensor([[covariance(i - j) for j in range(25)] for i in range(25)], dtype=torch.float64)
    torch.testing.assert_close(sample, wanted, rtol=0, atol=0.03)
    assert torch.equal(found.inputs[:, 1:], found.targets[:, :-1])


def test_the_floor_is_the_error_of_the_best_linear_forecast() -> None:
    """Every value's regression on all before it, solved one by one."""
    matrix = np.array([[covariance(i - j) for j in range(25)] for i in range(25)])
    errors = [
        matrix[t, t] - matrix[t, :t] @ np.linalg.solve(matrix[:t, :t], matrix[:t, t]) for t in range(1, 25)
    ]
    assert DayWeekSeries(OPTIONS).floor == pytest.approx(np.mean(errors), rel=1e-10)


def test_floors_known_by_hand() -> None:
    # Noise alone, without memory: nothing can be told. With it: what an autoregression leaves.
    white = replace(OPTIONS, day=0.0, noise=1.0, memory=0.0)
    assert DayWeekSeries(white).floor == pytest.approx(1)
    assert DayWeekSeries(replace(white, memory=0.6)).floor == pytest.approx(1 - 0.36)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"days": 1}, "days: expected at least 2"),
        ({"noise": 0.0}, "noise: expected a variance > 0"),
        ({"day": 0.9}, "noise: expected a variance > 0 that is at most 1 with day, got 0.2 and 0.9"),
        ({"smoothness": 0.0}, "smoothness: expected a number > 0"),
        ({"memory": 1.0}, r"memory: expected a correlation in \[0, 1\), got 1.0"),
    ],
)
def test_bad_options_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(OPTIONS, **settings)
