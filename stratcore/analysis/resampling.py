"""How intervals and floors are drawn: one set of options for every statistic of the room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Bootstrap and permutation draws.

    Args:
        num_resamples: draws of each kind.
        level: two-sided level of an interval, upper quantile of a floor.
        seed: of the draws.
    """

    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or not 0 < self.level < 1:
            raise ValueError(
                "num_resamples and level: expected at least 1 and a share in (0, 1), "
                f"got {self.num_resamples} and {self.level}"
            )

    def generator(self) -> np.random.Generator:
        """A fresh generator from the seed."""
        return np.random.default_rng(self.seed)

    def interval(self, draws: np.ndarray) -> tuple[float, float]:
        """Percentile interval of draws."""
        low, high = np.quantile(draws, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its two-sided confidence interval; without bounds (NaN) where one draw gave it."""

    value: float
    low: float
    high: float


def mean_interval(draws: np.ndarray, level: float = 0.95) -> Interval:
    """Mean of independent draws with Student's t interval.

    Args:
        draws: [R], R >= 1; one draw has no interval.
        level: two-sided.
    """
    value, count = float(np.mean(draws)), len(draws)
    if count < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    half = float(student_t.ppf((1 + level) / 2, count - 1) * np.std(draws, ddof=1) / np.sqrt(count))
    return Interval(value=value, low=value - half, high=value + half)
