"""Parts of the dual-stream vision transformer. Legend: B images, T tokens, D token size, C channels, P features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from stratcore.layers.simplex import KSimplexChannel
from stratcore.models.dual_stream_vit_config import DualStreamViTOptions
from stratcore.ops import SimplexMeasures

_GROUPS = 8


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D / heads)) v over tokens, with 4 (D^2 + D) parameters.

    Args:
        dim: D.
        num_heads: they divide D.
        cross: queries come from one stream, keys and values from another.
        qk_norm: queries and keys of each head are scaled to root mean square 1 times a learned weight, which bounds
            the scores.

    Shapes: queries [B, T, D], and for cross-attention keys and values [B, S, D]; output [B, T, D].
    """

    def __init__(self, dim: int, num_heads: int, *, cross: bool = False, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_norm, self.key_norm = (
            nn.RMSNorm(dim // num_heads, eps=1e-6) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.query = nn.Linear(dim, dim) if cross else None
        self.inputs = nn.Linear(dim, (2 if cross else 3) * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, other_BSD: Tensor | None = None) -> Tensor:
        """Attention of tokens to themselves, or to those of another stream."""
        if self.query is None:
            parts = self.inputs(x_BTD).chunk(3, -1)
        else:
            parts = (self.query(x_BTD), *self.inputs(other_BSD).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        return self.output(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, output: int | None = None) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, output or dim))


class DropPath(nn.Module):
    """A branch that a sample of a training batch skips with a probability; kept ones are scaled up."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """The branch [B, ...], zero for the samples that skip it."""
        if not self.training or self.probability == 0:
            return branch
        kept = torch.rand(branch.shape[0], *(1,) * (branch.ndim - 1), device=branch.device)
        return branch * ((kept >= self.probability) / (1 - self.probability)).to(branch.dtype)


class TransformerBlock(nn.Module):
    """x += SA(LN x); x += FFN(LN x), the FFN four times as wide."""

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, num_heads, qk_norm=qk_norm)
        self.forward_norm, self.feed_forward = nn.LayerNorm(dim), Perceptron(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Tokens [B, T, D]."""
        x_BTD = x_BTD + self.drop_path(self.attention(self.attention_norm(x_BTD)))
        return x_BTD + self.drop_path(self.feed_forward(self.forward_norm(x_BTD)))


class SimplexBranch(nn.Module):
    """P(KSimplex(x)): simplex features of every token, projected back to its size."""

    def __init__(self, options: DualStreamViTOptions) -> None:
        super().__init__()
        self.channel = KSimplexChannel(options.simplex)
        self.project = nn.Linear(options.simplex.num_features, options.stream_dim)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, SimplexMeasures]:
        """The branch [B, T, D] and the measures of the simplices behind it."""
        simplices = self.channel.measure(x_BTD)
        return self.project(self.channel.features(simplices)), simplices


class StreamBlock(nn.Module):
    """One stream's half of a block.

        x += SA(LN x);    x += branch(x) in a geometric block with one;    x += CA(q = LN x, kv = other);
        x += FFN(LN x)

    Keys and values are not normalized. `PairBlock` lets both streams do the first part before either reads the other.
    """

    def __init__(self, options: DualStreamViTOptions, branch: nn.Module | None, drop_path: float) -> None:
        super().__init__()
        dim, heads, qk_norm = options.stream_dim, options.num_heads, options.qk_norm
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads, qk_norm=qk_norm)
        self.branch = branch
        self.cross_norm, self.cross = nn.LayerNorm(dim), Attention(dim, heads, cross=True, qk_norm=qk_norm)
        self.forward_norm, self.feed_forward = nn.LayerNorm(dim), Perceptron(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def alone(self, x_BTD: Tensor) -> tuple[Tensor, SimplexMeasures | None]:
        """What the stream does before it reads the other one."""
        x_BTD = x_BTD + self.drop_path(self.attention(self.attention_norm(x_BTD)))
        if self.branch is None:
            return x_BTD, None
        if isinstance(self.branch, SimplexBranch):
            added, simplices = self.branch(x_BTD)
            return x_BTD + self.drop_path(added), simplices
        return x_BTD + self.drop_path(self.branch(x_BTD)), None

    def together(self, x_BTD: Tensor, other_BTD: Tensor) -> Tensor:
        """What it does then."""
        x_BTD = x_BTD + self.drop_path(self.cross(self.cross_norm(x_BTD), other_BTD))
        return x_BTD + self.drop_path(self.feed_forward(self.forward_norm(x_BTD)))


class Streams(NamedTuple):
    """Tokens of the geometric and the standard stream [B, T, D], and the simplices of every block passed so far."""

    geometric: Tensor
    standard: Tensor
    simplices: tuple[SimplexMeasures, ...] = ()


class PairBlock(nn.Module):
    """One block of both streams.

    Args:
        options: of the model.
        dual: with what `options.channel` adds to the geometric stream; else a cross block.
        drop_path: of every branch.
    """

    def __init__(self, options: DualStreamViTOptions, *, dual: bool, drop_path: float) -> None:
        super().__init__()
        self.decouple = options.decouple
        self.geometric = StreamBlock(options, _branch(options) if dual else None, drop_path)
        self.standard = StreamBlock(options, None, drop_path)

    def forward(self, streams: Streams) -> Streams:
        """Both streams after the block."""
        geometric, simplices = self.geometric.alone(streams.geometric)
        standard, _ = self.standard.alone(streams.standard)
        read: Callable[[Tensor], Tensor] = Tensor.detach if self.decouple else lambda tokens: tokens
        return Streams(
            self.geometric.together(geometric, read(standard)),
            self.standard.together(standard, read(geometric)),
            streams.simplices if simplices is None else (*streams.simplices, simplices),
        )


def _branch(options: DualStreamViTOptions) -> nn.Module | None:
    if options.channel == "none":
        return None
    branch = SimplexBranch(options)
    if options.channel == "simplex":
        return branch
    size = sum(parameter.numel() for parameter in branch.parameters())
    return matched_perceptron(options.stream_dim, options.stream_dim, size)


def matched_perceptron(inputs: int, outputs: int, num_parameters: int) -> Perceptron:
    """The perceptron whose number of parameters is nearest to a given one."""
    return Perceptron(inputs, max(1, round((num_parameters - outputs) / (inputs + outputs + 1))), outputs)


def embedding_projection(inputs: int, options: DualStreamViTOptions) -> nn.Sequential:
    """Linear map to an embedding and its normalization, both with as many parameters."""
    norm = nn.BatchNorm1d if options.embedding_norm == "batch" else nn.LayerNorm
    return nn.Sequential(nn.Linear(inputs, options.output_dim), norm(options.output_dim))


@torch.no_grad()
def start_at_base_rate(classifier: nn.Module) -> None:
    """Set the bias of a linear classifier of C classes to -log(C - 1)."""
    assert isinstance(classifier, nn.Linear)
    classifier.bias.fill_(-math.log(classifier.out_features - 1))


# ---- images to tokens, tokens to a vector


class ConvolutionUnit(nn.Module):
    """GELU(GroupNorm(conv 3 x 3)), plus its input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, C, H, W]."""
        y = gelu(self.norm(self.convolution(x)))
        return x + y if self.residual else y


def convolutional_tokenizer(channels: int, width: int, dim: int, patch_size: int) -> nn.Sequential:
    """Residual 3 x 3 convolutions that halve an image log2(patch_size) times; then `dim` channels."""
    units: list[nn.Module] = [ConvolutionUnit(channels, width), ConvolutionUnit(width, width)]
    for _ in range(patch_size.bit_length() - 1):
        units += [ConvolutionUnit(width, 2 * width, stride=2), ConvolutionUnit(2 * width, 2 * width)]
        width *= 2
    return nn.Sequential(*units, nn.Conv2d(width, dim, 1))


class Tokenizer(nn.Module):
    """Images [B, C, H, W] to tokens [B, T, embed_dim] with learned positions."""

    def __init__(self, options: DualStreamViTOptions) -> None:
        super().__init__()
        size, dim = options.patch_size, options.embed_dim
        if options.tokenizer == "patch":
            self.map: nn.Module = nn.Conv2d(options.channels, dim, size, size)
        else:
            self.map = convolutional_tokenizer(options.channels, options.tokenizer_width, dim, size)
        self.position = nn.Parameter(torch.empty(1, options.num_tokens, dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of images, row after row."""
        return self.map(images).flatten(2).mT + self.position


class TokenPool(nn.Module):
    """Mean of tokens, or their mean under softmax weights of one learned score: [B, T, D] to [B, D]."""

    def __init__(self, dim: int, pooling: str) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1) if pooling == "attention" else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """One vector an image."""
        if self.score is None:
            return x_BTD.mean(1)
        return (self.score(x_BTD).softmax(1) * x_BTD).sum(1)


class PixelScale(nn.Module):
    """(x - mean) / std by channel, of pixels in [0, 1], or in [0, 255] if they are bytes; part of the state."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels,), 0.5))
        self.register_buffer("std", torch.full((channels,), 0.25))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take mean and deviation of byte images [N, C, H, W]; a channel without any keeps a deviation of 1."""
        histogram = torch.stack([torch.bincount(c.flatten().int(), minlength=256) for c in images.unbind(1)])
        share = histogram.double() / histogram.sum(1, keepdim=True)
        value = torch.arange(256, device=share.device).double() / 255
        mean = share @ value
        std = (share @ value.square() - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Scaled images in float32."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (pixels - self.mean[:, None, None]) / self.std[:, None, None]
