"""Rotary embedding whose frequencies fit the periods of a torus. Legend: B batch, H heads, N tokens, E head size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def integer_frequencies(period: int, count: int) -> list[int]:
    """Whole turns per period, spaced evenly in the logarithm from 1 to `period` // 2.

    All differ, as far as there are as many; beyond `period` // 2 they begin at 1 again. A period of 1 has none but 0.

    Args:
        period: tokens of one turn, at least 1.
        count: how many.

    Returns:
        `count` numbers in [0, period // 2].
    """
    top = period // 2
    if top == 0:
        return [0] * count
    frequencies: list[int] = []
    for index in range(count):
        spaced = round(top ** (index / max(1, count - 1)))
        frequencies.append(max(spaced, frequencies[-1] + 1) if frequencies else spaced)
    return [(frequency - 1) % top + 1 for frequency in frequencies]


def lattice_coordinates(
    position: Tensor, lattice: Sequence[int], block: Sequence[int] | None = None
) -> list[Tensor]:
    """Coordinates of tokens on a torus, one tensor an axis, numbered as `ops.toroidal_attention` numbers them.

    Args:
        position: whole numbers of any shape; the sites are numbered over and over.
        lattice: periods.
        block: sizes that divide them; tokens are numbered block after block. None: row-major.

    Returns:
        For every axis, coordinates in [0, period), of the shape of `position`.
    """
    sizes = lattice if block is None else block
    rest = position
    coordinates = [torch.zeros_like(position) for _ in lattice]
    for radices, steps in ((sizes, [1] * len(sizes)), (lattice, sizes)):
        for axis in reversed(range(len(lattice))):
            count = radices[axis] // steps[axis]
            coordinates[axis] = coordinates[axis] + rest.remainder(count) * steps[axis]
            rest = rest.div(count, rounding_mode="floor")
    return coordinates


class ToroidalRotary(nn.Module):
    """Turns pairs of channels of queries and keys by angles that a way around the torus brings back to the start.

        angle_m(x) = 2 pi f_m x_a / n_a,    f_m a whole number, x_a the token's coordinate on axis a of period n_a

    so <q_x, k_y> depends on x - y modulo the periods alone, and rolling a sequence around the torus rolls what
    attention makes of it. Channel m is paired with m + E // 2; the pairs are dealt to the axes in equal runs, each
    with its `integer_frequencies`. The last channel of an odd E stays as it is.

    Args:
        head_dim: E, at least 2 an axis.
        lattice: periods.
        block: as in `ops.toroidal_attention`.

    Raises:
        ValueError: too few channels for the axes.

    Shapes: [B, H, N, E], in and out, of any dtype; results keep the dtype.
    Numerics: f_m x_a is reduced modulo n_a in whole numbers, so angles are exact however large the position; the turn
        is computed in float32 (float64 for float64).
    Source: J. Su et al., arXiv 2104.09864, there with real frequencies, which do not close around a ring.
    """

    frequencies: Tensor

    def __init__(self, head_dim: int, lattice: Sequence[int], block: Sequence[int] | None = None) -> None:
        super().__init__()
        pairs, axes = head_dim // 2, len(lattice)
        if pairs < axes:
            raise ValueError(
                f"head_dim: expected at least {2 * axes} channels to turn on {axes} axes, got {head_dim}"
            )
        self.lattice = tuple(lattice)
        self.block = None if block is None else tuple(block)
        self.pairs_per_axis = [(axis + 1) * pairs // axes - axis * pairs // axes for axis in range(axes)]
        self.register_buffer("frequencies", torch.empty(pairs, dtype=torch.int64))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Frequencies anew; they are in the state dict, as the periods are part of the model."""
        values = [
            frequency
            for period, count in zip(self.lattice, self.pairs_per_axis, strict=True)
            for frequency in integer_frequencies(period, count)
        ]
        self.frequencies.copy_(torch.tensor(values))

    def angles(self, length: int, offset: int = 0) -> Tensor:
        """Angles [length, E // 2] in radians, float64, of the tokens from position `offset` on."""
        position = torch.arange(length, device=self.frequencies.device) + offset
        turns = []
        axes = zip(
            lattice_coordinates(position, self.lattice, self.block),
            self.frequencies.split(self.pairs_per_axis),
            self.lattice,
            strict=True,
        )
        for coordinate, frequency, period in axes:
            turns.append((coordinate[:, None] * frequency).remainder(period).double() / period)
        return 2 * math.pi * torch.cat(turns, -1)

    def forward(self, q: Tensor, k: Tensor, *, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, N, E] of the same tokens, turned; `offset`: position of the first."""
        angles = self.angles(q.shape[-2], offset)
        dtype = torch.promote_types(q.dtype, torch.float32)
        cosine, sine = angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]
        return _rotate(q, cosine, sine), _rotate(k, cosine, sine)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """With the heads of a token next to each other in memory, as projections have them and attention returns them."""
    pairs = cosine.shape[-1]
    first, second, rest = x.transpose(1, 2).split([pairs, pairs, x.shape[-1] - 2 * pairs], -1)
    turned = (first * cosine - second * sine, first * sine + second * cosine, rest)
    return torch.cat(turned, -1).to(x.dtype).transpose(1, 2)
