"""Simplices in a network: a channel of simplex features, and losses on volume and shape.

Legend: k order (a simplex has k + 1 vertices), P = k (k + 1) / 2 pairs of vertices, V embedding size of a vertex.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stratcore import ops

MAX_ORDER = 8
VOLUME_FEATURES = ("log_volume", "squared_volume")

# Nats of log-volume below which a simplex counts no further: losses and features of degenerate ones stay finite.
_DEEPEST = 100.0


def regular_simplex(order: int, dim: int | None = None, *, edge: float = 1.0) -> Tensor:
    """Vertices of a regular simplex, centered at 0, in its first k coordinates.

    Args:
        order: k, at least 1.
        dim: size of a vertex, at least k (the default); coordinates beyond k are 0.
        edge: length of every edge.

    Returns:
        [k + 1, dim], float64. The edges from vertex 0 are the rows of the Cholesky factor of their Gram matrix, so
        k dimensions are enough.

    Raises:
        ValueError: order or dim too small.
    """
    dim = order if dim is None else dim
    if not 1 <= order <= dim:
        raise ValueError(f"regular_simplex: expected 1 <= order <= dim, got order {order} and dim {dim}")
    gram = (torch.eye(order, dtype=torch.float64) + 1) / 2
    vertices = pad(torch.linalg.cholesky(gram), (0, 0, 1, 0))
    return edge * pad(vertices - vertices.mean(0), (0, dim - order))


def _log_regular_volume(order: int) -> float:
    """Log-volume of the regular simplex with edges of length 1: V^2 = (k + 1) / (2^k (k!)^2)."""
    return 0.5 * (math.log(order + 1) - order * math.log(2)) - math.lgamma(order + 1)


def measured(simplices: Tensor | ops.SimplexMeasures, *names: str) -> list[Tensor]:
    """Fields of the measures of simplices, computed if points [..., k + 1, D] are given.

    Raises:
        ValueError: given measures lack one.
    """
    if isinstance(simplices, Tensor):
        simplices = ops.simplex_measures(simplices, outputs=names)
    found = simplices._asdict()
    if missing := [name for name in names if found[name] is None]:
        raise ValueError(f"simplices: expected measures with {', '.join(names)}, got no {missing[0]}")
    return [found[name] for name in names]


@dataclass(frozen=True, kw_only=True)
class KSimplexOptions:
    """Size and form of a `KSimplexChannel`.

    Args:
        input_dim: size of a token.
        order: k, in [1, 8].
        embed_dim: V, at least k.
        scale: length of the deformation against the template's edge of 1.
        volume_feature: 'log_volume': 1 + log(volume / volume of the template). 'squared_volume': the source
            documents' feature; its values lie far below the squared distances (5e-4 against 1 for k = 4), so that
            the LayerNorm maps it to about -sqrt(P) for every token: no information passes.
    """

    input_dim: int
    order: int = 4
    embed_dim: int = 8
    scale: float = 0.05
    volume_feature: str = "log_volume"

    def __post_init__(self) -> None:
        if self.input_dim < 1:
            raise ValueError(f"input_dim: expected at least 1, got {self.input_dim}")
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order: expected a number in [1, {MAX_ORDER}], got {self.order}")
        if self.embed_dim < self.order:
            raise ValueError(f"embed_dim: expected at least order = {self.order}, got {self.embed_dim}")
        if not self.scale > 0:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")
        if self.volume_feature not in VOLUME_FEATURES:
            raise ValueError(
                f"volume_feature: expected one of {', '.join(VOLUME_FEATURES)}, got {self.volume_feature!r}"
            )

    @property
    def num_features(self) -> int:
        """P + 1."""
        return self.order * (self.order + 1) // 2 + 1


class KSimplexChannel(nn.Module):
    """Features of a simplex that every token spans: a regular template, deformed.

        X = T + scale * reshape(W x + b),    features = LayerNorm([|X_i - X_j|^2, i < j; volume])

    The volume feature is on the distances' footing: 1 at the template, and a relative change of the volume moves it
    as much as the same absolute change moves a squared distance. The bare log-volume (-3.8 at the template for
    k = 4) would be as dead behind the LayerNorm as the squared volume: one entry far from P equal ones is always
    normalized to sqrt(P).

    Shapes: input [..., input_dim]; features [..., P + 1] in the dtype of the LayerNorm's weights.
    Gradient: through the vertices; a degenerate simplex passes one through its distances only.
    Source: the source documents, with k = 4, V = 8, scale 0.05 and 'squared_volume'.
    """

    template: Tensor

    def __init__(self, options: KSimplexOptions) -> None:
        super().__init__()
        self.options = options
        self.deform = nn.Linear(options.input_dim, (options.order + 1) * options.embed_dim)
        self.norm = nn.LayerNorm(options.num_features)
        template = regular_simplex(options.order, options.embed_dim)
        self.register_buffer("template", template.to(self.deform.weight.dtype))

    def vertices(self, x: Tensor) -> Tensor:
        """Vertices [..., k + 1, V] of the tokens' simplices."""
        offset = self.deform(x).unflatten(-1, self.template.shape)
        return self.template + self.options.scale * offset

    def measure(self, x: Tensor) -> ops.SimplexMeasures:
        """Squared distances, log-volumes and the volume feature of the simplices of tokens [..., input_dim]."""
        outputs = {"squared_distances", "log_volume", self.options.volume_feature}
        return ops.simplex_measures(self.vertices(x), outputs=sorted(outputs))

    def features(self, simplices: ops.SimplexMeasures) -> Tensor:
        """Features [..., P + 1] of measured simplices."""
        distances, volume = measured(simplices, "squared_distances", self.options.volume_feature)
        if self.options.volume_feature == "log_volume":
            relative = volume - _log_regular_volume(self.options.order)
            volume = 1 + relative.clamp_min(-_DEEPEST)
        features = torch.cat([distances, volume.unsqueeze(-1)], -1)
        return self.norm(features.to(self.norm.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., P + 1] of tokens [..., input_dim]."""
        return self.features(self.measure(x))


# ---- volume and shape of given simplices


def cm_barrier(simplices: Tensor | ops.SimplexMeasures, min_volume: float) -> Tensor:
    """Barrier that keeps simplices from collapsing: mean relu(log v_min - log V)^2.

    Args:
        simplices: points [..., k + 1, D], or their measures (`ops.simplex_measures`).
        min_volume: v_min > 0, in the unit of a volume.

    Returns:
        Scalar; 0 where every volume is at least v_min.

    Raises:
        ValueError: v_min is not positive.

    Gradient: that of log V, which grows as 1 / height. A degenerate simplex counts 100^2 and has none.
    """
    if not min_volume > 0:
        raise ValueError(f"cm_barrier: expected a positive min_volume, got {min_volume}")
    below = math.log(min_volume) - measured(simplices, "log_volume")[0]
    return below.clamp(0.0, _DEEPEST).square().mean()


def log_regularity(simplices: Tensor | ops.SimplexMeasures) -> Tensor:
    """Logarithm of V / V_regular, V_regular being that of the regular simplex of the same mean squared edge.

    Args:
        simplices: points [..., k + 1, D], or their measures (`ops.simplex_measures`).

    Returns:
        [...], at most 0 up to rounding, and 0 for regular simplices alone; -inf for degenerate ones.
    """
    log_volume, distances = measured(simplices, "log_volume", "squared_distances")
    order = (math.isqrt(8 * distances.shape[-1] + 1) - 1) // 2
    mean = distances.mean(-1)
    log_edge = 0.5 * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return log_volume - _log_regular_volume(order) - order * log_edge


def regularity(simplices: Tensor | ops.SimplexMeasures) -> Tensor:
    """V / V_regular in [0, 1], see `log_regularity`: 1 for regular simplices, 0 for degenerate ones."""
    return log_regularity(simplices).exp()


def regularity_loss(simplices: Tensor | ops.SimplexMeasures) -> Tensor:
    """Mean of -log(V / V_regular): free of scale, 0 where all are regular; a degenerate simplex counts 100."""
    return -log_regularity(simplices).clamp_min(-_DEEPEST).mean()
