"""The geometric dual-stream vision transformer. Legend: B images, T tokens, D token size, O embedding, A anchors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stratcore import ops
from stratcore.layers.constellation import Constellation, Patchwork
from stratcore.models.dual_stream_vit_blocks import (
    PairBlock,
    PixelScale,
    Streams,
    Tokenizer,
    TokenPool,
    TransformerBlock,
    embedding_projection,
    matched_perceptron,
    start_at_base_rate,
)
from stratcore.models.dual_stream_vit_config import DualStreamViTOptions
from stratcore.ops import SimplexMeasures


class DualStreamViTOutput(NamedTuple):
    """What the model says of B images.

    logits: [B, C]. embedding: [B, O], of length 1, as the two below. geometric_logits: [B, C], with a classifier of
    the geometric stream's own. geometric_embedding, standard_embedding: of the streams, where they have one.
    distance: 1 - cosine to every anchor, [B, A]; nearest: anchor of each image, int64 [B]; None without anchors.
    simplices: measures of the tokens' simplices, one for each dual block. expert_logits: [B, C] each, of towers that
    have classifiers of their own (`ArbitrationViT`).
    """

    logits: Tensor
    embedding: Tensor
    geometric_logits: Tensor | None = None
    geometric_embedding: Tensor | None = None
    standard_embedding: Tensor | None = None
    distance: Tensor | None = None
    nearest: Tensor | None = None
    simplices: tuple[SimplexMeasures, ...] = ()
    expert_logits: tuple[Tensor, ...] = ()

    def embeddings(self) -> list[Tensor]:
        """The joint embedding and those of the streams that have one."""
        own = (self.embedding, self.geometric_embedding, self.standard_embedding)
        return [each for each in own if each is not None]


class DualStreamViT(nn.Module):
    """A geometric and a standard stream of tokens that read each other, and anchors that read where they meet.

        tokens -> g, s;  dual blocks (g with simplex features);  then
        cross blocks:    e_g = n(P_g pool g),  e_s = n(P_s pool s),  e = n(e_g + e_s)
        fused blocks:    f = LN(W [g; s]) through ordinary blocks,  e = n(P pool f),  e_g as above if wished
        logits = classifier([patchwork(1 - e A^T); e_g; e_s]), or [..; e] for fused blocks

    n normalizes onto the sphere with the gradient of `ops.sphere_normalize`.

    Shapes: images [B, channels, H, W], bytes, or floats in [0, 1].
    Numerics: what follows the pooling is computed in float32 under autocast too: cosines near 1 need the digits.
    Source: the source documents; parameter counts of `ARCHITECTURES` are theirs to the unit.
    """

    def __init__(self, options: DualStreamViTOptions) -> None:
        super().__init__()
        self.options, self.embedding_dim = options, options.output_dim
        dim = options.stream_dim
        self.pixels = PixelScale(options.channels)
        self.tokenizer = Tokenizer(options)
        self.geometric_entry = nn.Linear(options.embed_dim, dim)
        self.standard_entry = nn.Linear(options.embed_dim, dim)
        depth = options.num_dual_blocks + options.num_cross_blocks + options.num_fused_blocks
        drop = [options.drop_path * index / max(1, depth - 1) for index in range(depth)]
        pairs = options.num_dual_blocks + options.num_cross_blocks
        self.pairs = nn.ModuleList(
            PairBlock(options, dual=index < options.num_dual_blocks, drop_path=drop[index])
            for index in range(pairs)
        )
        self.geometric_norm, self.standard_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.geometric_pool = TokenPool(dim, options.pooling) if options.has_geometric_embedding else None
        self.geometric_output = (
            embedding_projection(dim, options) if options.has_geometric_embedding else None
        )
        if options.bidirectional:
            self.standard_pool, self.standard_output = (
                TokenPool(dim, options.pooling),
                embedding_projection(dim, options),
            )
        else:
            width = options.fused_dim
            self.fuse = nn.Sequential(nn.Linear(2 * dim, width), nn.LayerNorm(width))
            self.fused = nn.Sequential(
                *(
                    TransformerBlock(width, options.num_heads, each, qk_norm=options.qk_norm)
                    for each in drop[pairs:]
                ),
                nn.LayerNorm(width),
            )
            self.fused_pool, self.fused_output = (
                TokenPool(width, options.pooling),
                embedding_projection(width, options),
            )
        self._build_head()

    def _build_head(self) -> None:
        options = self.options
        self.constellation = Constellation(options.constellation)
        self.patchwork: nn.Module = Patchwork(options.patchwork)
        width = options.patchwork.output_dim
        if options.readout == "perceptron":
            size = sum(p.numel() for part in (self.constellation, self.patchwork) for p in part.parameters())
            self.patchwork = matched_perceptron(options.output_dim, width, size)
            del self.constellation
        inputs = width + options.output_dim * (2 if options.bidirectional else 1)
        self.classifier = nn.Sequential(
            nn.Linear(inputs, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Dropout(options.dropout),
            nn.Linear(width, options.num_classes),
        )
        self.geometric_classifier = (
            nn.Linear(options.output_dim, options.num_classes) if options.geometric_classifier else None
        )

    @torch.no_grad()
    def start_at_base_rate(self) -> None:
        """Bias of every class -log(C - 1): one sigmoid a class then starts at 1 / C.

        From 0, the first steps would only push all logits down, and all embeddings to one point on the way.
        """
        start_at_base_rate(self.classifier[-1])
        if self.geometric_classifier is not None:
            start_at_base_rate(self.geometric_classifier)

    @property
    def anchors(self) -> nn.Parameter | None:
        """Anchors [A, O] of any lengths; None without a constellation."""
        return self.constellation.anchors if self.options.readout == "constellation" else None

    def num_parameters(self) -> dict[str, int]:
        """Trainable parameters by part: geometric and standard stream, fused blocks, constellation; and in all."""
        own: list[nn.Module] = [self.patchwork]
        if self.options.readout == "constellation":
            own.append(self.constellation)
        pairs = [pair for pair in self.pairs if isinstance(pair, PairBlock)]
        parts: dict[str, list[nn.Module]] = {
            "geometric": [self.geometric_entry, self.geometric_norm, *(pair.geometric for pair in pairs)],
            "standard": [self.standard_entry, self.standard_norm, *(pair.standard for pair in pairs)],
            "fused": [] if self.options.bidirectional else [self.fused],
            "constellation": own,
            "total": [self],
        }
        return {
            name: sum(p.numel() for module in modules for p in module.parameters())
            for name, modules in parts.items()
        }

    def on_sphere(self, x: Tensor) -> Tensor:
        """Rows [B, O] of length 1, with the gradient that the options ask for."""
        options = self.options
        return ops.sphere_normalize(
            x,
            self.anchors if options.separation else None,
            tangential=options.tangential,
            separation=options.separation,
            separation_sign=options.separation_sign,
            jacobian="normalize",
        )

    def forward(self, images: Tensor) -> DualStreamViTOutput:
        """Logits and embeddings of images."""
        tokens = self.tokenizer(self.pixels(images))
        streams = Streams(self.geometric_entry(tokens), self.standard_entry(tokens))
        for block in self.pairs:
            streams = block(streams)
        geometric, standard = (
            self.geometric_norm(streams.geometric),
            self.standard_norm(streams.standard),
        )
        vectors: dict[str, Tensor] = {}
        if self.geometric_pool is not None:
            vectors["geometric"] = self.geometric_pool(geometric)
        if self.options.bidirectional:
            vectors["standard"] = self.standard_pool(standard)
        else:
            fused = self.fused(self.fuse(torch.cat([geometric, standard], -1)))
            vectors["fused"] = self.fused_pool(fused)
        with torch.autocast(images.device.type, enabled=False):
            vectors = {name: vector.float() for name, vector in vectors.items()}
            return self._read(vectors, streams.simplices)

    def _read(
        self, vectors: dict[str, Tensor], simplices: tuple[SimplexMeasures, ...]
    ) -> DualStreamViTOutput:
        """From pooled tokens to embeddings and logits."""
        geometric = standard = None
        if self.geometric_output is not None:
            geometric = self.on_sphere(self.geometric_output(vectors["geometric"]))
        if self.options.bidirectional:
            assert geometric is not None
            standard = self.on_sphere(self.standard_output(vectors["standard"]))
            shared = geometric.detach() if self.options.decouple else geometric
            embedding = self.on_sphere(shared + standard)
            read = [shared, standard]
        else:
            embedding = self.on_sphere(self.fused_output(vectors["fused"]))
            read = [embedding]
        distance = nearest = None
        if self.options.readout == "constellation":
            distance, nearest = self.constellation(embedding)
        scale = math.sqrt(embedding.shape[-1]) if self.options.standardize else 1.0
        if distance is None:
            patches = self.patchwork(scale * embedding)
        else:
            patches = self.patchwork(scale * (distance - 1) if self.options.standardize else distance)
        read = [scale * each for each in read]
        own = self.geometric_classifier
        return DualStreamViTOutput(
            logits=self.classifier(torch.cat([patches, *read], -1)),
            embedding=embedding,
            geometric_logits=None if own is None or geometric is None else own(scale * geometric),
            geometric_embedding=geometric,
            standard_embedding=standard,
            distance=distance,
            nearest=nearest,
            simplices=simplices,
        )
