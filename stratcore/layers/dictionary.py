"""Dictionary-learning experts. Legend: E experts, B rows, D input size, M atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stratcore.layers.lista import ListaOptions, TopKLISTA


class DictionaryExperts(nn.Module):
    """E dictionaries of M unit-norm atoms, each with its own center and sparse encoder.

        z_e = LISTA_e(x - b_e),    xhat_e = b_e + D_e z_e,    |z_e|_0 <= k_e

    Safeguard: where the code would reconstruct worse than the center alone, it is 0. The encoder was learned for
    an expert's own rows and may diverge on others.

    Shapes: input [B, D]; codes [E, B, M]; reconstructions [E, B, D].
    Gradient: atoms learn through the decoder (and, coupled, through the encoder); their norm is kept at 1 by
    `normalize_atoms` after every optimizer step.
    """

    def __init__(self, options: ListaOptions, *, centers: bool = True) -> None:
        super().__init__()
        self.options = options
        experts, dim = options.num_experts, options.input_dim
        self.atoms = nn.Parameter(torch.empty(experts, dim, options.atoms))
        self.centers = nn.Parameter(torch.zeros(experts, dim), requires_grad=centers)
        self.encoder = TopKLISTA(options)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random unit atoms, centers at 0, encoder to match."""
        self.atoms.normal_()
        self.centers.zero_()
        self.normalize_atoms()
        self.encoder.initialize(self.atoms)

    @torch.no_grad()
    def normalize_atoms(self) -> None:
        """Projects every atom onto the unit sphere; an atom of 0 becomes a unit vector along an axis.

        The host does not look at the data, so that a training step fits a CUDA graph.
        """
        _, dim, count = self.atoms.shape
        axis_D1 = torch.arange(dim, device=self.atoms.device)[:, None]
        axis_DM = axis_D1 == torch.arange(count, device=self.atoms.device) % dim
        norm_E1M = self.atoms.norm(dim=1, keepdim=True)
        unit_EDM = normalize(self.atoms, dim=1)
        self.atoms.copy_(torch.where(norm_E1M == 0, axis_DM.to(unit_EDM.dtype), unit_EDM))

    @torch.no_grad()
    def replace_atoms(self, expert: int, which_R: Tensor, directions_RD: Tensor) -> None:
        """New atoms for one expert along the given directions, with encoder weights to match."""
        unit_RD = normalize(directions_RD, dim=-1)
        self.atoms[expert, :, which_R] = unit_RD.mT
        self.encoder.match_atoms(expert, which_R, self.atoms[expert])

    @torch.no_grad()
    def search_step(self, x_BD: Tensor) -> None:
        """Starts the encoder at the dictionary, each expert with the step size that fits its best rows best.

        The best rows of an expert are the share 1 / E that it reconstructs best. 1 / L alone is safe but slow, so
        steps from 1 / L to 1 are tried, first coarsely and then around the best of them.
        """
        lipschitz_E = torch.linalg.matrix_norm(self.atoms, 2).square()
        count = max(1, x_BD.shape[0] // self.options.num_experts)
        best_E = torch.full_like(lipschitz_E, torch.inf)
        chosen_E = lipschitz_E.reciprocal()
        spacing_E = lipschitz_E.log() / 8
        for grid in (torch.arange(9.0), torch.arange(-3.0, 4.0) / 4):
            from_E = chosen_E
            for index in grid.tolist():
                step_E = (from_E * (index * spacing_E).exp()).clamp(
                    1 / lipschitz_E, torch.ones_like(lipschitz_E)
                )
                self.encoder.initialize(self.atoms, step_E)
                error_EB = (x_BD - self(x_BD)[1]).square().sum(-1)
                error_E = error_EB.sort(-1).values[:, :count].mean(-1)
                better_E = error_E < best_E
                best_E = torch.where(better_E, error_E, best_E)
                chosen_E = torch.where(better_E, step_E, chosen_E)
        self.encoder.initialize(self.atoms, chosen_E)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Codes [E, B, M]."""
        return self.encoder(x_BD - self.centers[:, None, :], self.atoms, input_per_expert=True)

    def decode(self, codes_EBM: Tensor) -> Tensor:
        """Reconstructions [E, B, D] of codes [E, B, M]."""
        return torch.baddbmm(self.centers[:, None, :], codes_EBM, self.atoms.mT)

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [E, B, M] and reconstructions [E, B, D], safeguarded."""
        codes_EBM = self.encode(x_BD)
        each_EBD = self.decode(codes_EBM)
        center_E1D = self.centers[:, None, :]
        error_EB1 = (x_BD - each_EBD).square().sum(-1, True)
        # Not "greater": NaN is worse, too.
        worse_EB1 = ~(error_EB1 <= (x_BD - center_E1D).square().sum(-1, True))
        return codes_EBM.masked_fill(worse_EB1, 0.0), torch.where(worse_EB1, center_E1D, each_EBD)
