"""Self-attention with the usual encodings of position: rotary, ALiBi, T5's buckets, or none.

Legend: B batch, N tokens, C channels, H heads, E head size, P pairs of channels (E // 2), K buckets, A axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from stratcore import ops

ENCODINGS = ("none", "rope", "alibi", "t5")


def grid_coordinates(grid: tuple[int, ...]) -> Tensor:
    """Coordinates [A, prod(grid)], int64, of tokens numbered row-major on an open grid."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def rotary_angles(position_N: Tensor, pairs: int, base: float) -> Tensor:
    """Angles [N, P] in radians, float64: position * base^(-m / P) for pair m.

    Source: J. Su et al., arXiv 2104.09864, eq. 15, with theta_m = base^(-2 m / E).
    """
    frequencies_P = base ** (-torch.arange(pairs, dtype=torch.float64) / max(1, pairs))
    return position_N.double()[:, None] * frequencies_P


def relative_buckets(offset: Tensor, num_buckets: int, max_distance: int, *, bidirectional: bool) -> Tensor:
    """T5's bucket of each offset of a key from its query.

    Half of a direction's buckets hold one distance each, the others run evenly in its logarithm to `max_distance`;
    what lies beyond shares the last one.

    Args:
        offset: position of the key minus that of the query, int64, any shape.
        num_buckets: K, even where both directions have their half of them.
        max_distance: from here on distances are no longer told apart; more than the distances of their own bucket.
        bidirectional: whether later keys have buckets of their own; else they are those of distance 0.

    Returns:
        Whole numbers in [0, K), of the shape of `offset`.

    Source: C. Raffel et al., arXiv 1910.10683, section 2.1, and the published code.
    """
    count = num_buckets // 2 if bidirectional else num_buckets
    distance = offset.abs() if bidirectional else (-offset).clamp(min=0)
    exact = count // 2
    ratio = (distance.clamp(min=1).double() / exact).log() / math.log(max_distance / exact)
    # The least excess keeps a whole step of the logarithm from being rounded down.
    spaced = exact + (ratio * (count - exact) + 1e-9).floor().long()
    bucket = torch.where(distance < exact, distance, spaced.clamp(max=count - 1))
    return bucket + count * (offset > 0).long() if bidirectional else bucket


@dataclass(frozen=True, kw_only=True)
class PositionAttentionOptions:
    """Size and encoding of a `PositionAttention`.

    Args:
        dim: C, a multiple of `num_heads`.
        num_heads: H.
        encoding: 'none', 'rope', 'alibi' or 't5'.
        grid: sizes of an open grid whose row-major order is that of the tokens. Every axis has its own positions; a
            single axis, so (N,), is the ordinary encoding of a sequence.
        causal: later tokens are hidden.
        rope_base: of the rotary frequencies.
        num_buckets: K, of T5's bias, an axis.
        max_distance: of T5's bias; None: the size of each axis, so that no bucket is left unused.
    """

    dim: int
    num_heads: int
    encoding: str
    grid: tuple[int, ...]
    causal: bool = False
    rope_base: float = 10_000.0
    num_buckets: int = 32
    max_distance: int | None = None

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim < 1 or self.dim % self.num_heads:
            raise ValueError(f"dim: expected a multiple of num_heads = {self.num_heads}, got {self.dim}")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding: expected one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        if not self.grid or min(self.grid) < 1:
            raise ValueError(f"grid: expected sizes >= 1, got {self.grid}")
        if self.encoding == "rope" and self.dim // self.num_heads < 2 * len(self.grid):
            raise ValueError(
                f"dim: expected at least {2 * len(self.grid)} channels a head, two an axis of {self.grid}, "
                f"got {self.dim // self.num_heads}"
            )
        if not self.rope_base > 1:
            raise ValueError(f"rope_base: expected a number > 1, got {self.rope_base}")
        if self.num_buckets < 4 or self.num_buckets % 4:
            raise ValueError(f"num_buckets: expected a multiple of 4, got {self.num_buckets}")
        exact = self.num_buckets // (2 if self.one_way else 4)
        if self.max_distance is not None and self.max_distance <= exact:
            raise ValueError(f"max_distance: expected more than {exact}, got {self.max_distance}")

    @property
    def one_way(self) -> bool:
        """Whether no key is later than its query on any axis, so that T5's buckets hold one direction."""
        return self.causal and len(self.grid) == 1


