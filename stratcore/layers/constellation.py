"""Anchors on the sphere and the network that reads distances to them.

Legend: A anchors, O embedding size, C compartments, F size of a compartment's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize, relu

INITS = ("xavier", "orthogonal", "repulsion")
REPULSION_STEPS = 200
REPULSION_RATE = 0.05


# ---- starts


def initial_anchors(num_anchors: int, dim: int, init: str = "xavier") -> Tensor:
    """Unit anchors [A, O] to start from, of torch's generator.

    Args:
        num_anchors: A.
        dim: O.
        init: 'xavier': independent, uniform on the sphere. 'orthogonal': random orthonormal bases by QR, one of O
            anchors after the other, so that only anchors of different bases are not orthogonal. 'repulsion': as
            'xavier', then 200 steps v <- normalize(v - 0.05 v_nearest) of all at once.

    Returns:
        [A, O], rows of length 1.

    Raises:
        ValueError: an unknown init.
    """
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {init!r}")
    if init == "orthogonal":
        bases = torch.linalg.qr(torch.randn(-(-num_anchors // dim), dim, dim)).Q.mT
        return bases.flatten(0, 1)[:num_anchors].contiguous()
    anchors = normalize(torch.randn(num_anchors, dim), dim=-1)
    if init == "repulsion" and num_anchors > 1:
        for _ in range(REPULSION_STEPS):
            nearest = (anchors @ anchors.mT).fill_diagonal_(-math.inf).argmax(-1)
            anchors = normalize(anchors - REPULSION_RATE * anchors[nearest], dim=-1)
    return anchors


# ---- constellation


@dataclass(frozen=True, kw_only=True)
class ConstellationOptions:
    """Size and start of a `Constellation`.

    Args:
        num_anchors: A.
        dim: O.
        init: 'xavier', 'orthogonal' or 'repulsion', see `initial_anchors`.
        dropout: probability, in [0, 1), that an anchor is dropped in a training call.
    """

    num_anchors: int
    dim: int
    init: str = "xavier"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_anchors < 1 or self.dim < 1:
            raise ValueError(
                f"num_anchors and dim: expected at least 1, got {self.num_anchors} and {self.dim}"
            )
        if self.init not in INITS:
            raise ValueError(f"init: expected one of {', '.join(INITS)}, got {self.init!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {self.dropout}")


class Triangulation(NamedTuple):
    """distance: 1 - cosine to every anchor, [..., A], in [0, 2]. nearest: anchor of least distance, int64 [...]."""

    distance: Tensor
    nearest: Tensor


class Constellation(nn.Module):
    """Learned anchors on the sphere, and where embeddings lie among them: tri_a = 1 - <x, a / |a|>.

    Anchor dropout (training only): one draw a call, for all rows. A dropped anchor reads 1, as if orthogonal to
    every embedding, gets no gradient and is nearest to none; the others keep their distances, nothing is rescaled,
    so that distances mean the same in evaluation. At least one anchor is always kept.

    Shapes: unit embeddings [..., O]; distances [..., A].
    Gradient: to embeddings and anchors; an anchor's is tangent, as only its direction counts.
    """

    def __init__(self, options: ConstellationOptions) -> None:
        super().__init__()
        self.options = options
        self.anchors = nn.Parameter(torch.empty(options.num_anchors, options.dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Anchors anew, by `options.init`."""
        self.anchors.copy_(initial_anchors(self.options.num_anchors, self.options.dim, self.options.init))

    def unit_anchors(self) -> Tensor:
        """Anchors [A, O] of length 1."""
        return normalize(self.anchors, dim=-1)

    def forward(self, x: Tensor) -> Triangulation:
        """Distances and nearest anchors of unit embeddings [..., O]."""
        distance = 1 - x @ self.unit_anchors().mT
        if not self.training or self.options.dropout == 0:
            return Triangulation(distance, distance.detach().argmin(-1))
        draw = torch.rand(self.options.num_anchors, device=x.device)
        kept = (draw >= self.options.dropout) | (draw == draw.max())
        nearest = distance.detach().masked_fill(~kept, math.inf).argmin(-1)
        return Triangulation(distance.masked_fill(~kept, 1.0), nearest)


class AnchorUsage(NamedTuple):
    """How rows share the anchors.

    counts: rows of each, int64 [A]. entropy: of the shares, scalar, nats; log A is even use, 0 is collapse onto one
    anchor. active: anchors with a row, scalar.
    """

    counts: Tensor
    entropy: Tensor
    active: Tensor


