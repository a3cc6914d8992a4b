"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Averaging of the weights.

    Args:
        decay: Share of the old average that one step keeps.
        warmup: Whether the n-th update (from 0) keeps at most (1 + n) / (10 + n), so that the average does
            not remember the start weights for long.
    """

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"average.decay: expected a number in [0, 1), got {self.decay!r}")


class WeightAverage:
    """The average a <- d a + (1 - d) w of a model's trainable weights w.

    Buffers are not averaged: an evaluation under the average sees the model's present buffers.

    Args:
        model: Its trainable parameters are followed, in place, for the life of this object.
        options: Decay and warm-up.

    Cost:
        One copy of the trainable weights; one fused pass over them a step.
    """

    def __init__(self, model: nn.Module, options: AverageOptions) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._options = options
        self._names = list(named)
        self._weights = [p.detach() for p in named.values()]
        self._average = [w.clone() for w in self._weights]
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = self._options.decay
        if self._options.warmup:
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the average within the block; its own weights come back bitwise after it."""
        own = [w.clone() for w in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the average by parameter name and the number of updates."""
        return {"updates": self._updates, "weights": dict(zip(self._names, self._average, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: The parameter names differ.
        """
        if list(state["weights"]) != self._names:
            differing = sorted(set(state["weights"]) ^ set(self._names))
            raise ValueError(f"the saved average belongs to other parameters: {differing[:5]}")
        for own, saved in zip(self._average, state["weights"].values(), strict=True):
            own.copy_(saved)
        self._updates = state["updates"]
