"""Legend: A anchors, O embedding size, C compartments, F size of a compartment's output."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from stratcore.layers import (
    Constellation,
    ConstellationOptions,
    Patchwork,
    PatchworkOptions,
    anchor_usage,
)
from stratcore.layers.constellation import initial_anchors, squared_relu


def constellation(num_anchors: int = 6, dim: int = 4, **options: object) -> Constellation:
    return Constellation(ConstellationOptions(num_anchors=num_anchors, dim=dim, **options)).double()


def embeddings(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def largest_cosine(anchors: Tensor) -> float:
    return (anchors @ anchors.mT).fill_diagonal_(-1).max().item()


# ---- anchors


@pytest.mark.parametrize("init", ["xavier", "orthogonal", "repulsion"])
@pytest.mark.parametrize(("count", "dim"), [(1, 3), (5, 8), (8, 8), (20, 8)])
def test_every_start_is_on_the_sphere(init, count, dim):
    anchors = initial_anchors(count, dim, init)
    assert anchors.shape == (count, dim)
    torch.testing.assert_close(anchors.norm(dim=-1), torch.ones(count))


def test_xavier_has_no_preferred_direction():
    anchors = initial_anchors(20_000, 5).double()
    torch.testing.assert_close(anchors.mean(0), torch.zeros(5).double(), rtol=0, atol=0.015)
    torch.testing.assert_close(anchors.mT @ anchors / 20_000, torch.eye(5).double() / 5, rtol=0, atol=0.01)


def test_orthogonal_anchors_are_whole_bases():
    anchors = initial_anchors(19, 8, "orthogonal")
    for basis in (anchors[:8], anchors[8:16], anchors[16:]):
        torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), rtol=0, atol=2e-6)
    assert largest_cosine(anchors) > 0.3, "different bases are not orthogonal"


def test_repulsion_drives_the_closest_anchors_apart():
    state = torch.random.get_rng_state()
    start = initial_anchors(32, 8)
    torch.random.set_rng_state(state)
    spread = initial_anchors(32, 8, "repulsion")
    assert largest_cosine(start) > 0.7 and largest_cosine(spread) < 0.5


def test_repulsion_is_the_written_recurrence():
    state = torch.random.get_rng_state()
    v = [row.double() for row in initial_anchors(4, 3)]
    torch.random.set_rng_state(state)
    for _ in range(200):
        nearest = [max((a @ b, j) for j, b in enumerate(v) if j != i)[1] for i, a in enumerate(v)]
        moved = [a - 0.05 * v[j] for a, j in zip(v, nearest, strict=True)]
        v = [a / a.norm() for a in moved]
    torch.testing.assert_close(initial_anchors(4, 3, "repulsion").double(), torch.stack(v), rtol=0, atol=2e-5)


# ---- triangulation


def test_triangulation_is_one_minus_the_cosine():
    layer, x = constellation(), embeddings(2, 5, 4)
    with torch.no_grad():
        layer.anchors.mul_(3 * torch.rand(6, 1))
    distance, nearest = layer(x)
    for row, found, index in zip(x.flatten(0, 1), distance.flatten(0, 1), nearest.flatten(), strict=True):
        expected = [1 - row @ anchor / anchor.norm() for anchor in layer.anchors]
        torch.testing.assert_close(found, torch.stack(expected))
        assert index == min(range(6), key=lambda a: expected[a])


def test_gradients_reach_embeddings_and_anchors():
    layer, x = constellation(), embeddings(3, 4).requires_grad_()

    def distances(x: Tensor, anchors: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"anchors": anchors}, (x,)).distance

    assert gradcheck(distances, (x, layer.anchors))
    weights = torch.randn(3, 6, dtype=torch.float64)
    (layer(x).distance * weights).sum().backward()
    gradient = layer.anchors.grad
    assert gradient.abs().max() > 0.1
    along = (gradient * layer.anchors).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-14)


def test_a_dropped_anchor_reads_one_gets_no_gradient_and_is_nearest_to_none():
    layer, x = constellation(40, 4, dropout=0.5), embeddings(300, 4)
    whole = layer.eval()(x).distance
    layer.train()
    distance, nearest = layer(x)
    dropped = (distance == 1).all(0)
    assert 8 <= dropped.sum() <= 32
    assert torch.equal(distance[:, ~dropped], whole[:, ~dropped]), "kept distances are not rescaled"
    assert torch.equal(nearest, whole.masked_fill(dropped, math.inf).argmin(-1))
    distance.square().sum().backward()
    assert torch.equal(layer.anchors.grad.any(-1), ~dropped)


def test_dropout_has_its_rate_never_drops_all_and_rests_in_evaluation():
    layer, x = constellation(10, 4, dropout=0.1), embeddings(3, 4)
    rate = torch.stack([(layer(x).distance == 1).all(0) for _ in range(300)]).double().mean()
    assert rate.item() == pytest.approx(0.1, abs=0.02)
    nearly_all = constellation(3, 4, dropout=0.99)
    for _ in range(50):
        assert (nearly_all(x).distance != 1).all(0).sum() >= 1
    assert (layer.eval()(x).distance != 1).all()


def test_usage_counts_rows_and_measures_collapse():
    counts, entropy, active = anchor_usage(torch.tensor([[0, 2], [2, 2]]), 4)
    assert counts.tolist() == [1, 0, 3, 0] and active == 2
    assert entropy.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert anchor_usage(torch.arange(7), 7).entropy.item() == pytest.approx(math.log(7))
    assert anchor_usage(torch.zeros(9, dtype=torch.int64), 7).entropy == 0
    assert anchor_usage(torch.zeros(0, dtype=torch.int64), 7).active == 0


# ---- patchwork


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) ** 2


def compartments(anchors: int, count: int, size: int, activation: type[nn.Module]) -> list[nn.Sequential]:
    inputs = anchors // count
    mlps = [
        nn.Sequential(
            nn.Linear(inputs, 2 * size), activation(), nn.Linear(2 * size, size), nn.LayerNorm(size)
        ).double()
        for _ in range(count)
    ]
    for mlp in mlps:
        nn.init.normal_(mlp[3].weight)
        nn.init.normal_(mlp[3].bias)
    return mlps


@pytest.mark.parametrize(("activation", "module"), [("gelu", nn.GELU), ("squared_relu", SquaredReLU)])
@pytest.mark.parametrize(("anchors", "count", "size"), [(12, 4, 5), (6, 1, 3), (6, 6, 2)])
def test_equals_separate_networks_with_their_weights(activation, module, anchors, count, size):
    mlps = compartments(anchors, count, size, module)
    patchwork = Patchwork(
        PatchworkOptions(
            num_anchors=anchors, num_compartments=count, compartment_dim=size, activation=activation
        )
    ).double()
    patchwork.load_compartments(mlps)
    tri = torch.rand(3, 7, anchors, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([mlp(tri[..., c::count]) for c, mlp in enumerate(mlps)], -1)
    found = patchwork(tri)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, [tri, *(p for mlp in mlps for p in mlp.parameters())], cotangent)
    ours = torch.autograd.grad(found, [tri, *patchwork.parameters()], cotangent)
    torch.testing.assert_close(ours[0], theirs[0])
    for index, gradient in enumerate(ours[1:]):
        torch.testing.assert_close(gradient, torch.stack(theirs[1 + index :: 6]))


def test_parameters_are_those_of_the_source_documents():
    anchors = Constellation(ConstellationOptions(num_anchors=64, dim=128))
    patchwork = Patchwork(PatchworkOptions(num_anchors=64))
    assert patchwork.options.output_dim == 512
    assert sum(p.numel() for p in [*anchors.parameters(), *patchwork.parameters()]) == 84_480


def test_starts_like_separate_networks():
    patchwork = Patchwork(PatchworkOptions(num_anchors=512, num_compartments=8))
    reference = nn.Linear(64, 128)
    for ours, theirs in (
        (patchwork.expand_weight, reference.weight),
        (patchwork.expand_bias, reference.bias),
    ):
        assert ours.abs().max() <= 0.125
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.15)
    assert patchwork.project_weight.abs().max() <= 128**-0.5
    assert (patchwork.norm_weight == 1).all() and not patchwork.norm_bias.any()


def test_squared_relu():
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0, 0, 9]


def test_no_rows_give_no_features():
    assert Patchwork(PatchworkOptions(num_anchors=64))(torch.zeros(0, 64)).shape == (0, 512)


# ---- both together


def pipeline() -> nn.ModuleList:
    return nn.ModuleList(
        [
            Constellation(ConstellationOptions(num_anchors=16, dim=6)),
            Patchwork(PatchworkOptions(num_anchors=16, num_compartments=4, compartment_dim=8)),
            nn.Linear(32, 1),
        ]
    )


def apply(stages: nn.ModuleList, x: Tensor) -> Tensor:
    return stages[2](stages[1](stages[0](x).distance))[:, 0]


def test_a_saved_state_gives_the_same_numbers():
    first, second = pipeline(), pipeline()
    x = normalize(torch.randn(5, 6), dim=-1)
    assert not torch.equal(apply(first, x), apply(second, x))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(apply(first, x), apply(second, x))


def test_eight_samples_are_learned():
    stages, x, y = pipeline(), normalize(torch.randn(8, 6), dim=-1), torch.randn(8)
    anchors = stages[0].anchors.detach().clone()
    optimizer = torch.optim.Adam(stages.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (apply(stages, x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    assert (stages[0].anchors - anchors).abs().max() > 0.01, "anchors are parameters"


def test_compiles_as_one_graph():
    stages, x = pipeline(), normalize(torch.randn(5, 6), dim=-1)
    stages[0].options = ConstellationOptions(num_anchors=16, dim=6, dropout=0.3)
    compiled = torch.compile(lambda x: apply(stages, x), fullgraph=True, backend="eager")
    stages.eval()
    torch.testing.assert_close(compiled(x), apply(stages, x))
    stages.train()
    assert compiled(x).isfinite().all()


def test_on_a_device(device):
    stages, x = pipeline(), normalize(torch.randn(5, 6), dim=-1)
    expected = apply(stages, x)
    stages.to(device)
    torch.testing.assert_close(apply(stages, x.to(device)).cpu(), expected, rtol=1e-4, atol=1e-5)
    usage = anchor_usage(stages[0](x.to(device)).nearest, 16)
    assert usage.counts.sum() == 5 and usage.counts.device.type == device
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(apply(stages, x.to(device)).float().cpu(), expected, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 0}, "num_anchors and dim: expected at least 1, got 0 and 4"),
        ({"init": "zeros"}, "init: expected one of xavier, orthogonal, repulsion, got 'zeros'"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
    ],
)
def test_constellation_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ConstellationOptions(**{"num_anchors": 8, "dim": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 12}, "num_anchors: expected a multiple of num_compartments = 8, got 12"),
        (
            {"compartment_dim": 0},
            "num_compartments and compartment_dim: expected at least 1, got 8 and 0",
        ),
        ({"activation": "relu"}, "activation: expected one of gelu, squared_relu, got 'relu'"),
    ],
)
def test_patchwork_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        PatchworkOptions(**{"num_anchors": 64, **options})


def test_compartments_that_do_not_fit():
    patchwork = Patchwork(PatchworkOptions(num_anchors=12, num_compartments=4, compartment_dim=5))
    with pytest.raises(ValueError, match="^compartments: expected 4 modules, got 3$"):
        patchwork.load_compartments(compartments(12, 4, 5, nn.GELU)[:3])
    with pytest.raises(
        ValueError, match=r"^compartments\[0\]: expected parameters of shapes \[\[10, 3\], \[10\],"
    ):
        patchwork.load_compartments(compartments(12, 4, 6, nn.GELU))
    with pytest.raises(ValueError, match="^init: expected one of"):
        initial_anchors(4, 3, "zeros")
