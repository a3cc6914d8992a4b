"""The plain vision transformer that the dual-stream one is compared with. Legend: B images, T tokens, O embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stratcore.models.dual_stream_vit import DualStreamViT, DualStreamViTOutput
from stratcore.models.dual_stream_vit_blocks import (
    PixelScale,
    Tokenizer,
    TokenPool,
    TransformerBlock,
    start_at_base_rate,
)
from stratcore.models.dual_stream_vit_config import DualStreamViTOptions

HEAD_DIMS = (24, 32, 16)
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class PlainViTOptions:
    """Size of a plain vision transformer.

    Args:
        frame: tokenizer, classes, pooling and dropout are those of these options.
        dim: size of a token, a multiple of `num_heads`.
        depth: blocks.
        num_heads: of every attention.
    """

    frame: DualStreamViTOptions
    dim: int
    depth: int
    num_heads: int

    def __post_init__(self) -> None:
        if self.depth < 1 or self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(
                "dim: expected a multiple of num_heads >= 1 and a depth >= 1, got "
                f"{self.dim}, {self.num_heads} and {self.depth}"
            )


class PlainViT(nn.Module):
    """One stream: tokens, ordinary blocks, pooling, a linear classifier; no simplices, no anchors, no sphere.

    Its output has the pooled vector on the sphere as its embedding, so that the same scans read both models.

    Shapes: images [B, channels, H, W], bytes, or floats in [0, 1].
    """

    anchors: nn.Parameter | None = None

    def __init__(self, options: PlainViTOptions) -> None:
        super().__init__()
        self.options, self.embedding_dim = options.frame, options.dim
        frame = options.frame
        self.pixels, self.tokenizer = PixelScale(frame.channels), Tokenizer(frame)
        self.entry = nn.Linear(frame.embed_dim, options.dim)
        drop = [frame.drop_path * index / max(1, options.depth - 1) for index in range(options.depth)]
        self.blocks = nn.Sequential(
            *(TransformerBlock(options.dim, options.num_heads, each, qk_norm=frame.qk_norm) for each in drop),
            nn.LayerNorm(options.dim),
        )
        self.pool = TokenPool(options.dim, frame.pooling)
        self.classifier = nn.Sequential(nn.Dropout(frame.dropout), nn.Linear(options.dim, frame.num_classes))

    def start_at_base_rate(self) -> None:
        """As that of `DualStreamViT`."""
        start_at_base_rate(self.classifier[-1])

    def num_parameters(self) -> dict[str, int]:
        """Trainable parameters in all."""
        return {"total": sum(p.numel() for p in self.parameters())}

    def forward(self, images: Tensor) -> DualStreamViTOutput:
        """Logits and embedding of images."""
        x = self.pool(self.blocks(self.entry(self.tokenizer(self.pixels(images)))))
        with torch.autocast(images.device.type, enabled=False):
            x = x.float()
            return DualStreamViTOutput(logits=self.classifier(x), embedding=normalize(x, dim=-1))


def plain_options(frame: DualStreamViTOptions) -> PlainViTOptions:
    """The plain transformer whose number of parameters is nearest to that of a dual-stream one.

    Its depth is that of the longer path (dual, then cross or fused blocks), or up to two blocks more where the width,
    a multiple of a usual head size, comes nearer so.

    Raises:
        ValueError: none comes within 2 %.
    """
    with torch.device("meta"):
        wanted = DualStreamViT(frame).num_parameters()["total"]
        outside = sum(p.numel() for p in Tokenizer(frame).parameters())
    depth = frame.num_dual_blocks + frame.num_cross_blocks + frame.num_fused_blocks

    def distance(options: PlainViTOptions) -> int:
        dim, score = options.dim, frame.pooling == "attention"
        ends = (frame.embed_dim + 1) * dim + 2 * dim + (dim + 1) * score + (dim + 1) * frame.num_classes
        scales = 2 * (dim // options.num_heads) * frame.qk_norm
        return abs(outside + ends + options.depth * ((12 * dim + 13) * dim + scales) - wanted)

    best = min(
        (
            PlainViTOptions(frame=frame, dim=dim, depth=layers, num_heads=dim // head)
            for layers in range(depth, depth + 3)
            for head in HEAD_DIMS
            for dim in range(head, max(2 * head, int((wanted / layers) ** 0.5)), head)
        ),
        key=distance,
    )
    if distance(best) > TOLERANCE * wanted:
        raise ValueError(
            f"no plain transformer has {wanted:,} parameters within {100 * TOLERANCE:g} %: "
            f"the nearest is off by {distance(best):,}"
        )
    return best
