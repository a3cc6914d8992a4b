"""Learned sparse encoders, several in one call. Legend: E experts, D input size, M atoms, T steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stratcore import ops


@dataclass(frozen=True, kw_only=True)
class ListaOptions:
    """Size and form of a set of top-k LISTA encoders.

    Args:
        input_dim: D.
        atoms: M.
        sparsities: k of each expert, in [1, M]; their number is E.
        num_steps: T, steps after the first code. Literature that counts L layers from z = 0: L - 1.
        form: 'coupled' shares the dictionary with the decoder; 'classic' learns a matrix S of its own.
        tied: the encoder's directions are the dictionary's atoms, W = step D^T, and only the step is learned; fewer
            weights, and an encoder that cannot drift away from its dictionary.
        per_step: own encoder, threshold and S for every step instead of tied ones.
        threshold: initial soft threshold; None leaves the selection alone to make codes sparse.
        backward: gradient through the selection, 'straight_through' or 'masked'.
    """

    input_dim: int
    atoms: int = 256
    sparsities: tuple[int, ...] = (8, 12, 16, 20, 24, 28, 32)
    num_steps: int = 4
    form: str = "coupled"
    tied: bool = False
    per_step: bool = False
    threshold: float | None = 1e-3
    backward: str = "straight_through"

    def __post_init__(self) -> None:
        if not self.sparsities or not all(1 <= k <= self.atoms for k in self.sparsities):
            raise ValueError(
                f"sparsities: expected numbers in [1, atoms = {self.atoms}], got {self.sparsities}"
            )
        if self.form not in ("coupled", "classic"):
            raise ValueError(f"form: expected 'coupled' or 'classic', got {self.form!r}")
        if self.backward not in ("straight_through", "masked"):
            raise ValueError(f"backward: expected 'straight_through' or 'masked', got {self.backward!r}")
        for name in ("input_dim", "atoms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.num_steps < 0:
            raise ValueError(f"num_steps: expected at least 0, got {self.num_steps}")
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold: expected a positive number or None, got {self.threshold}")

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.sparsities)

    @property
    def flops_per_row(self) -> float:
        """FLOPs of the matrix products of one expert on one row (mean over experts: all are alike)."""
        encode = 2 * self.atoms * self.input_dim
        if self.form == "coupled":
            return encode * (1 + 2 * self.num_steps)
        return encode * (self.num_steps + 1 if self.per_step else 1) + 2 * self.atoms**2 * self.num_steps


class TopKLISTA(nn.Module):
    """Unrolled top-k LISTA for E dictionaries: `ops.topk_lista` with its parameters.

    Shapes: input [..., D] or [E, ..., D]; codes [E, ..., M]. Every code of expert e has at most k_e non-zeros.
    Source: Gregor and LeCun 2010; Chen et al. 2018 for the coupled form.
    """

    def __init__(self, options: ListaOptions) -> None:
        super().__init__()
        self.options = options
        steps = options.num_steps + 1 if options.per_step else 1
        experts, atoms, dim = options.num_experts, options.atoms, options.input_dim
        if options.tied:
            self.register_parameter("directions", None)
        else:
            self.directions = nn.Parameter(torch.empty(steps, experts, atoms, dim))
        self.log_step = nn.Parameter(torch.empty(steps, experts))
        if options.form == "classic":
            products = options.num_steps if options.per_step else 1
            self.recurrent = nn.Parameter(torch.empty(products, experts, atoms, atoms))
        else:
            self.register_parameter("recurrent", None)
        if options.threshold is None:
            self.register_buffer("zero_threshold", torch.zeros(1, experts, atoms), persistent=False)
            self.register_parameter("log_threshold", None)
        else:
            self.log_threshold = nn.Parameter(torch.empty(steps, experts, atoms))

    @torch.no_grad()
    def initialize(self, dictionary_EDM: Tensor, step_E: Tensor | None = None) -> None:
        """Sets the weights to plain iterative thresholding for the given dictionaries.

        W = step D^T, S = I - step D^T D; the default step is 1 / L, L the largest eigenvalue of D^T D.
        """
        if step_E is None:
            step_E = torch.linalg.matrix_norm(dictionary_EDM, 2).square().reciprocal()
        if self.directions is not None:
            self.directions.copy_(dictionary_EDM.mT)
        self.log_step.copy_(step_E.log())
        if self.recurrent is not None:
            identity = torch.eye(self.options.atoms, device=dictionary_EDM.device, dtype=dictionary_EDM.dtype)
            self.recurrent.copy_(identity - step_E[:, None, None] * dictionary_EDM.mT @ dictionary_EDM)
        if self.options.threshold is not None:
            self.log_threshold.fill_(self.options.threshold).log_()

    @torch.no_grad()
    def match_atoms(self, expert: int, which_R: Tensor, dictionary_DM: Tensor) -> None:
        """Sets the weights of some atoms of one expert as `initialize` would, for its new dictionary."""
        new_RD = dictionary_DM[:, which_R].mT
        if self.directions is not None:
            self.directions[:, expert, which_R] = new_RD
        if self.recurrent is not None:
            gram_RM = new_RD @ dictionary_DM
            identity_RM = torch.eye(dictionary_DM.shape[1], device=gram_RM.device, dtype=gram_RM.dtype)[
                which_R
            ]
            for product in range(self.recurrent.shape[0]):
                step = self.log_step[min(product + 1, self.log_step.shape[0] - 1), expert].exp()
                rows_RM = identity_RM - step * gram_RM
                self.recurrent[product, expert, which_R] = rows_RM
                self.recurrent[product, expert, :, which_R] = rows_RM.mT

    def weight(self, dictionary_EDM: Tensor) -> Tensor:
        """W [1 or T + 1, E, M, D]: a step size times directions, so that both train at their own scale."""
        directions = dictionary_EDM.mT if self.directions is None else self.directions
        return self.log_step.exp()[..., None, None] * directions

    def threshold(self) -> Tensor:
        """Soft threshold [1 or T + 1, E, M], positive by its exponential parameterisation (or fixed at 0)."""
        return self.zero_threshold if self.log_threshold is None else self.log_threshold.exp()

    def forward(self, x: Tensor, dictionary_EDM: Tensor, *, input_per_expert: bool = False) -> Tensor:
        """Codes [E, ..., M] of x [..., D]; with `input_per_expert` x is [E, ..., D]."""
        return ops.topk_lista(
            x,
            self.weight(dictionary_EDM),
            dictionary_EDM if self.recurrent is None else self.recurrent,
            self.threshold(),
            self.options.sparsities,
            num_steps=self.options.num_steps,
            form=self.options.form,
            backward=self.options.backward,
            input_per_expert=input_per_expert,
        )
