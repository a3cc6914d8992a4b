"""Fields on a periodic grid that are carried along and smoothed, exactly, by Fourier series.

Legend: B fields, n points an axis, N = n n tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stratcore.data.sequences import PlacedTensors, Sequences, SequenceShape


@dataclass(frozen=True, kw_only=True)
class AdvectionDiffusionOptions:
    """u_t + c . grad u = nu lap u on an n x n torus, one unit of time a step.

    Args:
        size: n, even.
        speed: largest component of c, in grid points a step; every field has its own c, uniform in the square.
        diffusivity: nu, in squared grid points a step.
        slope: amplitudes of the first fields fall with the wave number as its power -slope.
    """

    size: int = 16
    speed: float = 3.0
    diffusivity: float = 0.1
    slope: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 4 or self.size % 2:
            raise ValueError(f"size: expected an even number >= 4, got {self.size}")
        for name in ("speed", "diffusivity", "slope"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {getattr(self, name)}")


class AdvectionDiffusion:
    """Random fields of variance 1 with a velocity each, and the fields one step later.

        u'(k) = exp(-i k . c - nu |k|^2) u(k) for every wave vector k

    which is the exact solution, also over several steps: waves of the highest number n / 2, whose phase a real grid
    does not hold, are left out of the first fields. Inputs are u and c / speed, targets u', N tokens in row-major
    order, x first. Fields are drawn from a law that rotations around both axes leave as it is.

    The floor of the loss is 0: targets are functions of the inputs.
    """

    floor: float | None = 0.0
    parts: tuple[str, ...] = ("test",)

    def __init__(self, options: AdvectionDiffusionOptions) -> None:
        self.options = options
        size = options.size
        self.shape = SequenceShape(
            lattice=(size, size), length=size * size, in_channels=3, outputs=1, labels=False
        )
        number_n = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
        square_nn = number_n[:, None] ** 2 + number_n**2
        amplitude_nn = square_nn.clamp(min=1) ** (-options.slope / 2)
        amplitude_nn[0, 0] = 0
        amplitude_nn[size // 2], amplitude_nn[:, size // 2] = 0, 0
        # Noise of variance 1 has n n waves of mean square 1 in the unitary transform.
        amplitude_nn = amplitude_nn * size / amplitude_nn.square().sum().sqrt()
        self._tensors = PlacedTensors(amplitude_nn.float(), 2 * math.pi / size * number_n)

    def draw(self, count: int, generator: torch.Generator, part: str = "train") -> Sequences:
        """Draw fields with velocities [count, N, 3] and what they become [count, N, 1]."""
        size, device = self.options.size, generator.device
        noise = torch.randn(count, size, size, generator=generator, device=device)
        shaped = torch.fft.fft2(noise) * self._tensors.on(device)[0]
        field_Bnn = torch.fft.ifft2(shaped).real
        velocity_B2 = 2 * torch.rand(count, 2, generator=generator, device=device) - 1
        later_Bnn = self.advance(field_Bnn, self.options.speed * velocity_B2)
        return Sequences(self.inputs(field_Bnn, velocity_B2), later_Bnn.flatten(1)[..., None])

    def advance(self, field_Bnn: Tensor, velocity_B2: Tensor, steps: float = 1.0) -> Tensor:
        """Fields so many steps later; velocities in grid points a step."""
        wave_n = self._tensors.on(field_Bnn.device)[1].to(field_Bnn.dtype)
        phase_Bnn = wave_n[:, None] * velocity_B2[:, :1, None] + wave_n * velocity_B2[:, 1:, None]
        decay_nn = self.options.diffusivity * (wave_n[:, None] ** 2 + wave_n**2)
        factor_Bnn = torch.exp(-steps * torch.complex(decay_nn.expand_as(phase_Bnn), phase_Bnn))
        return torch.fft.ifft2(torch.fft.fft2(field_Bnn) * factor_Bnn).real

    def inputs(self, field_Bnn: Tensor, velocity_B2: Tensor) -> Tensor:
        """Inputs [B, N, 3] of a model: fields, and velocities over `speed`."""
        velocity_BN2 = velocity_B2[:, None].expand(-1, self.shape.length, -1)
        return torch.cat([field_Bnn.flatten(1)[..., None], velocity_BN2], -1)
