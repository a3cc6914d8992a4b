"""Mixture of dictionary-learning experts. Legend: E experts, B rows, D input size, M atoms, P head size."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from stratcore.layers.dictionary import DictionaryExperts
from stratcore.layers.gating import SELECTIONS, QueryKeyGate, expert_weights
from stratcore.layers.lista import ListaOptions


@dataclass(frozen=True, kw_only=True)
class DictionaryMoEOptions(ListaOptions):
    """Architecture of a dictionary mixture-of-experts: beside what `ListaOptions` says of its encoders, the mixture.

    Args:
        centers: learn a center b_e for every expert.
        query_dim: size of the gate's query.
        energy_rank: directions an expert of the gate's even term; 0: the gate is affine.
        selection: mixture weights from the gate: 'soft', 'straight_through' or 'threshold'.
        candidates: experts that are run on a row (at most all), those of largest weight; the one of least cost is
            chosen.
        eligibility: share of the largest probability that makes an expert eligible, for 'threshold'.
        rate: nats that one active atom costs, in the choice between experts and in the loss.
        head: hidden and output size of a head on the mixed code (for contrastive losses); None: no head.
    """

    centers: bool = True
    query_dim: int = 128
    energy_rank: int = 16
    selection: str = "soft"
    candidates: int = 2
    eligibility: float = 0.5
    rate: float = 2.0
    head: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection: expected one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        if self.query_dim < 1 or self.energy_rank < 0:
            raise ValueError(
                f"query_dim and energy_rank: expected >= 1 and >= 0, got {self.query_dim} and {self.energy_rank}"
            )
        super().__post_init__()
        if self.candidates < 1:
            raise ValueError(f"candidates: expected at least 1, got {self.candidates}")
        if not 0 <= self.eligibility <= 1:
            raise ValueError(f"eligibility: expected a share in [0, 1], got {self.eligibility}")
        if self.head is not None and min(self.head) < 1:
            raise ValueError(f"head: expected two sizes >= 1, got {self.head}")
        if not self.rate >= 0:
            raise ValueError(f"rate: expected a number >= 0, got {self.rate}")

    @property
    def lista(self) -> ListaOptions:
        """The encoders' part of the options alone."""
        return ListaOptions(**{field.name: getattr(self, field.name) for field in fields(ListaOptions)})

    @property
    def gate_flops_per_row(self) -> int:
        """FLOPs of the gate's matrix products on one row."""
        experts = len(self.sparsities)
        affine = 2 * self.query_dim * (self.input_dim + experts)
        return affine + 2 * experts * self.energy_rank * (self.input_dim + 1)

    @property
    def active_flops_per_row(self) -> float:
        """FLOPs a row: the gate, and encoder and decoder (of the mean k atoms) of the candidates."""
        decode = 2 * self.input_dim * sum(self.sparsities) / len(self.sparsities)
        gate = self.gate_flops_per_row if len(self.sparsities) > 1 else 0
        return gate + min(self.candidates, len(self.sparsities)) * (self.flops_per_row + decode)


@dataclass(frozen=True, kw_only=True)
class DictionaryMoEOutput:
    """What the mixture makes of rows.

    reconstruction: [B, D], mixture sum_e weights_e xhat_e. residuals: [B, E], |x - xhat_e|^2. cost: [B, E], the
    penalized residual in nats (see `DictionaryMoE.cost`). codes: [E, B, M]. logits, probabilities, weights: [B, E]
    of the gate; weights follow the option `selection`.
    projection: [B, P] of the head or None.
    """

    reconstruction: Tensor
    residuals: Tensor
    cost: Tensor
    codes: Tensor
    logits: Tensor
    weights: Tensor
    projection: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the gate's logits, [B, E]."""
        return self.logits.softmax(-1)


