"""What the tests of topk_lista share. Legend: E experts, B rows, D input size, M atoms, T steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference

op = torch.ops.stratcore.topk_lista
FORMS = ["classic", "coupled"]
BACKWARDS = ["straight_through", "masked"]


@dataclass(frozen=True)
class Case:
    form: str = "classic"
    rows: int = 5
    dim: int = 6
    atoms: int = 11
    k: tuple[int, ...] = (2, 4, 11)
    num_steps: int = 3
    per_step: bool = False
    input_per_expert: bool = False
    regime: str = "auto"

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
        generator = torch.Generator().manual_seed(7)
        experts, steps = len(self.k), self.num_steps + 1 if self.per_step else 1
        square = self.atoms if self.form == "classic" else self.dim

        def normal(*shape: int, scale: float) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return values.to(dtype).to(device)

        return [
            normal(experts if self.input_per_expert else 1, self.rows, self.dim, scale=1.0),
            normal(steps, experts, self.atoms, self.dim, scale=self.dim**-0.5),
            normal(
                self.num_steps if self.per_step else 1, experts, square, self.atoms, scale=self.atoms**-0.5
            ),
            normal(steps, experts, self.atoms, scale=0.1).abs(),
        ]

    def run(self, inputs: list[Tensor], backward: str = "straight_through") -> Tensor:
        x = inputs[0] if self.input_per_expert else inputs[0][0]
        return ops.topk_lista(
            x, *inputs[1:], self.k, num_steps=self.num_steps, form=self.form, backward=backward,
            input_per_expert=self.input_per_expert, regime=self.regime,
        )  # fmt: skip

    def define(self, inputs: list[Tensor], backward: str = "straight_through") -> list[Tensor]:
        return reference.topk_lista(*inputs, self.k, self.num_steps, self.form, backward)


def leaves(inputs: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in inputs]
