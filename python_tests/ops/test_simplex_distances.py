"""Measures from given squared distances. Legend: B simplices, k order, D dimension, P pairs of vertices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from python_tests.accuracy import assert_as_accurate
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

op = torch.ops.stratcore.cayley_menger_distances
backward_op = torch.ops.stratcore.cayley_menger_distances_backward
MEASURES = ops.DistanceMeasures._fields[:4]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def distances_of_points(
    simplices: int, k: int, dim: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(simplices, k + 1, dim, generator=generator, dtype=torch.float64)
    return reference.squared_distances(points).to(dtype).to(device)


def loss(measures: ops.DistanceMeasures) -> Tensor:
    size = 2.0 ** measures.determinant.detach().abs().mean().log2().ceil()
    return (
        measures.volume
        + 0.3 * measures.log_volume
        + 2 * measures.squared_volume
        + measures.determinant / size
    ).sum()


# known values


@pytest.mark.parametrize("k", range(1, 9))
def test_known_values_regular_simplex(device, k):
    d = torch.full((k * (k + 1) // 2,), 2.25, dtype=torch.float64, device=device)
    measures = ops.measures_from_distances(d)
    volume = 1.5**k * math.sqrt((k + 1) / 2**k) / math.factorial(k)
    assert float(measures.volume) == pytest.approx(volume, rel=1e-13)
    assert float(measures.log_volume) == pytest.approx(math.log(volume), rel=1e-13, abs=1e-13)
    assert float(measures.squared_volume) == pytest.approx(volume**2, rel=1e-13)
    coefficient = (-1) ** (k + 1) * 2**k * math.factorial(k) ** 2
    assert float(measures.determinant) == pytest.approx(coefficient * volume**2, rel=1e-13)
    assert measures.euclidean.item() is True


def test_heron(device):
    """16 V^2 = 2 (ab + bc + ca) - (a^2 + b^2 + c^2); its derivative with respect to a is (b + c - a) / 8."""
    d = torch.tensor(
        [[16.0, 9.0, 25.0], [1.0, 1.0, 9.0]], dtype=torch.float64, device=device, requires_grad=True
    )
    measures = ops.measures_from_distances(d, 2)
    assert measures.squared_volume.tolist() == pytest.approx([36.0, -45 / 16], rel=1e-14)
    assert measures.volume.tolist() == pytest.approx([6.0, 0.0], rel=1e-14)
    assert measures.log_volume.tolist() == [pytest.approx(math.log(6.0)), -math.inf]
    assert measures.determinant.tolist() == pytest.approx([-576.0, 45.0], rel=1e-14)
    assert measures.euclidean.tolist() == [True, False]
    (grad,) = torch.autograd.grad(measures.squared_volume.sum(), d, retain_graph=True)
    wanted = torch.tensor([[18, 32, 0], [9, 9, -7]], dtype=torch.float64, device=device) / 8
    torch.testing.assert_close(grad, wanted, rtol=1e-13, atol=1e-13)
    for name in ("volume", "log_volume"):
        (grad,) = torch.autograd.grad(getattr(measures, name).sum(), d, retain_graph=True)
        assert grad[1].tolist() == [0.0, 0.0, 0.0] and grad[0].abs().min() >= 0


def test_a_positive_squared_volume_is_not_enough(device):
    """Two negative eigenvalues: the determinant has the right sign, but no points have these distances."""
    d = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64, device=device)
    broken = d.clone()
    broken[3], broken[4], broken[5] = (
        9.0,
        9.0,
        9.0,
    )  # three vertices at 1 from vertex 0, but 3 from each other
    measures = ops.measures_from_distances(torch.stack([d, broken]))
    assert measures.euclidean.tolist() == [True, False]
    gram = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    pair = torch.stack([gram[0] + gram[1], gram[0] + gram[2], gram[1] + gram[2]])
    wrong = ops.measures_from_distances(torch.cat([gram, pair]).to(device))  # G = diag(1, -1, -1)
    assert float(wrong.squared_volume) == pytest.approx(1 / 36) and wrong.euclidean.item() is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", range(1, 9))
def test_rounded_distances_of_points_are_euclidean(device, k, dtype):
    for dim in (1, k, 50):
        d = distances_of_points(300, k, dim, dtype, device)
        assert ops.measures_from_distances(d).euclidean.all()
    # an edge stretched until the triangle inequality breaks by 1 %
    if k > 1:
        d = distances_of_points(300, k, 50, dtype, device)
        d[:, k] = 1.02 * (d[:, 0].sqrt() + d[:, 1].sqrt()).square()
        assert not ops.measures_from_distances(d).euclidean.any()


# matches the reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "simplices, k", [(0, 3), (1, 1), (7, 2), (33, 3), (20, 4), (9, 5), (6, 6), (5, 7), (4, 8)]
)
def test_matches_reference(device, dtype, simplices, k):
    d = distances_of_points(simplices, k, k + 6, dtype, device)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exact, eager = (reference.squared_volume_of_distances(d.to(t)) for t in (torch.float64, compute))
    measures = ops.measures_from_distances(d)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    assert_as_accurate(
        measures.squared_volume.to(compute), eager, exact, factor=2.0 if dtype != torch.float64 else 1e3
    )
    valid = exact > 1e-6 * exact.abs().mean() if simplices else exact > 0
    for result, wanted in (
        (measures.volume, exact.sqrt()),
        (measures.log_volume, 0.5 * exact.log()),
        (measures.determinant, reference.cayley_menger_determinant(d.double())),
    ):
        torch.testing.assert_close(result[valid].double(), wanted[valid], rtol=1e4 * tolerance, atol=1e-6)


def test_agrees_with_points(device):
    points = torch.randn(50, 5, 8, dtype=torch.float64, device=device)
    from_points = ops.simplex_measures(points)
    from_distances = ops.measures_from_distances(from_points.squared_distances)
    for name in MEASURES:
        torch.testing.assert_close(
            getattr(from_distances, name), getattr(from_points, name), rtol=1e-9, atol=1e-12
        )


def test_singular_distances_have_a_finite_gradient(device):
    """Collinear points: V^2 = 0 with the adjugate as its gradient, which LU of the determinant does not give."""
    x = torch.tensor([0.0, 1.0, 3.0, 4.5], dtype=torch.float64, device=device)[:, None]
    for vertices in (3, 4):
        d = reference.squared_distances(x[:vertices]).requires_grad_()
        (grad,) = torch.autograd.grad(ops.measures_from_distances(d).squared_volume, d)
        step = 1e-4
        for i in range(len(d)):
            moved = [d.detach().clone(), d.detach().clone()]
            moved[0][i] += step
            moved[1][i] -= step
            above, below = (ops.measures_from_distances(m).squared_volume for m in moved)
            assert float(grad[i]) == pytest.approx(float((above - below) / (2 * step)), abs=1e-7)


def test_batches_strides_and_empty(device):
    d = distances_of_points(12, 3, 5, device=device)
    plain = ops.measures_from_distances(d)
    for shaped in (d.view(3, 4, 6), d.view(3, 4, 6).mT.contiguous().mT):
        for result, wanted in zip(ops.measures_from_distances(shaped), plain, strict=True):
            assert torch.equal(result.flatten(), wanted)
    leaf = d[:0].clone().requires_grad_()
    measures = ops.measures_from_distances(leaf)
    assert measures.volume.shape == (0,) and measures.euclidean.dtype == torch.bool
    assert torch.autograd.grad(measures.volume.sum(), leaf)[0].shape == (0, 6)


def test_nan_stays_in_its_simplex(device):
    d = distances_of_points(6, 4, 7, device=device)
    clean = ops.measures_from_distances(d)
    d[2, 7], d[4, 0] = float("nan"), float("inf")
    leaf = d.requires_grad_()
    measures = ops.measures_from_distances(leaf)
    others = [0, 1, 3, 5]
    for result, wanted in zip(measures, clean, strict=True):
        assert torch.equal(result[others], wanted[others])
    assert all(getattr(measures, name)[[2, 4]].isnan().all() for name in MEASURES)
    assert measures.euclidean.tolist() == [True, True, False, True, False, True]
    (grad,) = torch.autograd.grad(measures.volume.sum(), leaf)
    assert grad[others].isfinite().all() and grad[[2, 4]].isnan().any(1).all()


# derivatives


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_gradcheck(device, name, k):
    leaf = distances_of_points(3, k, k + 3, device=device).requires_grad_()

    def run(t):
        return getattr(ops.measures_from_distances(t), name) / 9216.0 ** (name == "determinant")

    assert torch.autograd.gradcheck(run, leaf, nondet_tol=0.0, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaf, nondet_tol=0.0 if device == "cpu" else 1e-12)


def test_gradgradcheck_where_singular_or_indefinite(device):
    rows = [[1.0, 4.0, 9.0, 1.0, 4.0, 1.0], [0.0] * 6, [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]]
    leaf = torch.tensor(rows, dtype=torch.float64, device=device, requires_grad=True)

    def run(t):
        measures = ops.measures_from_distances(t)
        return measures.squared_volume, measures.determinant / 288

    assert torch.autograd.gradcheck(run, leaf, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(run, leaf, nondet_tol=0.0 if device == "cpu" else 1e-12)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_first_order_by_kernel_and_by_replay_agree(device, k):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        leaf = distances_of_points(9, k, k + 8, dtype, device).requires_grad_()
        value = loss(ops.measures_from_distances(leaf))
        kernel, replay = (
            torch.autograd.grad(value, leaf, create_graph=c, retain_graph=True)[0] for c in (False, True)
        )
        torch.testing.assert_close(kernel, replay, rtol=tolerance, atol=tolerance * float(kernel.abs().max()))


# opcheck, transforms


@pytest.mark.parametrize("simplices", [0, 4])
def test_opcheck(device, simplices):
    for dtype in (torch.float32, torch.bfloat16):
        d = distances_of_points(simplices, 3, 6, dtype, device)
        torch.library.opcheck(op, (d.clone().requires_grad_(), 3))
        measures = op(d, 3)
        torch.library.opcheck(backward_op, (*measures[:4], d, 3))
        torch.library.opcheck(backward_op, (None, measures[1], None, None, d, 3))


def test_compile_func_and_vmap(device):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda d: loss(ops.measures_from_distances(d)), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for simplices in (4, 7):
        d = distances_of_points(simplices, 3, 6, device=device)
        leaves = [d.clone().requires_grad_() for _ in range(2)]
        compiled(leaves[0]).backward()
        loss(ops.measures_from_distances(leaves[1])).backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.func.grad(lambda t: loss(ops.measures_from_distances(t)))(d),
        leaves[1].grad,
        rtol=1e-9,
        atol=1e-9,
    )
    stacked = torch.stack([d, 2 * d], 1)
    mapped = torch.func.vmap(ops.measures_from_distances, in_dims=1)(stacked)
    for i in range(2):
        for result, wanted in zip(mapped, ops.measures_from_distances(stacked[:, i]), strict=True):
            assert torch.equal(result[i], wanted)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda t: ops.measures_from_distances(t).squared_volume))(d)
    wanted = torch.func.vmap(torch.func.jacrev(reference.squared_volume_of_distances))(d)
    torch.testing.assert_close(jacobian, wanted, rtol=1e-8, atol=1e-8)


def test_autocast_computes_in_float32(device):
    d = distances_of_points(4, 3, 6, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        low = ops.measures_from_distances(d.bfloat16())
        assert torch.equal(ops.measures_from_distances(d).volume, ops.measures_from_distances(d).volume)
    assert low.volume.dtype == torch.float32


# rejects


def test_rejects():
    with pytest.raises(ValueError, match=r"P = k \(k \+ 1\) / 2 with k in \[1, 8\], got \[3, 5\]"):
        ops.measures_from_distances(torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"P = 3 \(3 \+ 1\) / 2, got \[3, 3\]"):
        ops.measures_from_distances(torch.ones(3, 3), 3)
    with pytest.raises(TypeError, match="expected squared_distances of dtype float64, float32"):
        ops.measures_from_distances(torch.ones(3, 3, dtype=torch.long))


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    "shape, k, message",
    [
        ((4, 6, 1), 3, r"expected squared_distances with 2 dimensions, got \[4, 6, 1\]"),
        ((4, 6), 9, r"expected k in \[1, 8\], got 9"),
        ((4, 6), 2, r"expected squared_distances of shape \[4, 3\], got \[4, 6\]"),
    ],
)
def test_op_rejects(device, shape, k, message):
    with pytest.raises(RuntimeError, match=f"cayley_menger_distances: {message}"):
        op(torch.ones(shape, device=device), k)


def test_two_runs_give_the_same_bits(device):
    d = distances_of_points(2000, 4, 8, torch.float32, device)
    first, second = (ops.measures_from_distances(d) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
