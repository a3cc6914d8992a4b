"""Two expert towers and a geometric one that learns the shape of their embeddings (run 12 of the source documents).

Legend: B images, T tokens, D token size, O embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stratcore import ops
from stratcore.layers.constellation import Constellation, Patchwork
from stratcore.models.dual_stream_vit import DualStreamViTOutput
from stratcore.models.dual_stream_vit_blocks import (
    PixelScale,
    SimplexBranch,
    StreamBlock,
    Tokenizer,
    TokenPool,
    TransformerBlock,
    embedding_projection,
    start_at_base_rate,
)
from stratcore.models.dual_stream_vit_config import DualStreamViTOptions
from stratcore.ops import SimplexMeasures

NUM_EXPERTS = 2


class GatedBlock(StreamBlock):
    """A geometric block whose cross-attention passes a learned gate, 1 / (2 blocks) at the start."""

    def __init__(self, options: DualStreamViTOptions, num_blocks: int, drop_path: float) -> None:
        super().__init__(options, SimplexBranch(options), drop_path)
        self.gate = nn.Parameter(torch.full((), 1 / (2 * num_blocks)))

    def together(self, x_BTD: Tensor, other_BTD: Tensor) -> Tensor:
        """The second half, with the gate."""
        x_BTD = x_BTD + self.gate * self.drop_path(self.cross(self.cross_norm(x_BTD), other_BTD))
        return x_BTD + self.drop_path(self.feed_forward(self.forward_norm(x_BTD)))


class ExpertTower(nn.Module):
    """Ordinary blocks, an embedding on the sphere, and a linear classifier of it."""

    def __init__(self, options: DualStreamViTOptions, drop: list[float]) -> None:
        super().__init__()
        dim = options.stream_dim
        self.entry = nn.Linear(options.embed_dim, dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, options.num_heads, each, qk_norm=options.qk_norm) for each in drop
        )
        self.norm, self.pool = nn.LayerNorm(dim), TokenPool(dim, options.pooling)
        self.output = embedding_projection(dim, options)
        self.classifier = nn.Linear(options.output_dim, options.num_classes)


class ArbitrationViT(nn.Module):
    """Experts that learn by themselves, one with sigmoids and one with a softmax, and a tower that reads both.

    Block by block the geometric tower (simplex features in every block) attends to the tokens of both experts,
    without a gradient to them; its embedding is to keep the shape of theirs (`training.gal`), and anchors read it.

    The output's `embedding` is the geometric one, `standard_embedding` the experts' sum on the sphere,
    `expert_logits` theirs, and `logits` those of the geometric tower.

    Args:
        options: sizes; each tower has num_dual_blocks + num_cross_blocks blocks.

    Raises:
        ValueError: options with fused blocks, or without simplices or anchors.

    Source: our reading of the source documents' plan, which gives neither sizes nor formulas.
    """

    def __init__(self, options: DualStreamViTOptions) -> None:
        super().__init__()
        if not options.bidirectional or options.channel != "simplex" or options.readout != "constellation":
            raise ValueError(
                "arbitration: expected num_fused_blocks=0, channel 'simplex' and readout 'constellation', got "
                f"{options.num_fused_blocks}, {options.channel!r} and {options.readout!r}"
            )
        self.options, self.embedding_dim = options, options.output_dim
        dim, depth = options.stream_dim, options.num_dual_blocks + options.num_cross_blocks
        drop = [options.drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.pixels, self.tokenizer = PixelScale(options.channels), Tokenizer(options)
        self.experts = nn.ModuleList(ExpertTower(options, drop) for _ in range(NUM_EXPERTS))
        self.entry = nn.Linear(options.embed_dim, dim)
        self.blocks = nn.ModuleList(GatedBlock(options, depth, each) for each in drop)
        self.norm, self.pool = nn.LayerNorm(dim), TokenPool(dim, options.pooling)
        self.output = embedding_projection(dim, options)
        self.constellation = Constellation(options.constellation)
        self.patchwork = Patchwork(options.patchwork)
        width = options.patchwork.output_dim
        self.classifier = nn.Sequential(
            nn.Linear(width + options.output_dim, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Dropout(options.dropout),
            nn.Linear(width, options.num_classes),
        )

    @property
    def anchors(self) -> nn.Parameter | None:
        """Anchors [A, O] of any lengths."""
        return self.constellation.anchors

    @torch.no_grad()
    def start_at_base_rate(self) -> None:
        """As that of `DualStreamViT`; of the experts, the one with sigmoids."""
        start_at_base_rate(self.classifier[-1])
        start_at_base_rate(self._towers()[0].classifier)

    def num_parameters(self) -> dict[str, int]:
        """Trainable parameters of the experts and in all."""
        parts = {"experts": self.experts, "total": self}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def _towers(self) -> list[ExpertTower]:
        return [tower for tower in self.experts if isinstance(tower, ExpertTower)]

    def _blocks(self) -> list[GatedBlock]:
        return [block for block in self.blocks if isinstance(block, GatedBlock)]

    def forward(self, images: Tensor) -> DualStreamViTOutput:
        """Logits and embeddings of images."""
        tokens = self.tokenizer(self.pixels(images))
        towers = self._towers()
        streams = [tower.entry(tokens) for tower in towers]
        x = self.entry(tokens)
        simplices: tuple[SimplexMeasures, ...] = ()
        for index, block in enumerate(self._blocks()):
            streams = [tower.blocks[index](each) for tower, each in zip(towers, streams, strict=True)]
            x, measures = block.alone(x)
            assert measures is not None
            simplices += (measures,)
            x = block.together(x, torch.cat([each.detach() for each in streams], 1))
        pooled = [tower.pool(tower.norm(each)) for tower, each in zip(towers, streams, strict=True)]
        pooled.append(self.pool(self.norm(x)))
        with torch.autocast(images.device.type, enabled=False):
            *experts, own = (each.float() for each in pooled)
            return self._read(
                own, [t.output(each) for t, each in zip(towers, experts, strict=True)], simplices
            )

    def _read(
        self, pooled: Tensor, experts: list[Tensor], simplices: tuple[SimplexMeasures, ...]
    ) -> DualStreamViTOutput:
        def on_sphere(x: Tensor) -> Tensor:
            return ops.sphere_normalize(x, jacobian="normalize")

        scale = math.sqrt(self.options.output_dim) if self.options.standardize else 1.0
        units = [on_sphere(each) for each in experts]
        embedding = on_sphere(self.output(pooled))
        distance, nearest = self.constellation(embedding)
        patches = self.patchwork(scale * (distance - 1) if self.options.standardize else distance)
        return DualStreamViTOutput(
            logits=self.classifier(torch.cat([patches, scale * embedding], -1)),
            embedding=embedding,
            geometric_embedding=embedding,
            standard_embedding=on_sphere(units[0] + units[1]),
            distance=distance,
            nearest=nearest,
            simplices=simplices,
            expert_logits=tuple(
                tower.classifier(scale * unit) for tower, unit in zip(self._towers(), units, strict=True)
            ),
        )
