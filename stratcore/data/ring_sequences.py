"""Labelled sequences on a ring, with a seam that training may never cross. Legend: B sequences, N sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stratcore.data.sequences import Sequences, SequenceShape


@dataclass(frozen=True, kw_only=True)
class RingOptions:
    """A task on a ring.

    Args:
        rule: 'copy': every token is a symbol with an instruction, a number of steps forth or back; its label is the
            symbol that stands so many steps away. 'next_mark': a token is a symbol or blank; its label is the first
            symbol at or after it.
        sites: N.
        symbols: labels, all equally often.
        reach: most steps of an instruction, at most N / 2.
        density: share of sites that are not blank, in (0, 1].
        seam: 'crossed': the place where the sequence is cut open changes from draw to draw, also in training.
            'avoided': in training and validation it is one at which no label looks across the cut; in 'test' it
            changes.
    """

    rule: Literal["copy", "next_mark"] = "copy"
    sites: int = 32
    symbols: int = 8
    reach: int = 8
    density: float = 0.25
    seam: Literal["crossed", "avoided"] = "crossed"

    def __post_init__(self) -> None:
        for name, known in (("rule", ("copy", "next_mark")), ("seam", ("crossed", "avoided"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.sites < 2 or self.symbols < 2:
            raise ValueError(
                f"sites: expected 2 or more, and symbols too, got {self.sites} and {self.symbols}"
            )
        if not 1 <= self.reach <= self.sites // 2:
            raise ValueError(f"reach: expected a number in [1, {self.sites // 2}], got {self.reach}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected a share in (0, 1], got {self.density}")


class RingSequences:
    """Sequences that a rotation around the ring turns into others of the same rule: labels rotate along.

    A draw is made so that no label looks across the seam, between the last site and the first; then, if the seam is
    to change, it is rotated by a number of sites drawn for each sequence. 'test' always is; 'unrotated' never is. So
    a model that commutes with rotations has the same expected loss on both.

    The floor of the loss is 0: labels are functions of the tokens. Guessing costs log(symbols).
    """

    floor: float | None = 0.0
    parts: tuple[str, ...] = ("test", "unrotated")

    def __init__(self, options: RingOptions) -> None:
        self.options = options
        vocabulary = options.symbols + 1
        if options.rule == "copy":
            vocabulary = 2 * options.reach * options.symbols
        self.shape = SequenceShape(
            lattice=(options.sites,),
            length=options.sites,
            vocabulary=vocabulary,
            outputs=options.symbols,
            labels=True,
        )

    def draw(self, count: int, generator: torch.Generator, part: str = "train") -> Sequences:
        """Draw sequences [count, N] with labels [count, N] on the generator's device."""
        token_BN, label_BN = (self._copy if self.options.rule == "copy" else self._next_mark)(
            count, generator
        )
        if part == "test" or (part != "unrotated" and self.options.seam == "crossed"):
            turn_B1 = self._whole(self.options.sites, (count, 1), generator)
            source_BN = (
                torch.arange(self.options.sites, device=generator.device) - turn_B1
            ) % self.options.sites
            token_BN, label_BN = token_BN.gather(1, source_BN), label_BN.gather(1, source_BN)
        return Sequences(token_BN, label_BN)

    def _copy(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token symbol * 2 reach + instruction; instructions 0, 1, ... are -reach, ..., -1, 1, ..., reach steps."""
        sites, reach = self.options.sites, self.options.reach
        symbol_BN = self._whole(self.options.symbols, (count, sites), generator)
        instruction_BN = self._whole(2 * reach, (count, sites), generator)
        site_N = torch.arange(sites, device=generator.device)
        crosses_BN = torch.div(site_N + copy_steps(instruction_BN, reach), sites, rounding_mode="floor") != 0
        # The same number of steps the other way.
        instruction_BN = torch.where(crosses_BN, 2 * reach - 1 - instruction_BN, instruction_BN)
        source_BN = site_N + copy_steps(instruction_BN, reach)
        return symbol_BN * 2 * reach + instruction_BN, symbol_BN.gather(1, source_BN)

    def _next_mark(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token 0 is blank, others are 1 + symbol; the last site is never blank."""
        sites = self.options.sites
        symbol_BN = self._whole(self.options.symbols, (count, sites), generator)
        drawn_BN = torch.rand(count, sites, generator=generator, device=generator.device)
        marked_BN = drawn_BN < self.options.density
        marked_BN[:, -1] = True
        site_BN = torch.where(marked_BN, torch.arange(sites, device=generator.device), sites)
        next_BN = site_BN.flip(1).cummin(1).values.flip(1)
        return torch.where(marked_BN, symbol_BN + 1, 0), symbol_BN.gather(1, next_BN)

    @staticmethod
    def _whole(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=generator.device)


def copy_steps(instruction: Tensor, reach: int) -> Tensor:
    """Steps of an instruction of rule 'copy': -reach, ..., -1, 1, ..., reach for 0, 1, ..., 2 reach - 1."""
    return instruction - reach + (instruction >= reach).long()
