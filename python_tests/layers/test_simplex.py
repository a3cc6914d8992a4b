"""Legend: k order, P pairs of vertices, D dimension."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from stratcore import ops
from stratcore.layers import (
    KSimplexChannel,
    KSimplexOptions,
    cm_barrier,
    regular_simplex,
    regularity,
    regularity_loss,
)

ORDERS = range(1, 9)


def volume_by_determinant(points: Tensor) -> Tensor:
    """Of one simplex, by the bordered matrix of squared distances."""
    k = len(points) - 1
    bordered = torch.ones(k + 2, k + 2, dtype=torch.float64)
    bordered[0, 0] = 0
    bordered[1:, 1:] = (points[:, None] - points).square().sum(-1)
    return (torch.linalg.det(bordered) / ((-1) ** (k + 1) * 2**k * math.factorial(k) ** 2)).sqrt()


def randomized(channel: KSimplexChannel) -> KSimplexChannel:
    nn.init.normal_(channel.norm.weight)
    nn.init.normal_(channel.norm.bias)
    return channel


# ---- template


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("extra", [0, 3])
def test_template_is_regular_in_as_few_dimensions_as_its_order(order, extra):
    vertices = regular_simplex(order, order + extra)
    assert vertices.shape == (order + 1, order + extra)
    distances = torch.pdist(vertices) if order > 0 else vertices
    torch.testing.assert_close(distances, torch.ones_like(distances), rtol=0, atol=1e-15)
    torch.testing.assert_close(vertices.mean(0), torch.zeros(order + extra).double(), rtol=0, atol=1e-16)
    assert not vertices[:, order:].any()
    volume = math.sqrt((order + 1) / 2**order) / math.factorial(order)
    assert volume_by_determinant(vertices).item() == pytest.approx(volume, rel=1e-10)
    torch.testing.assert_close(regular_simplex(order, edge=2.5), 2.5 * regular_simplex(order))


def test_pentachoron():
    assert volume_by_determinant(regular_simplex(4)).item() == pytest.approx(math.sqrt(5) / 96, rel=1e-12)
    with pytest.raises(
        ValueError, match="^regular_simplex: expected 1 <= order <= dim, got order 4 and dim 3$"
    ):
        regular_simplex(4, 3)


# ---- channel


@pytest.mark.parametrize("feature", ["log_volume", "squared_volume"])
@pytest.mark.parametrize(("order", "embed_dim"), [(1, 1), (2, 5), (4, 4), (4, 8), (8, 8)])
def test_features_are_those_of_the_formula(feature, order, embed_dim):
    options = KSimplexOptions(
        input_dim=6, order=order, embed_dim=embed_dim, scale=0.1, volume_feature=feature
    )
    channel = randomized(KSimplexChannel(options)).double()
    channel.template.copy_(regular_simplex(order, embed_dim))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    regular = math.sqrt((order + 1) / 2**order) / math.factorial(order)
    found = channel(x)
    assert found.shape == (2, 3, options.num_features)
    for token, features in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        offset = (channel.deform.weight @ token + channel.deform.bias).view(order + 1, embed_dim)
        points = regular_simplex(order, embed_dim) + 0.1 * offset
        pairs = itertools.combinations(range(order + 1), 2)
        raw = [(points[i] - points[j]).square().sum() for i, j in pairs]
        volume = volume_by_determinant(points)
        raw = torch.stack([*raw, 1 + (volume / regular).log() if feature == "log_volume" else volume**2])
        centered = raw - raw.mean()
        expected = centered / (centered.square().mean() + 1e-5).sqrt()
        expected = expected * channel.norm.weight + channel.norm.bias
        torch.testing.assert_close(features, expected, rtol=1e-8, atol=1e-8)


def test_parameters_are_those_of_the_source_documents():
    channel = KSimplexChannel(KSimplexOptions(input_dim=192))
    back = nn.Linear(channel.options.num_features, 192)
    assert channel.options.num_features == 11
    assert sum(p.numel() for p in [*channel.parameters(), *back.parameters()]) == 10_046


def spread_of_features(feature: str) -> tuple[float, float]:
    """Standard deviation over tokens of the volume feature, and the mean one of the distances."""
    torch.manual_seed(0)
    channel = KSimplexChannel(KSimplexOptions(input_dim=192, volume_feature=feature))
    spread = channel(torch.randn(4000, 192)).std(0)
    return spread[-1].item(), spread[:-1].mean().item()


def test_the_squared_volume_is_dead_behind_the_layer_norm_and_the_log_volume_is_not():
    squared, distances = spread_of_features("squared_volume")
    assert squared < 0.06 and squared < 0.2 * distances
    log, distances = spread_of_features("log_volume")
    assert log > 0.4 and log > 0.4 * distances


def test_the_squared_volume_is_one_constant_at_the_template():
    options = KSimplexOptions(input_dim=3, scale=1e-4, volume_feature="squared_volume")
    features = KSimplexChannel(options)(torch.randn(100, 3))
    torch.testing.assert_close(features[:, -1], torch.full((100,), -math.sqrt(10)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("feature", ["log_volume", "squared_volume"])
def test_gradients_of_the_channel(feature):
    options = KSimplexOptions(input_dim=3, order=3, embed_dim=4, scale=0.3, volume_feature=feature)
    channel = randomized(KSimplexChannel(options)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in channel.named_parameters()]

    def features(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(channel, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(features, (x, *channel.parameters()))


def test_degenerate_tokens_have_finite_features_and_gradients():
    channel = KSimplexChannel(KSimplexOptions(input_dim=3))
    with torch.no_grad():
        channel.deform.weight.zero_()
        channel.deform.bias.copy_(-channel.template.flatten() / channel.options.scale)
    x = torch.randn(5, 3, requires_grad=True)
    features = channel(x)
    features.square().sum().backward()
    assert features.isfinite().all() and channel.deform.bias.grad.isfinite().all()


def test_a_saved_channel_gives_the_same_numbers():
    first, second = (KSimplexChannel(KSimplexOptions(input_dim=5)) for _ in range(2))
    x = torch.randn(4, 5)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(x), second(x))


def test_eight_volumes_are_learned():
    channel = KSimplexChannel(KSimplexOptions(input_dim=4))
    head, x, y = nn.Linear(11, 1), torch.randn(8, 4), torch.randn(8)
    optimizer = torch.optim.Adam([*channel.parameters(), *head.parameters()], lr=2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (head(channel(x))[:, 0] - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_channel_in_half_precision(device):
    channel = KSimplexChannel(KSimplexOptions(input_dim=16)).to(device)
    x = torch.randn(50, 16, device=device)
    expected = channel(x)
    with torch.autocast(device, torch.bfloat16):
        found = channel(x)
    # bfloat16 offsets times the scale 0.05, against differences between features of about 0.06.
    assert found.dtype == torch.float32 and (found - expected).abs().mean() < 0.02
    half = channel.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_dim": 0}, "input_dim: expected at least 1, got 0"),
        ({"order": 9}, r"order: expected a number in \[1, 8\], got 9"),
        ({"embed_dim": 3}, "embed_dim: expected at least order = 4, got 3"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        (
            {"volume_feature": "volume"},
            "volume_feature: expected one of log_volume, squared_volume, got 'volume'",
        ),
    ],
)
def test_channel_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        KSimplexOptions(**{"input_dim": 4, **options})


# ---- barrier and regularity


def test_barrier_is_its_formula_and_rests_above_the_least_volume():
    points = torch.stack([edge * regular_simplex(4) for edge in (0.5, 1.0, 2.0)])
    volume = math.sqrt(5) / 96
    expected = ((4 * math.log(2)) ** 2) / 3
    assert cm_barrier(points, volume).item() == pytest.approx(expected, rel=1e-12)
    assert cm_barrier(points, volume / 17) == 0
    measured = ops.simplex_measures(points)
    assert torch.equal(cm_barrier(measured, volume), cm_barrier(points, volume))
    with pytest.raises(ValueError, match="^cm_barrier: expected a positive min_volume, got 0.0$"):
        cm_barrier(points, 0.0)
    with pytest.raises(ValueError, match="^simplices: expected measures with log_volume, got no log_volume$"):
        cm_barrier(ops.simplex_measures(points, outputs=["volume"]), volume)


def test_gradients_of_barrier_and_regularity():
    points = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p: cm_barrier(p, 10.0), (points,))
    assert gradcheck(regularity, (points,))
    assert gradcheck(regularity_loss, (points,))


def test_a_flat_simplex_is_blown_up_by_the_barrier():
    points = regular_simplex(3, 4).clone()
    points[:, 2] *= 1e-3
    points.requires_grad_()
    for _ in range(1000):
        (gradient,) = torch.autograd.grad(cm_barrier(points, 0.01), points)
        with torch.no_grad():
            points -= 1e-4 * gradient / gradient.norm().clamp_min(1e-2)
    assert volume_by_determinant(points.detach()) > 0.9e-2


@pytest.mark.parametrize("order", ORDERS)
def test_regular_simplices_alone_have_regularity_one_at_any_size(order):
    for edge in (1e-3, 1.0, 1e3):
        points = regular_simplex(order, 9, edge=edge).requires_grad_()
        assert regularity(points).item() == pytest.approx(1, abs=1e-12)
        (gradient,) = torch.autograd.grad(regularity_loss(points), points)
        assert gradient.abs().max() * edge < 1e-11
    if order > 1:
        assert (regularity(torch.randn(200, order + 1, 9, dtype=torch.float64)) < 1).all()


def test_regularity_of_a_triangle():
    points = torch.randn(50, 3, 2, dtype=torch.float64)
    a, b = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs() / 2
    sides = a.square().sum(-1) + b.square().sum(-1) + (a - b).square().sum(-1)
    expected = 4 * math.sqrt(3) * area / sides
    torch.testing.assert_close(regularity(points), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(regularity_loss(points), -expected.log().mean())


def test_degenerate_simplices_count_a_finite_number_without_gradient():
    for points in (torch.zeros(1, 5, 6), torch.ones(1, 5, 6) * torch.arange(5.0)[:, None]):
        points.requires_grad_()
        assert regularity(points).item() == 0
        (cm_barrier(points, 0.1) + regularity_loss(points)).backward()
        assert cm_barrier(points, 0.1).item() == pytest.approx(1e4)
        assert regularity_loss(points).item() == pytest.approx(100)
        assert not points.grad.any()


def test_layers_compile_as_one_graph():
    channel = KSimplexChannel(KSimplexOptions(input_dim=5))

    def step(x: Tensor) -> tuple[Tensor, ...]:
        simplices = ops.simplex_measures(channel.vertices(x))
        return channel(x), cm_barrier(simplices, 0.02), regularity_loss(simplices)

    x = torch.randn(40, 5)
    found = torch.compile(step, fullgraph=True, backend="eager")(x)
    for one, other in zip(found, step(x), strict=True):
        torch.testing.assert_close(one, other)