def anchor_usage(nearest: Tensor, num_anchors: int) -> AnchorUsage:
    """Usage of anchors, from nearest anchors of any shape; no wait for the device. No rows: entropy 0."""
    flat = nearest.flatten().long()
    counts = torch.zeros(num_anchors, dtype=torch.int64, device=nearest.device)
    counts = counts.scatter_add(0, flat, torch.ones_like(flat))
    share = counts.double() / max(1, flat.numel())
    return AnchorUsage(counts, torch.special.entr(share).sum(), (counts > 0).sum())


# ---- patchwork


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "squared_relu": squared_relu}


@dataclass(frozen=True, kw_only=True)
class PatchworkOptions:
    """Size and form of a `Patchwork`.

    Args:
        num_anchors: A, a multiple of the compartments.
        num_compartments: C.
        compartment_dim: F.
        activation: 'gelu' or 'squared_relu'.
    """

    num_anchors: int
    num_compartments: int = 8
    compartment_dim: int = 64
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.num_compartments < 1 or self.compartment_dim < 1:
            raise ValueError(
                "num_compartments and compartment_dim: expected at least 1, got "
                f"{self.num_compartments} and {self.compartment_dim}"
            )
        if self.num_anchors < 1 or self.num_anchors % self.num_compartments:
            raise ValueError(
                f"num_anchors: expected a multiple of num_compartments = {self.num_compartments}, "
                f"got {self.num_anchors}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def output_dim(self) -> int:
        """C F."""
        return self.num_compartments * self.compartment_dim


class Patchwork(nn.Module):
    """C small networks, each reading every C-th anchor; two grouped products instead of 2 C small ones.

        y_c = LayerNorm_c(P_c act(E_c tri[c::C] + e_c) + p_c),    y = [y_0; ..; y_{C-1}]

    E_c is [2 F, A / C], P_c is [F, 2 F]: the parameters of C separate Linear, activation, Linear, LayerNorm, which
    `load_compartments` takes over.

    Shapes: triangulation [..., A]; output [..., C F], compartment after compartment.
    """

    def __init__(self, options: PatchworkOptions) -> None:
        super().__init__()
        self.options = options
        count, size = options.num_compartments, options.compartment_dim
        inputs = options.num_anchors // count
        self.expand_weight = nn.Parameter(torch.empty(count, 2 * size, inputs))
        self.expand_bias = nn.Parameter(torch.empty(count, 2 * size))
        self.project_weight = nn.Parameter(torch.empty(count, size, 2 * size))
        self.project_bias = nn.Parameter(torch.empty(count, size))
        self.norm_weight = nn.Parameter(torch.ones(count, size))
        self.norm_bias = nn.Parameter(torch.zeros(count, size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights as `nn.Linear` and `nn.LayerNorm` start them."""
        for weight, bias in (
            (self.expand_weight, self.expand_bias),
            (self.project_weight, self.project_bias),
        ):
            bound = weight.shape[-1] ** -0.5
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        self.norm_weight.fill_(1)
        self.norm_bias.zero_()

    @torch.no_grad()
    def load_compartments(self, compartments: Sequence[nn.Module]) -> None:
        """Takes over the weights of C modules whose parameters are, in order, those of Linear, Linear, LayerNorm.

        Raises:
            ValueError: another number of modules, or of parameters, or other shapes.
        """
        if len(compartments) != self.options.num_compartments:
            raise ValueError(
                f"compartments: expected {self.options.num_compartments} modules, got {len(compartments)}"
            )
        own = list(self.parameters())
        expected = [[*parameter.shape[1:]] for parameter in own]
        for index, compartment in enumerate(compartments):
            given = [[*parameter.shape] for parameter in compartment.parameters()]
            if given != expected:
                raise ValueError(
                    f"compartments[{index}]: expected parameters of shapes {expected}, got {given}"
                )
            for parameter, value in zip(own, compartment.parameters(), strict=True):
                parameter[index].copy_(value)

    def forward(self, distance: Tensor) -> Tensor:
        """Features [..., C F] of distances to anchors [..., A]."""
        options = self.options
        dealt = distance.reshape(
            -1, options.num_anchors // options.num_compartments, options.num_compartments
        )
        hidden = torch.baddbmm(self.expand_bias[:, None], dealt.permute(2, 0, 1), self.expand_weight.mT)
        hidden = ACTIVATIONS[options.activation](hidden)
        y = torch.baddbmm(self.project_bias[:, None], hidden, self.project_weight.mT)
        y = layer_norm(y, y.shape[-1:]) * self.norm_weight[:, None] + self.norm_bias[:, None]
        return y.transpose(0, 1).reshape(*distance.shape[:-1], options.output_dim)
