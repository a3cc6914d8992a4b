"""Differences of paired trials: bootstrap interval and exact test. Legend: N pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_EXACT = 16  # pairs: 2^16 signs are enumerated, of more pairs 2^16 are drawn


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of paired differences.

    Args:
        value: the mean.
        low, high: bias-corrected and accelerated bootstrap interval; None for a single pair, and both equal to the
            mean where all differences are equal.
        p_value: two-sided, of the sign-flip test; 1 where no pair differs.
        num_pairs: N.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float
    num_pairs: int


def paired_difference(
    differences: Sequence[float], level: float = 0.95, *, draws: int = 9999, seed: int = 0
) -> PairedDifference:
    """Mean of N paired differences with its BCa interval and the p value of the sign-flip test.

    Args:
        differences: one a pair, finite.
        level: of the interval.
        draws: of the bootstrap.
        seed: of the bootstrap, and of the signs where there are more than 16 pairs.

    Raises:
        ValueError: no pair, a difference that is not finite, or a level outside (0, 1).

    Numerics: the test is exact for N <= 16: the share of the 2^N sign patterns whose mean is as far from 0 as the
        one seen, so never below 2 / 2^N.
    Determinism: a function of the arguments.
    Source: B. Efron, Better bootstrap confidence intervals, JASA 1987 (through scipy.stats.bootstrap).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"differences: expected at least one number, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences: expected finite numbers, got {values[~np.isfinite(values)][0]}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share in (0, 1), got {level}")
    mean = float(values.mean())
    low: float | None
    high: float | None
    low, high = (None, None) if values.size == 1 else (mean, mean)
    if np.ptp(values) > 0:
        low, high = _interval(values, level, draws, seed)
    return PairedDifference(
        value=mean, low=low, high=high, p_value=_sign_flip(values, seed), num_pairs=values.size
    )


def _interval(values: np.ndarray, level: float, draws: int, seed: int) -> tuple[float, float]:
    from scipy import stats

    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=draws,
        method="BCa",
        rng=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    return float(found.low), float(found.high)


def _sign_flip(values: np.ndarray, seed: int) -> float:
    count = values.size
    if count <= LARGEST_EXACT:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        signs = 1.0 - 2.0 * bits
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(2**LARGEST_EXACT, count))
        signs[0] = 1.0
    means = np.abs(signs @ values)
    # Patterns that give the same sum in another order must count, rounding or not.
    return float((means >= abs(values.sum()) * (1 - 1e-12) - 1e-300).mean())
