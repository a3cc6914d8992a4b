from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from python_tests.models.dual_stream_cases import small
from stratcore.models.dual_stream_vit_blocks import (
    Attention,
    DropPath,
    PairBlock,
    Perceptron,
    PixelScale,
    Streams,
    Tokenizer,
    TokenPool,
    TransformerBlock,
    matched_perceptron,
)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_that_of_torch(cross: bool) -> None:
    own, theirs = Attention(12, 3, cross=cross), nn.MultiheadAttention(12, 3, batch_first=True)
    weights = ([own.query] if cross else []) + [own.inputs]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in weights]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in weights]).normal_())
        for part, bias in zip(
            weights, theirs.in_proj_bias.split([len(p.bias) for p in weights]), strict=True
        ):
            part.bias.copy_(bias)
        theirs.out_proj.load_state_dict(own.output.state_dict())
    x, other = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    context = other if cross else x
    expected, _ = theirs(x, context, context)
    torch.testing.assert_close(own(x, other) if cross else own(x), expected)
    assert sum(p.numel() for p in own.parameters()) == 4 * (12**2 + 12)


@pytest.mark.parametrize("cross", [False, True])
def test_normalized_queries_and_keys_bound_the_scores(cross: bool) -> None:
    """A thousand times larger tokens change nothing but the values; learned weights scale the scores."""
    own = Attention(12, 3, cross=cross, qk_norm=True)
    torch.nn.init.zeros_(own.inputs.bias)
    x, other = torch.randn(2, 5, 12), torch.randn(2, 7, 12) if cross else None
    if own.query is not None:
        torch.nn.init.zeros_(own.query.bias)
    found = own(x, other) - own.output.bias
    large = own(1e3 * x, None if other is None else 1e3 * other) - own.output.bias
    torch.testing.assert_close(large, 1e3 * found, rtol=1e-4, atol=1e-2)
    with torch.no_grad():
        own.query_norm.weight.zero_()  # every score 0: the mean of the values
    values = own.inputs(x if other is None else other)[..., -12:].mean(1, keepdim=True)
    torch.testing.assert_close(own(x, other), own.output(values).expand(2, 5, 12))
    assert sum(p.numel() for p in own.parameters()) == 4 * (12**2 + 12) + 2 * 4


def test_a_block_is_its_formula() -> None:
    block = PairBlock(small(), dual=True, drop_path=0.0)
    g, s = torch.randn(2, 2, 16, 16).unbind()
    geo, std = block.geometric, block.standard
    found = block(Streams(g, s))
    g = g + geo.attention(geo.attention_norm(g))
    s = s + std.attention(std.attention_norm(s))
    g = g + geo.branch.project(geo.branch.channel(g))
    g_new = g + geo.cross(geo.cross_norm(g), s)
    s_new = s + std.cross(std.cross_norm(s), g)  # reads the other before it has read
    for after, x, half in ((found.geometric, g_new, geo), (found.standard, s_new, std)):
        torch.testing.assert_close(after, x + half.feed_forward(half.forward_norm(x)))
    assert len(found.simplices) == 1 and found.simplices[0].log_volume.shape == (2, 16)
    assert len([m for m in geo.modules() if isinstance(m, nn.LayerNorm)]) == 3 + 1  # and that of the features


def test_decoupled_streams_read_each_other_without_a_gradient() -> None:
    for decouple in (False, True):
        block = PairBlock(small(decouple=decouple), dual=False, drop_path=0.0)
        g, s = (torch.randn(1, 16, 16, requires_grad=True) for _ in range(2))
        block(Streams(g, s)).geometric.sum().backward()
        assert (s.grad is None) == decouple and g.grad.abs().sum() > 0


def test_a_dead_volume_feature_and_its_mend() -> None:
    """Twice the volume at the same distances: the squared volume says nothing of it, the log-volume does."""
    change = {}
    for name, field, doubled in (
        ("squared_volume", "squared_volume", lambda v: 4 * v),
        ("log_volume", "log_volume", lambda v: v + math.log(2)),
    ):
        channel = PairBlock(small(volume_feature=name), dual=True, drop_path=0.0).geometric.branch.channel
        with torch.no_grad():
            simplices = channel.measure(torch.randn(4, 16, 16))
            other = simplices._replace(**{field: doubled(getattr(simplices, field))})
            change[name] = float((channel.features(other) - channel.features(simplices)).abs().max())
    assert change["squared_volume"] < 0.05 < 0.5 < change["log_volume"]


def test_drop_path_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    x = torch.ones(20_000, 1, 2)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (y[:, 0, 0] == y[:, 0, 1]).all() and abs(float(y.mean()) - 1) < 0.02
    assert drop.eval()(x) is x


def test_transformer_block_and_perceptron() -> None:
    block = TransformerBlock(16, 2)
    assert sum(p.numel() for p in block.parameters()) == 12 * 16**2 + 13 * 16
    assert block(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    for inputs, outputs, size in ((192, 192, 10_046), (128, 512, 84_480)):
        found = sum(p.numel() for p in matched_perceptron(inputs, outputs, size).parameters())
        assert abs(found - size) <= 0.02 * size
    assert isinstance(matched_perceptron(4, 4, 1), Perceptron)


@pytest.mark.parametrize("tokenizer", ["patch", "convolution"])
def test_tokens_are_in_the_order_of_the_rows(tokenizer: str) -> None:
    tokens = Tokenizer(small(tokenizer=tokenizer, patch_size=4, image_size=16))
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 4:8, 8:12] = 1.0  # second row of tokens, third column
    assert tokens.position.shape == (1, 16, 16)
    if tokenizer == "patch":
        changed = (tokens(image) - tokens(torch.zeros_like(image))).abs().sum(-1)[0]
        assert changed.nonzero().flatten().tolist() == [6]
    assert tokens(image).shape == (1, 16, 16)


def test_pooling() -> None:
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(TokenPool(8, "mean")(x), x.mean(1))
    pool = TokenPool(8, "attention")
    weights = (x @ pool.score.weight[0] + pool.score.bias).softmax(1)
    torch.testing.assert_close(pool(x), torch.einsum("bt,btd->bd", weights, x))


def test_pixels_are_scaled_by_the_training_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8))
    images[:, 2] = 7
    scale = PixelScale(3)
    scale.fit(images)
    expected = images[:, :2].numpy() / 255
    np.testing.assert_allclose(scale.mean[:2], expected.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(scale.std[:2], expected.std((0, 2, 3)), rtol=1e-5)
    assert float(scale.std[2]) == 1.0  # one color alone
    torch.testing.assert_close(scale(images), scale(images.float() / 255))
    assert abs(float(scale(images).mean())) < 1e-5
