"""What a source of made-up or read sequences gives to a comparison of models, and how its draws are seeded.

Legend: B sequences, N tokens, F input channels, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class SequenceShape:
    """What a model of these sequences reads and gives.

    Args:
        lattice: 1 to 3 periods of the torus that the tokens lie on, row-major.
        length: N.
        vocabulary: number of input tokens; None: real vectors.
        in_channels: F; None: tokens.
        outputs: classes of a label, or values.
        labels: whether targets are labels, else values.
        causal: whether a target may be told from tokens up to its own alone.
    """

    lattice: tuple[int, ...]
    length: int
    vocabulary: int | None = None
    in_channels: int | None = None
    outputs: int
    labels: bool
    causal: bool = False


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences with a target a token.

    Args:
        inputs: [B, N] int64, or [B, N, F] float32.
        targets: [B, N] int64, or [B, N, O] float32.
    """

    inputs: Tensor
    targets: Tensor


class SequenceSource(Protocol):
    """Where sequences come from. `floor` is the least expected test loss that any model can have; None: unknown.

    `parts` holds the names of what can be drawn besides 'train' and 'validation': 'test', by which models are
    compared, and others.
    """

    shape: SequenceShape
    floor: float | None
    parts: tuple[str, ...]

    def draw(self, count: int, generator: torch.Generator, part: str = "train") -> Sequences:
        """Draw so many sequences on the generator's device."""
        ...


class PlacedTensors:
    """Tensors that are copied to a device once, however often they are asked for there.

    Args:
        tensors: on the CPU.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._placed: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tensors on that device."""
        if device not in self._placed:
            self._placed[device] = tuple(tensor.to(device) for tensor in self._tensors)
        return self._placed[device]


def seeded_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator of its own for each key of whole numbers in [0, 2^32), such as seed, part and batch.

    A key and the same key with zeros behind it are one; else they differ.

    Determinism: a function of device type and key. The key is hashed: torch's generator on the CPU reads no more than
    the lowest 32 bits of its seed.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
