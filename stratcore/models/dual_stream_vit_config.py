"""Architecture options of the dual-stream vision transformer, and those of the source documents by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stratcore.layers.constellation import ConstellationOptions, PatchworkOptions
from stratcore.layers.simplex import KSimplexOptions

TOKENIZERS = ("patch", "convolution")
CHANNELS = ("simplex", "perceptron", "none")
EMBEDDING_NORMS = ("batch", "layer")
READOUTS = ("constellation", "perceptron")
POOLINGS = ("mean", "attention")
SIGNS = ("repel", "reference")


@dataclass(frozen=True, kw_only=True)
class DualStreamViTOptions:
    """Two token streams that read each other, one with simplex features, and anchors on the sphere where they meet.

    Args:
        num_classes: C.
        image_size: height and width in pixels, a multiple of `patch_size`.
        channels: of the images.
        patch_size: pixels of a token's side.
        tokenizer: 'patch': one convolution of that size and stride (source documents). 'convolution': residual 3 x 3
            convolutions that halve the image log2(patch_size) times.
        tokenizer_width: channels of the first stage of 'convolution', doubled at each halving.
        embed_dim: size of a token before the streams.
        stream_dim: D, size of a token in a stream.
        num_heads: of every attention; divides `stream_dim` and `fused_dim`.
        qk_norm: queries and keys of each head are scaled to root mean square 1 times a learned weight.
        num_dual_blocks: first blocks of both streams, with simplex features in the geometric one.
        num_cross_blocks: blocks of both streams after them, without.
        num_fused_blocks: instead of cross blocks: both streams are joined and go through so many ordinary blocks.
        fused_dim: size of a joined token.
        geometric_output: of a model with fused blocks, a projection of the geometric stream to an embedding of its
            own. Without fused blocks there always is one.
        geometric_classifier: a linear classifier on the geometric embedding alone.
        pooling: of tokens: 'mean' (source documents), or 'attention': softmax weights of one learned score.
        output_dim: O, size of an embedding.
        embedding_norm: before the sphere: 'batch': each coordinate over the batch, so that embeddings are spread from
            the start. 'layer': over the coordinates of each (source documents); what images have in common fills the
            embedding at first, and learning waits until it is gone.
        channel: what the geometric stream adds in dual blocks: 'simplex'; the controls 'perceptron', of as many
            parameters within 2 %, and 'none'.
        volume_feature: of the simplices: 'log_volume', or 'squared_volume', the dead one of the source documents.
        readout: what the classifier reads beside the embeddings: 'constellation': distances to anchors through a
            patchwork; the control 'perceptron': of the embedding itself, of as many parameters within 2 %.
        standardize: patchwork and classifier read -cos sqrt(O) and embeddings times sqrt(O), of variance 1 for
            directions at random. The same functions, from a start where images are told apart; False: they read
            1 - cos and unit embeddings, as in the source documents, where biases drown them at first.
        num_anchors: A, a multiple of `num_compartments`.
        num_compartments: of the patchwork.
        compartment_dim: size of a compartment's output.
        activation: of the patchwork: 'gelu' or 'squared_relu'.
        anchor_init: 'xavier', 'orthogonal' or 'repulsion'.
        anchor_dropout: probability of an anchor to be dropped in a training step.
        tangential: share of the radial part that the gradient of every embedding loses.
        separation: strength with which that gradient is bent at the nearest anchor; 0: not at all.
        separation_sign: 'repel': away from the anchor. 'reference': the published sign, towards it.
        decouple: the geometric embedding and its losses are cut off from everything downstream and from the other
            stream (run 11 of the source documents).
        dropout: in the classifier.
        drop_path: probability that a sample skips a branch of the last block; linear from 0 at the first.
    """

    num_classes: int = 10
    image_size: int = 32
    channels: int = 3
    patch_size: int = 4
    tokenizer: str = "patch"
    tokenizer_width: int = 64
    embed_dim: int = 384
    stream_dim: int = 192
    num_heads: int = 8
    qk_norm: bool = False
    num_dual_blocks: int = 2
    num_cross_blocks: int = 0
    num_fused_blocks: int = 4
    fused_dim: int = 256
    geometric_output: bool = True
    geometric_classifier: bool = False
    pooling: str = "mean"
    output_dim: int = 128
    embedding_norm: str = "batch"
    channel: str = "simplex"
    volume_feature: str = "log_volume"
    readout: str = "constellation"
    standardize: bool = True
    num_anchors: int = 64
    num_compartments: int = 8
    compartment_dim: int = 64
    activation: str = "gelu"
    anchor_init: str = "xavier"
    anchor_dropout: float = 0.0
    tangential: float = 1.0
    separation: float = 0.0
    separation_sign: str = "repel"
    decouple: bool = False
    dropout: float = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected a number >= {least}, got {getattr(self, name)}")
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("dropout", "drop_path", "anchor_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a probability in [0, 1), got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size = {self.patch_size}, got {self.image_size}"
            )
        if self.tokenizer == "convolution" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size: expected a power of 2 for convolutions, got {self.patch_size}")
        widths = [self.stream_dim, *([self.fused_dim] if self.num_fused_blocks else [])]
        if any(width % self.num_heads for width in widths):
            raise ValueError(f"num_heads: expected a divisor of {widths}, got {self.num_heads}")
        if self.num_cross_blocks and self.num_fused_blocks:
            raise ValueError(
                f"num_cross_blocks: expected 0 beside num_fused_blocks = {self.num_fused_blocks}, "
                f"got {self.num_cross_blocks}"
            )
        if not self.has_geometric_embedding and (self.geometric_classifier or self.decouple):
            raise ValueError("geometric_classifier and decouple: expected a geometric embedding, got none")
        if self.decouple and not self.bidirectional:
            raise ValueError("decouple: expected a model without fused blocks (num_fused_blocks=0)")
        if self.separation and self.readout != "constellation":
            raise ValueError(f"separation: expected 0 without anchors, got {self.separation}")
        _ = self.simplex, self.constellation, self.patchwork

    @property
    def bidirectional(self) -> bool:
        """Whether both streams go to the end, each to an embedding of its own."""
        return self.num_fused_blocks == 0

    @property
    def has_geometric_embedding(self) -> bool:
        """Whether the geometric stream has an embedding of its own."""
        return self.bidirectional or self.geometric_output

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def simplex(self) -> KSimplexOptions:
        """The simplex channel's part."""
        return KSimplexOptions(input_dim=self.stream_dim, volume_feature=self.volume_feature)

    @property
    def constellation(self) -> ConstellationOptions:
        """The anchors' part."""
        return ConstellationOptions(
            num_anchors=self.num_anchors,
            dim=self.output_dim,
            init=self.anchor_init,
            dropout=self.anchor_dropout,
        )

    @property
    def patchwork(self) -> PatchworkOptions:
        """The patchwork's part."""
        return PatchworkOptions(
            num_anchors=self.num_anchors,
            num_compartments=self.num_compartments,
            compartment_dim=self.compartment_dim,
            activation=self.activation,
        )


