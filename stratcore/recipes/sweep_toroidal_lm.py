"""One setting of `toroidal_lm` over a grid, every point with its controls on the same texts and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from stratcore.recipes.toroidal_lm import ToroidalLMRun, toroidal_lm

Value = int | float | str
# Grids of the source documents. Layer sets, whose numbers are theirs for 32 layers, go by share of the host's.
GRIDS: dict[str, tuple[Value, ...]] = {
    "depth": (2, 4, 8),
    "lambda": (0.0, 0.05, 0.1, 0.2, 0.5),
    "normalized_lambda": (0.0, 0.05, 0.1, 0.2, 0.5),
    "fusion": ("low_rank", "attention", "mean"),
    "layers": ("input", "input_middle", "quarters", "first_four", "last_four", "ends"),
    "rows": (200, 500, 1000, 5000),
    "epochs": (1, 2, 5),
    "lr": (1e-5, 5e-5, 1e-4, 5e-4),
    "schedule": ("constant", "linear", "cosine"),
    "metric": ("l1", "chordal", "chordal_sq"),
}
LAYER_SETS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "input_middle": lambda count: (0, count // 2),
    "quarters": lambda count: tuple(index * count // 4 for index in range(4)),
    "first_four": lambda count: tuple(range(min(4, count))),
    "last_four": lambda count: tuple(range(max(0, count - 4), count)),
    "ends": lambda count: tuple(sorted({0, min(1, count - 1), max(0, count - 2), count - 1})),
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("depth", "rows", "epochs"), (int,)),
    **dict.fromkeys(("lambda", "normalized_lambda", "lr"), (int, float)),
    **dict.fromkeys(("fusion", "schedule", "metric"), (str,)),
    "layers": (int, str),
}


@dataclass(frozen=True, kw_only=True)
class SweepToroidalLMRun:
    """Train every arm of `base` at every value of one setting; compare within each point.

    Args:
        recipe: name of the recipe that this run is derived from.
        axis: the setting: 'depth', 'lambda' (in scores a token), 'normalized_lambda' (in scores a whole turn, the
            source documents' form), 'fusion', 'layers', 'rows' (training texts), 'epochs', 'lr', 'schedule' or
            'metric'.
        values: of the setting; none: the grid of the source documents. Sets of layers are 'input_middle', 'quarters',
            'first_four', 'last_four', 'ends', and what `model.layers` takes.
        base: all else. A control that a value does not touch is trained once.
    """

    recipe: str = "sweep_toroidal_lm"
    axis: str = "depth"
    values: tuple[Value, ...] = ()
    base: ToroidalLMRun

    def __post_init__(self) -> None:
        if self.axis not in GRIDS:
            raise ValueError(f"axis: expected one of {', '.join(GRIDS)}, got {self.axis!r}")
        for value in self.grid():
            if type(value) not in _KINDS[self.axis]:
                kinds = " or ".join(kind.__name__ for kind in _KINDS[self.axis])
                raise ValueError(f"values: expected {kinds} for axis {self.axis}, got {value!r}")
        if len(set(self.grid())) != len(self.grid()):
            raise ValueError(f"values: expected different ones, got {self.values}")

    def grid(self) -> tuple[Value, ...]:
        """The values."""
        return self.values or GRIDS[self.axis]

    def point(self, value: Value, *, layers: int, period: int, rows: int) -> ToroidalLMRun:
        """The run at one value.

        Args:
            value: of the setting.
            layers: of the host.
            period: of the torus.
            rows: of the training tokens, which an epoch visits once.

        Raises:
            ValueError: a value that does not fit.
        """
        base = self.base
        torus, stage = base.model.torus, base.stage
        change: dict[str, Any] = {self.axis: value}
        if self.axis in ("depth", "fusion", "metric"):
            return replace(base, model=replace(base.model, torus=replace(torus, **change)))
        if self.axis in ("lambda", "normalized_lambda"):
            strength = float(value) / (period if self.axis == "normalized_lambda" else 1)
            # A lambda of 0 is the control itself: behind a gate it could not learn.
            torus = replace(
                torus, lambda_distance=strength, learn_lambda=torus.learn_lambda and strength != 0
            )
            return replace(base, model=replace(base.model, torus=torus))
        if self.axis == "layers":
            named = LAYER_SETS[str(value)](layers) if value in LAYER_SETS else value
            chosen = (named,) if isinstance(named, int) else named
            return replace(base, model=replace(base.model, layers=chosen))  # type: ignore[arg-type]
        if self.axis == "rows":
            return replace(base, data=replace(base.data, rows=int(value)))
        if self.axis == "epochs":
            steps = max(1, int(value) * rows // (base.batch_size * stage.accumulate))
            warmup = min(stage.optimizer.warmup_steps, steps)
            optimizer = replace(stage.optimizer, warmup_steps=warmup)
            return replace(base, stage=replace(stage, steps=steps, optimizer=optimizer))
        optimizer = replace(stage.optimizer, **change)
        return replace(base, stage=replace(stage, optimizer=optimizer))


def sweep_toroidal_lm() -> SweepToroidalLMRun:
    """One setting of toroidal_lm over the grid of the source documents, with matched controls at every point."""
    base = replace(toroidal_lm(), arms=("toroidal", "lambda_0", "standard_random"))
    return SweepToroidalLMRun(base=base)
