"""Options of attention on a torus, and slopes to start from.

Legend: C channels, H query heads, G key heads, E head size, D depth (slices of a head).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stratcore.layers.depth_fusion import FUSIONS

METRICS = ("l1", "l2", "linf", "chordal", "chordal_sq")
METRICS_PER_AXIS = ("l1", "chordal_sq")


def normalized_slopes(strength: float, lattice: Sequence[int]) -> tuple[float, ...]:
    """Slopes a step that take `strength` off a score for every whole turn of an axis: strength / n_a.

    The source documents' form, lambda sum_a delta_a / n_a, as slopes of metric 'l1'. No score loses more than
    strength / 2 an axis, so a strength of .1 hardly matters.
    """
    return tuple(strength / period for period in lattice)


@dataclass(frozen=True, kw_only=True)
class ToroidalAttentionOptions:
    """Size and form of a `ToroidalAttention`.

    Args:
        dim: C.
        num_heads: H.
        lattice: 1 to 3 periods of the torus, in tokens; part of the model, never the current length.
        num_key_heads: G, a divisor of H; None: H.
        head_dim: E; None: C / H.
        block: sizes that divide the periods: tokens are numbered block after block, see `ops.lattice_order`. None:
            row-major.
        metric: 'l1', 'l2', 'linf', 'chordal' or 'chordal_sq', in units of one token's step (squared).
        slopes: what a step takes off a score. 'alibi': `ops.alibi_slopes`, another for every head; a number; or one
            number an axis (of `axes`), with 'l1' and 'chordal_sq'.
        learn_slopes: slopes are learned from that start, every head's its own, and stay positive.
        causal: later tokens are hidden, in the order of the sequence. In one longer than the lattice, tokens of a
            whole turn ago are near again.
        window: keys at most so many steps away are seen, on a lattice of one axis: around the ring, or with `causal`
            back in the sequence. None: all.
        rotary: queries and keys are turned by a `ToroidalRotary`.
        depth: D, a divisor of E: every head's channels as D slices, one behind the other.
        depth_attention: 'factored': a slice attends to the same slice of other tokens; D times the heads, for the
            cost of one. 'coupled': to all slices of them; depth is one more axis of the lattice, the last, of period
            D. D times the cost.
        fusion: how slices are mixed after that, see `DepthFusion`: 'low_rank', 'attention', 'mean' or None.
        bias: whether the four projections add one.
        dropout: probability, in [0, 1), after the output projection.
        eps: most of a row's probability that may be lost to tiles not looked at, see `ops.toroidal_attention`.
    """

    dim: int
    num_heads: int
    lattice: tuple[int, ...]
    num_key_heads: int | None = None
    head_dim: int | None = None
    block: tuple[int, ...] | None = None
    metric: str = "l1"
    slopes: str | float | tuple[float, ...] = "alibi"
    learn_slopes: bool = False
    causal: bool = False
    window: int | None = None
    rotary: bool = True
    depth: int = 1
    depth_attention: str = "factored"
    fusion: str | None = None
    bias: bool = True
    dropout: float = 0.0
    eps: float = 0.0

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_lattice()
        self._check_slopes()
        if self.depth_attention not in ("factored", "coupled"):
            raise ValueError(
                f"depth_attention: expected 'factored' or 'coupled', got {self.depth_attention!r}"
            )
        if self.fusion is not None and self.fusion not in FUSIONS:
            raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)} or None, got {self.fusion!r}")
        for name in ("dropout", "eps"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")

    def _check_sizes(self) -> None:
        for name in ("dim", "num_heads", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"dim: expected a multiple of num_heads = {self.num_heads} where head_dim is None, got {self.dim}"
            )
        if self.key_heads < 1 or self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads: expected a divisor of num_heads = {self.num_heads}, got {self.key_heads}"
            )
        if self.channels < 1 or self.channels % self.depth:
            raise ValueError(
                f"head_dim: expected a multiple of depth = {self.depth}, got {self.channels} channels a head"
            )
        if self.slice_dim > 256:
            raise ValueError(f"head_dim: expected at most 256 channels a slice, got {self.slice_dim}")

    def _check_lattice(self) -> None:
        for name in ("lattice", "block"):
            value = getattr(self, name)
            if not isinstance(value, tuple) and (name == "lattice" or value is not None):
                raise TypeError(f"{name}: expected a tuple of whole numbers, got {value!r}")
        if not 1 <= len(self.axes) <= 3 or not all(1 <= period <= 2**24 for period in self.lattice):
            raise ValueError(
                f"lattice: expected periods from 1 to 2^24 on 1 to 3 axes, coupled depth included, got {self.axes}"
            )
        if self.block is not None and (
            len(self.block) != len(self.lattice)
            or any(size < 1 or period % size for size, period in zip(self.block, self.lattice, strict=True))
        ):
            raise ValueError(f"block: expected sizes that divide lattice = {self.lattice}, got {self.block}")
        if self.rotary and self.slice_dim < 2 * len(self.axes):
            raise ValueError(
                f"rotary: expected at least {2 * len(self.axes)} channels a slice, two an axis, got {self.slice_dim}"
            )
        if self.window is not None and (self.window < 0 or len(self.lattice) != 1):
            raise ValueError(
                f"window: expected at least 0, on a lattice of one axis, got {self.window} on {self.lattice}"
            )

    def _check_slopes(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {self.metric!r}")
        if isinstance(self.slopes, str):
            if self.slopes != "alibi":
                raise ValueError(f"slopes: expected 'alibi', a number or one an axis, got {self.slopes!r}")
            return
        values = self.slopes if isinstance(self.slopes, tuple) else (self.slopes,)
        if isinstance(self.slopes, tuple) and len(values) != len(self.axes):
            raise ValueError(f"slopes: expected one for each axis of {self.axes}, got {self.slopes}")
        if len(values) > 1 and self.metric not in METRICS_PER_AXIS:
            raise ValueError(
                f"slopes: expected a single one with metric {self.metric!r}, got {self.slopes}; "
                f"{' and '.join(METRICS_PER_AXIS)} take one an axis"
            )
        if not all(math.isfinite(value) and (value > 0 or not self.learn_slopes) for value in values):
            wanted = "positive numbers to learn from" if self.learn_slopes else "finite numbers"
            raise ValueError(f"slopes: expected {wanted}, got {self.slopes}")

    @property
    def key_heads(self) -> int:
        """G."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def channels(self) -> int:
        """E."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def slice_dim(self) -> int:
        """E / D."""
        return self.channels // self.depth

    @property
    def group(self) -> int:
        """Rows that a token has in the attention: D where coupled, else 1."""
        return self.depth if self.depth_attention == "coupled" else 1

    @property
    def axes(self) -> tuple[int, ...]:
        """Periods that distances are taken on: those of the lattice, and that of coupled depth."""
        return self.lattice if self.group == 1 else (*self.lattice, self.group)
