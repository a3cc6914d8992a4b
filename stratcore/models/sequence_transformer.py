"""A small pre-norm transformer whose encoding of positions is exchanged, all else being equal.

Legend: B batch, N tokens, F input channels, C channels, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stratcore.layers.position_attention import PositionAttention, PositionAttentionOptions
from stratcore.layers.toroidal_attention import ToroidalAttention
from stratcore.layers.toroidal_options import ToroidalAttentionOptions

POSITIONS = {
    "none": "no positions",
    "rope": "RoPE",
    "alibi": "ALiBi",
    "t5": "T5 bias",
    "rope_axial": "RoPE, axial",
    "alibi_axial": "ALiBi, axial",
    "t5_axial": "T5 bias, axial",
    "open": "torus cut open",
    "torus": "torus",
}
_POSITION_PARAMETERS = ("tables_AKH", "raw_slopes")


@dataclass(frozen=True, kw_only=True)
class SequenceTransformerOptions:
    """Size of a `SequenceTransformer`, and what it reads and gives.

    Args:
        vocabulary: tokens to choose from; None where inputs are real vectors.
        in_channels: F, of real inputs; None where they are tokens.
        outputs: O, logits or values a token.
        length: most tokens of a sequence.
        lattice: 1 to 3 periods of the torus that the tokens lie on, row-major; a longer sequence goes around it.
        positions: one of `POSITIONS`. rope, alibi and t5 know the number of the token; their axial forms its
            coordinates on the lattice, without going around. torus: `ToroidalAttention` with rotary of whole turns
            and learned slopes. open: the same on a lattice so much larger that nothing goes around, its control.
        causal: later tokens are hidden (a decoder); else all are seen (an encoder).
        dim: C, a multiple of `num_heads`.
        num_layers: blocks.
        num_heads: of every attention.
        mlp_ratio: hidden size of a block's perceptron over C.
        rope_base: of rope and rope_axial.
        num_buckets: of t5 and t5_axial, an axis.
        slope: what the slopes of torus and open start from; None: those of ALiBi, another for every head.
    """

    vocabulary: int | None = None
    in_channels: int | None = None
    outputs: int
    length: int
    lattice: tuple[int, ...]
    positions: str
    causal: bool = False
    dim: int = 96
    num_layers: int = 3
    num_heads: int = 4
    mlp_ratio: int = 4
    rope_base: float = 10_000.0
    num_buckets: int = 32
    slope: float | None = None

    def __post_init__(self) -> None:
        if (self.vocabulary is None) == (self.in_channels is None):
            raise ValueError(
                "vocabulary: expected either it or in_channels, got "
                f"{self.vocabulary} and in_channels = {self.in_channels}"
            )
        for name in ("vocabulary", "in_channels", "outputs", "length", "num_layers", "mlp_ratio"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {value}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions: expected one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if not 1 <= len(self.lattice) <= 3 or min(self.lattice) < 1:
            raise ValueError(f"lattice: expected 1 to 3 periods >= 1, got {self.lattice}")

    @property
    def grid(self) -> tuple[int, ...]:
        """The open grid that holds the sequence: the lattice's later axes behind as long a first one as needed."""
        rest = self.lattice[1:]
        return (math.ceil(self.length / math.prod(rest)), *rest)


class SequenceTransformer(nn.Module):
    """Blocks of attention and perceptron over tokens or real vectors, an output for every token.

        x <- x + attention(norm(x)),  x <- x + W_2 gelu(W_1 norm(x)),  output = W norm(x)

    Models that differ in `positions` alone have the same weights at their start where torch's generator is in the
    same state; parameters of the positions (slopes of the torus, tables of T5) draw nothing.

    Shapes: tokens [B, N] int64, or real vectors [B, N, F]; out [B, N, O].
    Gradient: exact.
    """

    def __init__(self, options: SequenceTransformerOptions) -> None:
        super().__init__()
        self.options = options
        dim = options.dim
        if options.vocabulary is not None:
            self.entry: nn.Module = nn.Embedding(options.vocabulary, dim)
        else:
            self.entry = nn.Linear(options.in_channels or 1, dim)
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.exit = nn.Linear(dim, options.outputs)
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Normal weights of variance 1 / inputs, those that end a branch smaller by the root of their number."""
        branches = 2 * self.options.num_layers
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                ends = name.endswith(("o_proj", "mlp.2"))
                std = module.in_features**-0.5 * (branches**-0.5 if ends else 1.0)
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def num_parameters(self) -> dict[str, int]:
        """Trainable parameters: `total`, and `positions`, those of the encoding of positions."""
        counts = {name: p.numel() for name, p in self.named_parameters()}
        own = sum(count for name, count in counts.items() if name.endswith(_POSITION_PARAMETERS))
        return {"total": sum(counts.values()), "positions": own}

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, N, O] of tokens [B, N] or real vectors [B, N, F].

        Raises:
            ValueError: another shape, or more tokens than `length`.
        """
        options = self.options
        shape = "[B, N]" if options.vocabulary is not None else f"[B, N, {options.in_channels}]"
        fits = inputs.ndim == 2 if options.vocabulary is not None else inputs.ndim == 3
        if not fits or (options.in_channels or inputs.shape[-1]) != inputs.shape[-1]:
            raise ValueError(f"inputs: expected {shape}, got {list(inputs.shape)}")
        if inputs.shape[1] > options.length:
            raise ValueError(f"inputs: expected at most {options.length} tokens, got {inputs.shape[1]}")
        x_BNC = self.entry(inputs)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        return self.exit(self.norm(x_BNC))


class _Block(nn.Module):
    def __init__(self, options: SequenceTransformerOptions) -> None:
        super().__init__()
        dim, hidden = options.dim, options.mlp_ratio * options.dim
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = _attention(options)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x_BNC: Tensor) -> Tensor:
        x_BNC = x_BNC + self.attention(self.attention_norm(x_BNC))
        return x_BNC + self.mlp(self.mlp_norm(x_BNC))


def _attention(options: SequenceTransformerOptions) -> nn.Module:
    grid = options.grid
    if options.positions in ("torus", "open"):
        cut = options.positions == "open"
        return ToroidalAttention(
            ToroidalAttentionOptions(
                dim=options.dim,
                num_heads=options.num_heads,
                # Twice the grid, of which the tokens fill one block: no way around is shorter than the straight one.
                lattice=tuple(2 * size for size in grid) if cut else options.lattice,
                block=grid if cut else None,
                slopes="alibi" if options.slope is None else options.slope,
                learn_slopes=True,
                causal=options.causal,
            )
        )
    encoding, _, axial = options.positions.partition("_")
    return PositionAttention(
        PositionAttentionOptions(
            dim=options.dim,
            num_heads=options.num_heads,
            encoding=encoding,
            grid=grid if axial else (options.length,),
            causal=options.causal,
            rope_base=options.rope_base,
            num_buckets=options.num_buckets,
        )
    )