class DictionaryMoE(nn.Module):
    """Sparse dictionary experts behind a query-key gate.

        xhat = sum_e g_e(x) xhat_e(x),    xhat_e(x) = b_e + D_e z_e(x),    |z_e|_0 <= k_e

    Source: arXiv 2502.13577, whose code gives neither gate nor dictionaries a gradient; here both are trained
    by the loss of the residuals (`stratcore.training.losses`).
    """

    def __init__(self, options: DictionaryMoEOptions) -> None:
        super().__init__()
        self.options = options
        self.experts = DictionaryExperts(options.lista, centers=options.centers)
        self.gate = QueryKeyGate(
            options.input_dim,
            len(options.sparsities),
            query_dim=options.query_dim,
            energy_rank=options.energy_rank,
        )
        self.sparsities: Tensor
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.register_buffer(
            "sparsities", torch.tensor(options.sparsities, dtype=torch.float32), persistent=False
        )
        self.head = None
        if options.head is not None:
            hidden, out = options.head
            self.head = nn.Sequential(
                nn.Linear(options.atoms, hidden), nn.ReLU(), nn.Linear(hidden, out, bias=False)
            )

    def forward(self, x_BD: Tensor) -> DictionaryMoEOutput:
        """Runs every expert on every row."""
        codes_EBM, each_EBD = self.experts(x_BD)
        logits_BE = self.gate(x_BD)
        weights_BE = expert_weights(
            logits_BE, self.options.selection, self.options.sparsities, self.options.eligibility
        )
        projection = None
        if self.head is not None:
            projection = self.head(torch.einsum("be,ebm->bm", weights_BE, codes_EBM))
        residuals_BE = (x_BD - each_EBD).square().sum(-1).mT
        return DictionaryMoEOutput(
            reconstruction=torch.einsum("be,ebd->bd", weights_BE, each_EBD),
            residuals=residuals_BE,
            cost=self.cost(residuals_BE),
            codes=codes_EBM,
            logits=logits_BE,
            weights=weights_BE,
            projection=projection,
        )

    def candidates(self, output: DictionaryMoEOutput) -> Tensor:
        """Experts that are run on each row, [B, C], by falling weight, equal weights by probability."""
        order_BE = (output.weights + output.probabilities).sort(dim=-1, descending=True, stable=True).indices
        return order_BE[:, : self.options.candidates]

    def choose(self, output: DictionaryMoEOutput) -> Tensor:
        """Expert of each row, [B]: of the `candidates` experts of largest weight the one of least cost."""
        among_BC = self.candidates(output)
        best_B1 = output.cost.gather(1, among_BC).argmin(-1, keepdim=True)
        return among_BC.gather(1, best_B1).squeeze(-1)

    def cost(self, residuals_BE: Tensor) -> Tensor:
        """Penalized residuals [B, E] in nats: |x - xhat_e|^2 / (2 s^2) + D/2 log s^2 + rate k_e.

        s^2 is the learned variance of the residual along one axis, common to all experts. The expert of least
        cost is the stratum of a row.
        """
        dim = self.options.input_dim
        fit_BE = residuals_BE / (2 * self.log_variance.exp()) + dim / 2 * self.log_variance
        return fit_BE + self.options.rate * self.sparsities

    @torch.no_grad()
    def initialize(self, x_BD: Tensor, cluster_B: Tensor, noise_floor: float = 0.0) -> None:
        """Starts each expert on one cluster of rows: center, leading directions, then rows as further atoms.

        Args:
            x_BD: training rows.
            cluster_B: cluster of each row, 0 .. E - 1, every cluster non-empty. Clusters of higher dimension
                (more eigenvalues above the floor) go to experts of higher sparsity.
            noise_floor: variance along one axis that counts as noise.
        """
        experts = len(self.options.sparsities)
        spectra = [_spectrum(x_BD[cluster_B == e], self.options.centers) for e in range(experts)]
        by_dimension = sorted(range(experts), key=lambda e: _effective_dim(spectra[e][1], noise_floor))
        by_sparsity = sorted(range(experts), key=lambda e: self.options.sparsities[e])
        generator = torch.Generator().manual_seed(0)
        expert_B = torch.empty_like(cluster_B)
        for cluster, expert in zip(by_dimension, by_sparsity, strict=True):
            center_D, variance, directions_DN = spectra[cluster]
            rows = x_BD[cluster_B == cluster] - center_D
            expert_B[cluster_B == cluster] = expert
            self.experts.centers[expert] = center_D
            self.experts.atoms[expert] = _starting_atoms(
                rows, variance, directions_DN, self.options.atoms, noise_floor, generator
            )
        self.experts.normalize_atoms()
        self.experts.search_step(x_BD)
        codes_EBM, each_EBD = self.experts(x_BD)
        own_BD = each_EBD[expert_B, torch.arange(x_BD.shape[0], device=x_BD.device)]
        self.log_variance.copy_((x_BD - own_BD).square().mean().clamp_min(1e-12).log())
        self.gate.fit(x_BD, expert_B, self.experts.centers)


def _spectrum(rows: Tensor, centered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Center [D], variances (descending) and directions [D, N] of a cluster."""
    center_D = rows.mean(0) if centered else torch.zeros_like(rows[0])
    variance, directions = torch.linalg.eigh((rows - center_D).mT @ (rows - center_D) / rows.shape[0])
    return center_D, variance.flip(0), directions.flip(1)


def _effective_dim(variance: Tensor, noise_floor: float) -> float:
    """Participation ratio of the variance above the noise."""
    above = (variance - noise_floor).clamp_min(0)
    return float(above.sum().square() / above.square().sum().clamp_min(1e-30))


def _starting_atoms(
    rows: Tensor,
    variance: Tensor,
    directions_DN: Tensor,
    count: int,
    noise_floor: float,
    generator: torch.Generator,
) -> Tensor:
    """[D, count]: principal directions above the floor, then centered rows, then random directions."""
    leading = directions_DN[:, variance > 4 * noise_floor][:, :count]
    order = torch.randperm(rows.shape[0], generator=generator).to(rows.device)
    sampled = rows[order[: count - leading.shape[1]]].mT
    missing = count - leading.shape[1] - sampled.shape[1]
    filler = torch.randn(rows.shape[1], missing, generator=generator).to(rows)
    return torch.cat([leading, sampled, filler], 1)