_LEAST = {
    "num_classes": 2,
    "image_size": 1,
    "channels": 1,
    "patch_size": 1,
    "tokenizer_width": 8,
    "embed_dim": 1,
    "stream_dim": 1,
    "num_heads": 1,
    "num_dual_blocks": 1,
    "num_cross_blocks": 0,
    "num_fused_blocks": 0,
    "output_dim": 2,
}
_KNOWN = {
    "tokenizer": TOKENIZERS,
    "channel": CHANNELS,
    "readout": READOUTS,
    "pooling": POOLINGS,
    "embedding_norm": EMBEDDING_NORMS,
    "separation_sign": SIGNS,
}

_SOURCE: dict[str, Any] = {
    "volume_feature": "squared_volume",
    "separation_sign": "reference",
    "standardize": False,
    "embedding_norm": "layer",
}
_BIDIRECTIONAL: dict[str, Any] = {"num_fused_blocks": 0, "geometric_classifier": True, "anchor_dropout": 0.1}
_AUTOGRAD: dict[str, Any] = {"tangential": 1.0, "separation": 0.1}

ARCHITECTURES: dict[str, DualStreamViTOptions] = {
    "v1": DualStreamViTOptions(**_SOURCE, geometric_output=False),
    "v3": DualStreamViTOptions(**_SOURCE, **_AUTOGRAD),
    "v5": DualStreamViTOptions(**_SOURCE, **_AUTOGRAD, anchor_dropout=0.1),
    "v5_bidir": DualStreamViTOptions(
        **_SOURCE, **_AUTOGRAD, **_BIDIRECTIONAL, num_cross_blocks=4, activation="squared_relu"
    ),
    "v6": DualStreamViTOptions(
        **_SOURCE,
        **_AUTOGRAD,
        **_BIDIRECTIONAL,
        num_dual_blocks=3,
        num_cross_blocks=6,
        output_dim=256,
        num_anchors=128,
        num_compartments=16,
        compartment_dim=128,
        activation="squared_relu",
    ),
}
