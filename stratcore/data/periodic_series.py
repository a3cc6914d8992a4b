"""Series with a period of a day and of a week, as a Gaussian process whose best forecast is known.

Legend: B series, T values, N = T - 1 tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stratcore.data.sequences import PlacedTensors, Sequences, SequenceShape


@dataclass(frozen=True, kw_only=True)
class DayWeekOptions:
    """Shares of the variance, which sum to 1, and their lengths.

    Args:
        days: of a week.
        hours: of a day.
        weeks: of a series.
        day: variance of what every day has alike.
        noise: variance of what has no period; the rest of 1 is what the same days of the week have alike.
        smoothness: of both, length scale on a circle; small ones are rough.
        memory: correlation of the noise with that of an hour before.
    """

    days: int = 7
    hours: int = 24
    weeks: int = 2
    day: float = 0.3
    noise: float = 0.2
    smoothness: float = 0.5
    memory: float = 0.6

    def __post_init__(self) -> None:
        if self.days < 2 or self.hours < 2 or self.weeks < 1:
            raise ValueError(
                "days: expected at least 2, as for hours, and a week or more, got "
                f"{self.days}, {self.hours} and {self.weeks}"
            )
        if self.day < 0 or not self.noise > 0 or self.day + self.noise > 1:
            raise ValueError(
                f"noise: expected a variance > 0 that is at most 1 with day, got {self.noise} and {self.day}"
            )
        if not self.smoothness > 0:
            raise ValueError(f"smoothness: expected a number > 0, got {self.smoothness}")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory: expected a correlation in [0, 1), got {self.memory}")


class DayWeekSeries:
    """Values hour by hour of a Gaussian process of mean 0 and variance 1; the target is the next value.

        cov(t) = day d(t) + week d(t) w(t) + noise memory^|t|
        d(t) = exp(-2 sin^2(pi t / hours) / smoothness^2),  w the same with the hours of a week

    The first term repeats every day, the second every week and is unlike on different days. Tokens lie on a lattice
    days x hours, around which the series goes week after week.

    The floor of the loss is that of the best forecast from all values before: the mean of the conditional variances,
    which are the squared diagonal of the covariance's Cholesky factor. `memory^2` short of 1 of the noise is what
    remains where all profiles are known.
    """

    parts: tuple[str, ...] = ("test",)

    def __init__(self, options: DayWeekOptions) -> None:
        self.options = options
        week = options.days * options.hours
        values = week * options.weeks + 1
        self.shape = SequenceShape(
            lattice=(options.days, options.hours),
            length=values - 1,
            in_channels=1,
            outputs=1,
            labels=False,
            causal=True,
        )
        lag_T = torch.arange(values)
        factor_TT = torch.linalg.cholesky(self.covariance(lag_T[:, None] - lag_T))
        self.floor: float | None = float(factor_TT.diagonal()[1:].square().mean())
        self._factor = PlacedTensors(factor_TT.float())

    def covariance(self, lag: Tensor) -> Tensor:
        """Covariance of two values so many hours apart, float64."""
        options = self.options
        daily = _periodic(lag, options.hours, options.smoothness)
        weekly = _periodic(lag, options.days * options.hours, options.smoothness)
        week = 1 - options.day - options.noise
        noise = options.noise * options.memory ** lag.abs().double()
        return options.day * daily + week * daily * weekly + noise

    def draw(self, count: int, generator: torch.Generator, part: str = "train") -> Sequences:
        """Draw series: values [count, N, 1] and the ones after them."""
        (factor_TT,) = self._factor.on(generator.device)
        noise_BT = torch.randn(count, len(factor_TT), generator=generator, device=generator.device)
        value_BT1 = (noise_BT @ factor_TT.T)[..., None]
        return Sequences(value_BT1[:, :-1], value_BT1[:, 1:])


def _periodic(lag: Tensor, period: int, smoothness: float) -> Tensor:
    turn = math.pi * lag.double().remainder(period) / period
    return torch.exp(-2 * torch.sin(turn).square() / smoothness**2)