class PositionAttention(nn.Module):
    """Self-attention that knows positions by one of the usual encodings.

        y = W_o (softmax_j(<R_i q_i, R_j k_j> / sqrt(E) + b_h(i, j)) v_j) + b

    rope: R turns channel m and m + P by `rotary_angles`; on several axes the pairs are dealt to them in equal runs.
    alibi: b = -slope_h sum_a |i_a - j_a|, slopes of `ops.alibi_slopes`, fixed. t5: b = sum_a table_a[bucket, h],
    learned from 0, of `relative_buckets`. none: neither; tokens are a set, in order only where causal.

    Shapes: tokens [B, N, C], in and out, N at most the sites of the grid.
    Gradient: exact; to the tables of T5 too.
    Numerics: rotary and biases in float32 or better; the bias is given in the dtype of the queries.
    Cost: 4 B H N^2 E operations beside the projections; alibi and t5 hold a bias [H, N, N].
    Source: arXiv 2104.09864 (rope), 2108.12409 (alibi), 1910.10683 (t5).
    """

    distance_NN: Tensor
    bucket_ANN: Tensor
    cosine_NP: Tensor
    sine_NP: Tensor
    slope_H: Tensor
    later_NN: Tensor

    def __init__(self, options: PositionAttentionOptions) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        coordinate_AN = grid_coordinates(options.grid)
        if options.encoding == "rope":
            angle_NP = self._angles(coordinate_AN)
            self.register_buffer("cosine_NP", angle_NP.cos().float(), persistent=False)
            self.register_buffer("sine_NP", angle_NP.sin().float(), persistent=False)
        offset_ANN = coordinate_AN[:, None, :] - coordinate_AN[:, :, None]  # key minus query
        if options.encoding == "alibi":
            self.register_buffer("distance_NN", offset_ANN.abs().sum(0).float(), persistent=False)
            self.register_buffer("slope_H", ops.alibi_slopes(options.num_heads), persistent=False)
        if options.encoding == "t5":
            self.register_buffer("bucket_ANN", self._buckets(offset_ANN), persistent=False)
            axes, buckets = len(options.grid), options.num_buckets
            self.tables_AKH = nn.Parameter(torch.zeros(axes, buckets, options.num_heads))
        later_NN = torch.ones(offset_ANN.shape[1:], dtype=torch.bool).triu(1)
        self.register_buffer("later_NN", later_NN, persistent=False)

    def _angles(self, coordinate_AN: Tensor) -> Tensor:
        """[N, P]."""
        options = self.options
        pairs, axes = options.dim // options.num_heads // 2, len(options.grid)
        counts = [(axis + 1) * pairs // axes - axis * pairs // axes for axis in range(axes)]
        turns = zip(coordinate_AN, counts, strict=True)
        return torch.cat([rotary_angles(row, count, options.rope_base) for row, count in turns], -1)

    def _buckets(self, offset_ANN: Tensor) -> Tensor:
        options = self.options
        exact = options.num_buckets // (2 if options.one_way else 4)
        found = []
        for offset_NN, size in zip(offset_ANN, options.grid, strict=True):
            far = options.max_distance or max(size, exact + 1)
            found.append(
                relative_buckets(offset_NN, options.num_buckets, far, bidirectional=not options.one_way)
            )
        return torch.stack(found)

    def bias(self, tokens: int) -> Tensor | None:
        """What is added to the scores of the first `tokens` tokens, [H, N, N]; None where nothing is."""
        options = self.options
        if options.encoding == "alibi":
            bias_HNN = -self.slope_H[:, None, None] * self.distance_NN[:tokens, :tokens]
        elif options.encoding == "t5":
            near_ANN = self.bucket_ANN[:, :tokens, :tokens]
            tables = zip(self.tables_AKH.float(), near_ANN, strict=True)
            bias_HNN = torch.stack([table_KH[near_NN] for table_KH, near_NN in tables]).sum(0).movedim(-1, 0)
        else:
            return None
        return (
            bias_HNN.masked_fill(self.later_NN[:tokens, :tokens], -torch.inf) if options.causal else bias_HNN
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Attention of tokens to each other.

        Raises:
            ValueError: another shape, or more tokens than the grid has.
        """
        options, most = self.options, math.prod(self.options.grid)
        if x_BNC.ndim != 3 or x_BNC.shape[2] != options.dim or x_BNC.shape[1] > most:
            raise ValueError(f"x: expected [B, N <= {most}, {options.dim}], got {list(x_BNC.shape)}")
        tokens = x_BNC.shape[1]
        q, k, v = (
            project(x_BNC).unflatten(-1, (options.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if options.encoding == "rope":
            q, k = self._turned(q), self._turned(k)
        bias_HNN = self.bias(tokens)
        if bias_HNN is None:
            out = scaled_dot_product_attention(q, k, v, is_causal=options.causal)
        else:
            bias = bias_HNN.to(q.dtype).expand(x_BNC.shape[0], -1, -1, -1)
            out = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _turned(self, x_BHNE: Tensor) -> Tensor:
        pairs, tokens = self.cosine_NP.shape[1], x_BHNE.shape[2]
        cosine, sine = self.cosine_NP[:tokens], self.sine_NP[:tokens]
        first, second, rest = x_BHNE.split([pairs, pairs, x_BHNE.shape[-1] - 2 * pairs], -1)
        turned = (first * cosine - second * sine, first * sine + second * cosine, rest)
        return torch.cat(turned, -1).to(x_BHNE.dtype)
