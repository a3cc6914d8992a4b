"""Which modules get no gradient? Shares of the gradient norm by module, over a rolling window of steps.

Legend: T steps, M modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class ModuleGradient:
    """Gradient of one module.

    Args:
        module: its name.
        share: mean share of the gradient norm over the last window.
        baseline: share that it would have if all parameters had gradients of one size, or 1 / M.
        lowest: least ratio of share to baseline over all windows.
        starved: the last window lies below the threshold.
        first_starved: step, from 0, at which the first window below the threshold ends; None if none does.
    """

    module: str
    share: float
    baseline: float
    lowest: float
    starved: bool
    first_starved: int | None


@dataclass(frozen=True, kw_only=True)
class GradientStarvation:
    """Modules in the order given, and the number of steps at which no module had a gradient at all."""

    modules: tuple[ModuleGradient, ...]
    num_steps: int
    num_silent_steps: int
    window: int
    threshold: float

    @property
    def starved(self) -> tuple[str, ...]:
        """Names of the modules that are starved in the last window."""
        return tuple(module.module for module in self.modules if module.starved)


def gradient_starvation(
    norms: Mapping[str, ArrayLike],
    *,
    num_parameters: Mapping[str, int] | None = None,
    window: int = 50,
    threshold: float = 0.01,
) -> GradientStarvation:
    """Flag modules whose share of the gradient norm stays far below what their size accounts for.

        share_m(t) = |g_m(t)| / sqrt(sum_l |g_l(t)|^2),    flagged where mean over the window < threshold * baseline_m

    Args:
        norms: Euclidean norm of the gradient of each module at each step, name -> [T].
        num_parameters: of each module; the baseline is then sqrt(P_m / sum P), the share of a gradient whose entries
            are all of one size. None takes sqrt(1 / M).
        window: steps of a rolling mean, at most T of them are used.
        threshold: least share over baseline, > 0.

    Returns:
        GradientStarvation. At a step without any gradient every share is 0.

    Raises:
        ValueError: no module, no step, unlike numbers of steps, a norm that is negative or not finite (its module and
            step are named), or an option out of range.
    """
    norm_MT = _norms(norms)
    if window < 1 or not threshold > 0:
        raise ValueError(
            f"window and threshold: expected at least 1 and above 0, got {window} and {threshold}"
        )
    baseline_M = _baseline(list(norms), num_parameters)
    largest_T = norm_MT.max(axis=0)
    scaled_MT = norm_MT / np.where(largest_T > 0, largest_T, 1)
    total_T = np.linalg.norm(scaled_MT, axis=0)
    share_MT = scaled_MT / np.where(total_T > 0, total_T, 1)
    width = min(window, norm_MT.shape[1])
    rolling_MT = np.lib.stride_tricks.sliding_window_view(share_MT, width, axis=1).mean(axis=-1)
    modules = []
    for name, share_T, baseline in zip(norms, rolling_MT, baseline_M, strict=True):
        below = share_T < threshold * baseline
        modules.append(
            ModuleGradient(
                module=str(name),
                share=float(share_T[-1]),
                baseline=float(baseline),
                lowest=float(share_T.min() / baseline),
                starved=bool(below[-1]),
                first_starved=int(below.argmax()) + width - 1 if below.any() else None,
            )
        )
    return GradientStarvation(
        modules=tuple(modules),
        num_steps=norm_MT.shape[1],
        num_silent_steps=int((largest_T == 0).sum()),
        window=width,
        threshold=threshold,
    )


def _norms(norms: Mapping[str, ArrayLike]) -> np.ndarray:
    if not norms:
        raise ValueError("norms: expected at least one module")
    rows = {name: np.atleast_1d(np.asarray(values, dtype=np.float64)) for name, values in norms.items()}
    length = {name: row.shape for name, row in rows.items()}
    first = next(iter(length.values()))
    for name, shape in length.items():
        if len(shape) != 1 or shape != first or shape[0] == 0:
            raise ValueError(f"norms: {name!r}: expected {first[0]} steps, at least 1, got shape {shape}")
        bad_T = ~(np.isfinite(rows[name]) & (rows[name] >= 0))
        if bad_T.any():
            step = int(bad_T.argmax())
            raise ValueError(
                f"norms: {name!r}: step {step}: expected a finite norm >= 0, got {rows[name][step]}"
            )
    return np.stack(list(rows.values()))


def _baseline(names: list[str], num_parameters: Mapping[str, int] | None) -> np.ndarray:
    if num_parameters is None:
        return np.full(len(names), len(names) ** -0.5)
    missing = [name for name in names if not num_parameters.get(name, 0) > 0]
    if missing:
        raise ValueError(f"num_parameters: {missing[0]!r}: expected a number above 0")
    count_M = np.array([num_parameters[name] for name in names], dtype=np.float64)
    return np.sqrt(count_M / count_M.sum())
