"""The eight tests of an op. Legend: B simplices, k order, D dimension, N rows of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from python_tests.accuracy import assert_as_accurate
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

op = torch.ops.stratcore.cayley_menger
backward_op = torch.ops.stratcore.cayley_menger_backward
OUTPUTS = ops.SimplexMeasures._fields
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@dataclass(frozen=True)
class Case:
    simplices: int = 5
    k: int = 4
    dim: int = 6
    rows: int = 0  # of a table; 0: none

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(7)
        shape = (self.rows, self.dim) if self.rows else (self.simplices, self.k + 1, self.dim)
        points = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        if not self.rows:
            return points, None
        draws = torch.rand(self.simplices, self.rows, generator=generator).argsort(-1)
        return points, draws[:, : self.k + 1].contiguous().to(device)


def vertices(points: Tensor, indices: Tensor | None) -> Tensor:
    return points if indices is None else points[indices]


def loss(measures: tuple) -> Tensor:
    """Every output, with other weights for every simplex and about the same share of each output."""
    parts = []
    for measure in measures:
        weights = torch.linspace(0.5, 1.5, measure.numel(), dtype=measure.dtype, device=measure.device)
        size = measure.detach().abs().mean().clamp_min(1e-30)
        parts.append((weights.view_as(measure) * measure / size).sum())
    return torch.stack(parts).sum()


def gradient(run, points: Tensor) -> Tensor:
    leaf = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(run(leaf)), leaf)
    return grad


def baseline(points: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What eager torch makes of it; in float64, the accuracy of the oracle itself, the bordered determinant."""
    if dtype != torch.float64:
        return reference.simplex_measures(points.float())
    distances = reference.squared_distances(points)
    squared, determinant = reference.squared_volume(points), reference.cayley_menger_determinant(distances)
    return squared.sqrt(), 0.5 * squared.log(), squared, determinant, distances


# 1. known values

COEFFICIENTS = [2, -16, 288, -9216, 460800, -33177600, 3251404800]


def regular_simplex(k: int, edge: float, device: str) -> Tensor:
    return torch.eye(k + 1, dtype=torch.float64, device=device) * (edge / math.sqrt(2))


@pytest.mark.parametrize("k", range(1, 9))
def test_known_values_regular_simplex(device, k):
    """V = a^k sqrt((k + 1) / 2^k) / k!."""
    volume = 1.5**k * math.sqrt((k + 1) / 2**k) / math.factorial(k)
    measures = ops.simplex_measures(regular_simplex(k, 1.5, device))
    assert float(measures.volume) == pytest.approx(volume, rel=1e-14)
    assert float(measures.log_volume) == pytest.approx(math.log(volume), rel=1e-14, abs=1e-14)
    assert float(measures.squared_volume) == pytest.approx(volume**2, rel=1e-14)
    coefficient = (-1) ** (k + 1) * 2**k * math.factorial(k) ** 2
    assert k > 7 or coefficient == COEFFICIENTS[k - 1]
    assert float(measures.determinant) == pytest.approx(coefficient * volume**2, rel=1e-13)
    assert measures.squared_distances.tolist() == pytest.approx([2.25] * (k * (k + 1) // 2), rel=1e-14)


def test_known_values_pentachoron_and_triangle(device):
    points = regular_simplex(4, 1.0, device)
    assert float(ops.simplex_volume(points)) == pytest.approx(math.sqrt(5) / 96, rel=1e-14)
    assert float(ops.simplex_squared_volume(points)) == pytest.approx(5.4253472222222e-4, rel=1e-13)
    triangle = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], device=device)
    assert float(ops.simplex_volume(triangle)) == 6.0
    assert float(ops.cayley_menger_determinant(triangle)) == -16 * 36
    assert ops.simplex_measures(triangle).squared_distances.tolist() == [16.0, 9.0, 25.0]


def test_gradient_of_the_log_volume_is_normal_over_height(device):
    """grad_i log V = inward unit normal of the opposite facet over the height (systems of dual vectors)."""
    triangle = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]], device=device, dtype=torch.float64)
    leaf = triangle.requires_grad_()
    (grad,) = torch.autograd.grad(ops.simplex_log_volume(leaf), leaf)
    wanted = torch.tensor([[-1 / 4, -1 / 3], [1 / 4, 0.0], [0.0, 1 / 3]], dtype=torch.float64, device=device)
    torch.testing.assert_close(grad, wanted, rtol=1e-14, atol=1e-15)


# 2. matches the reference

SHAPES = [(0, 4, 6), (1, 1, 1), (3, 1, 7), (7, 2, 2), (9, 2, 33), (33, 3, 17), (64, 4, 128), (17, 4, 300), (5, 5, 8),
          (8, 6, 65), (6, 7, 40), (11, 8, 16), (2, 8, 257)]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simplices, k, dim", SHAPES)
def test_matches_reference(device, dtype, simplices, k, dim):
    for rows in (0, 40):
        points, indices = Case(simplices, k, dim, rows).inputs(dtype, device)
        results = ops.simplex_measures(points, indices)
        low = vertices(points, indices)
        exact, eager = reference.simplex_measures(low.double()), baseline(low, dtype)
        for result, other, oracle in zip(results, eager, exact, strict=True):
            assert_as_accurate(result, other, oracle)


@pytest.mark.parametrize("k", range(1, 9))
def test_matches_the_bordered_determinant(device, k):
    points, _ = Case(20, k, k + 2).inputs(device=device)
    measures = ops.simplex_measures(points)
    torch.testing.assert_close(
        measures.squared_volume, reference.squared_volume(points), rtol=1e-8, atol=1e-18
    )
    distances = reference.squared_distances(points)
    torch.testing.assert_close(measures.squared_distances, distances, rtol=1e-12, atol=1e-13)
    determinant = reference.cayley_menger_determinant(distances)
    torch.testing.assert_close(measures.determinant, determinant, rtol=1e-8, atol=1e-10)


def test_each_output_alone(device):
    points, _ = Case().inputs(device=device)
    everything = ops.simplex_measures(points)
    single = (
        ops.simplex_volume,
        ops.simplex_log_volume,
        ops.simplex_squared_volume,
        ops.cayley_menger_determinant,
    )
    for function, name in zip(single, OUTPUTS, strict=False):
        assert torch.equal(function(points), getattr(everything, name))
    for name in OUTPUTS:
        alone = ops.simplex_measures(points, outputs=(name,))
        assert torch.equal(getattr(alone, name), getattr(everything, name))
        assert [getattr(alone, other) for other in OUTPUTS if other != name] == [None] * 4


def test_any_strides_and_batch_dimensions(device):
    points, _ = Case(12).inputs(device=device)
    plain = ops.simplex_measures(points)
    wide = torch.zeros(3, 4, 5, 13, dtype=points.dtype, device=device)
    wide[..., 1::2] = points.view(3, 4, 5, 6)
    for strided in (wide[..., 1::2], points.view(3, 4, 5, 6).mT.contiguous().mT):
        measures = ops.simplex_measures(strided)
        assert measures.volume.shape == (3, 4) and measures.squared_distances.shape == (3, 4, 10)
        for result, wanted in zip(measures, plain, strict=True):
            assert torch.equal(result.flatten(0, 1), wanted)
    expanded = ops.simplex_volume(points[:1].expand(12, -1, -1))
    assert torch.equal(expanded, plain.volume[:1].expand(12))
    assert torch.equal(ops.simplex_volume(points[3]), plain.volume[3])
    table, indices = Case(12, rows=9).inputs(device=device)
    through_table = ops.simplex_volume(table.mT.contiguous().mT, indices.view(3, 4, 5).int())
    assert torch.equal(through_table.flatten(), ops.simplex_volume(table[indices]))


def test_empty_inputs(device):
    for shape, wanted in (((0, 3, 4), (0,)), ((2, 0, 3, 4), (2, 0))):
        points = torch.empty(shape, device=device, requires_grad=True)
        measures = ops.simplex_measures(points)
        assert measures.volume.shape == wanted and measures.squared_distances.shape == (*wanted, 3)
        (grad,) = torch.autograd.grad(measures.volume.sum(), points)
        assert grad.shape == shape
    table = torch.randn(4, 3, device=device, requires_grad=True)
    none = torch.empty(0, 3, dtype=torch.long, device=device)
    (grad,) = torch.autograd.grad(ops.simplex_volume(table, none).sum(), table)
    assert torch.equal(grad, torch.zeros_like(table))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_nan_and_infinity_stay_in_their_simplex(device, k):
    points, _ = Case(20, k, 12).inputs(torch.float32, device)
    clean, clean_grad = ops.simplex_measures(points), gradient(ops.simplex_measures, points)
    points[3, 0, 1], points[9, k, 2], points[13, k - 1, 5] = float("nan"), float("nan"), float("inf")
    others = [b for b in range(20) if b not in (3, 9, 13)]
    leaf = points.requires_grad_()
    measures = ops.simplex_measures(leaf)
    for result, wanted in zip(measures, clean, strict=True):
        assert torch.equal(result[others], wanted[others])
        assert (
            result[[3, 9]].flatten(1).isnan().any(1).all()
            if result.ndim > 1
            else result[[3, 9]].isnan().all()
        )
    for again in (False, True):
        (grad,) = torch.autograd.grad(measures.volume.sum(), leaf, create_graph=again, retain_graph=True)
        assert grad[others].isfinite().all() and grad[[3, 9]].isnan().flatten(1).any(1).all()
    assert clean_grad.isfinite().all()


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("order", [1, 2])
def test_degenerate_simplices(device, k, order):
    """A repeated vertex, and fewer dimensions than the order: value 0; no gradient where there is no derivative."""
    flat = torch.randn(4, k + 1, k - 1, dtype=torch.float64, device=device)
    points = torch.cat([flat, flat[..., :1] * 0], dim=-1)
    points[2:, k] = points[2:, 0]
    leaf = points.requires_grad_()
    measures = ops.simplex_measures(leaf)
    for name in ("volume", "squared_volume", "determinant"):
        assert torch.equal(getattr(measures, name), torch.zeros(4, dtype=torch.float64, device=device))
    assert torch.equal(measures.log_volume, torch.full((4,), -torch.inf, dtype=torch.float64, device=device))
    for name in OUTPUTS[:4]:
        (grad,) = torch.autograd.grad(
            getattr(measures, name).sum(), leaf, retain_graph=True, create_graph=order == 2
        )
        # by torch operations: cofactors times edges, which cancel up to rounding
        scale = 2.0**k * math.factorial(k) ** 2 if name == "determinant" else 1.0
        torch.testing.assert_close(grad / scale, 0 * grad, rtol=0, atol=0.0 if order == 1 else 1e-12)
    (grad,) = torch.autograd.grad(measures.squared_distances.sum(), leaf, create_graph=order == 2)
    exact = leaf.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(reference.squared_distances(exact).sum(), exact)
    torch.testing.assert_close(grad, wanted, rtol=1e-12, atol=1e-12)


def test_squared_volume_is_smooth_at_degenerate_simplices(device):
    """The Hessian there is that of the squared height: not 0."""
    points = torch.tensor(
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.0]], dtype=torch.float64, device=device
    )
    hessian = torch.func.hessian(ops.simplex_squared_volume)(points)
    assert float(hessian[2, 1, 2, 1]) == pytest.approx(0.5, rel=1e-12)  # V^2 = y^2 / 4


# 3. gradcheck

CHECK = {"nondet_tol": 0.0, "check_forward_ad": True, "check_batched_grad": True}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("k, dim, rows", [(1, 1, 0), (2, 3, 0), (3, 3, 7), (4, 5, 0), (4, 6, 8)])
def test_gradcheck(device, name, k, dim, rows):
    points, indices = Case(3, k, dim, rows).inputs(device=device)
    leaf = points.requires_grad_()

    def run(t):
        return getattr(ops.simplex_measures(t, indices, outputs=(name,), deterministic=True), name)

    assert torch.autograd.gradcheck(run, leaf, **CHECK)
    assert torch.autograd.gradgradcheck(run, leaf, nondet_tol=0.0 if device == "cpu" else 1e-12)


@pytest.mark.parametrize("k", [6, 8])
def test_gradcheck_of_high_orders(device, k):
    points, _ = Case(1, k, k + 1).inputs(device=device)

    def run(t):
        measures = ops.simplex_measures(t, outputs=("volume", "log_volume", "squared_volume"))
        return measures.volume * 10, measures.log_volume, measures.squared_volume * 100

    assert torch.autograd.gradcheck(run, points.requires_grad_(), nondet_tol=0.0)
    if k == 6:
        assert torch.autograd.gradgradcheck(run, points, nondet_tol=0.0 if device == "cpu" else 1e-12)


# 4. backward matches the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simplices, k, dim", SHAPES[1:])
def test_backward_matches_reference(device, dtype, simplices, k, dim):
    for rows in (0, 40):
        points, indices = Case(simplices, k, dim, rows).inputs(dtype, device)
        exact = gradient(lambda t: reference.simplex_measures(vertices(t, indices)), points.double())  # noqa: B023
        eager = gradient(lambda t: baseline(vertices(t, indices), t.dtype), points)  # noqa: B023
        for deterministic in (False, True):
            result = gradient(
                lambda t: ops.simplex_measures(t, indices, deterministic=deterministic),  # noqa: B023
                points,
            )
            assert_as_accurate(result, eager, exact)


@pytest.mark.parametrize("rows", [0, 9])
def test_second_order_matches_reference(device, rows):
    points, indices = Case(6, 3, 5, rows).inputs(device=device)
    seconds = []
    for run in (
        lambda t: ops.simplex_measures(t, indices),
        lambda t: reference.simplex_measures(vertices(t, indices)),
    ):
        leaf = points.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(run(leaf)), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-9)


def test_only_wanted_gradients_flow(device):
    points, _ = Case().inputs(device=device)
    leaf = points.requires_grad_()
    measures = ops.simplex_measures(leaf)
    whole = [torch.autograd.grad(m.sum(), leaf, retain_graph=True)[0] for m in measures]
    for name, wanted in zip(OUTPUTS, whole, strict=True):
        alone = getattr(ops.simplex_measures(leaf, outputs=(name,)), name)
        assert torch.equal(torch.autograd.grad(alone.sum(), leaf)[0], wanted)
    assert not ops.simplex_volume(points.detach()).requires_grad


def test_repeated_rows_add_their_gradients(device):
    """One vertex in every simplex, and a simplex that names a row twice (degenerate, but with distances)."""
    table = torch.randn(6, 4, dtype=torch.float64, device=device)
    indices = torch.tensor([[0, 1, 2], [0, 3, 4], [0, 0, 5], [5, 1, 5]], device=device)
    for deterministic in (False, True):
        ours = gradient(
            lambda t: ops.simplex_measures(
                t,
                indices,
                outputs=("squared_distances",),
                deterministic=deterministic,  # noqa: B023
            )[4:],
            table,
        )
        exact = gradient(lambda t: (reference.squared_distances(t[indices]),), table)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


# numerics


def slivers(height: float, shift: float, count: int, device: str, dim: int = 32) -> Tensor:
    """A bent regular tetrahedron of edge 1.4, the last vertex `height` above its centroid; float32."""
    generator = torch.Generator().manual_seed(3)
    frame = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)).Q[
        :, :, :4
    ]
    inside = 0.1 * torch.randn(count, 5, 3, generator=generator, dtype=torch.float64)
    inside[:, :4] += 0.5 * torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    inside[:, 4] = inside[:, :4].mean(1)
    heights = torch.zeros(count, 5, 1, dtype=torch.float64)
    heights[:, 4] = height
    points = torch.cat([inside, heights], -1) @ frame.mT
    return (points + shift).float().to(device)


@pytest.mark.parametrize("height, shift, bound", [(1e-4, 0.0, 1e-3), (1e-2, 10.0, 1e-4)])
def test_flat_simplices_keep_their_volume(device, height, shift, bound):
    """Against the oracle on the rounded coordinates; the naive determinant in float32 has lost the sign by then."""
    points = slivers(height, shift, 4000, device)
    exact = reference.squared_volume_of_edges(points.double())
    squared = ops.simplex_squared_volume(points)
    assert (squared > 0).all()
    assert float(((squared - exact) / exact).abs().max()) <= bound
    determinant = ops.cayley_menger_determinant(points)
    assert (determinant < 0).all()
    naive = reference.squared_volume(points)
    assert float(((naive - exact) / exact).abs().median()) > bound
    if height == 1e-4:
        assert float((naive <= 0).float().mean()) > 0.3
    leaf, exact_leaf = points.clone().requires_grad_(), points.double().requires_grad_()
    (grad,) = torch.autograd.grad(ops.simplex_log_volume(leaf).sum(), leaf)
    (wanted,) = torch.autograd.grad(
        0.5 * reference.squared_volume_of_edges(exact_leaf).log().sum(), exact_leaf
    )
    error = (grad - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert float(error.max()) <= bound


def test_order_eight_does_not_underflow(device):
    points = 1e-3 * torch.randn(100, 9, 16, device=device)
    exact = reference.log_volume(points.double())
    logarithm = ops.simplex_log_volume(points)
    torch.testing.assert_close(logarithm.double(), exact, rtol=1e-6, atol=0)
    assert float(logarithm.max()) < -50 and float(ops.simplex_squared_volume(points).max()) < 1e-44
    tiny = torch.randn(10, 9, 16, dtype=torch.float64, device=device)
    shifted = ops.simplex_log_volume(1e-60 * tiny) - ops.simplex_log_volume(tiny)
    torch.testing.assert_close(shifted, torch.full_like(shifted, -480 * math.log(10)), rtol=1e-12, atol=0)
    leaf, exact_leaf = points.clone().requires_grad_(), points.double().requires_grad_()
    (grad,) = torch.autograd.grad(ops.simplex_log_volume(leaf).sum(), leaf)
    (wanted,) = torch.autograd.grad(reference.log_volume(exact_leaf).sum(), exact_leaf)
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-3)


# 5. opcheck


@pytest.mark.parametrize("rows", [0, 9])
@pytest.mark.parametrize("simplices", [0, 5])
def test_opcheck(device, simplices, rows):
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(max(simplices, 1), 2, 3, rows)
        points, indices = case.inputs(dtype, device)
        points = points[:simplices] if indices is None else points
        indices = None if indices is None else indices[:simplices]
        for wanted in ((True,) * 5, (True, False, False, False, False)):
            torch.library.opcheck(op, (points.clone().requires_grad_(), indices, *wanted, True))


@pytest.mark.parametrize("rows", [0, 9])
def test_opcheck_of_the_backward(device, rows):
    points, indices = Case(5, 2, 3, rows).inputs(torch.float32, device)
    measures = op(points, indices, True, True, True, True, True, False)
    torch.library.opcheck(backward_op, (*measures, points, indices, None))
    order = None if indices is None else indices.flatten().argsort(stable=True)
    torch.library.opcheck(backward_op, (measures[0], None, None, None, None, points, indices, order))


# 6. compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize("rows", [0, 9])
def test_compile_fullgraph_with_dynamic_batch(device, rows):
    torch._dynamo.reset()

    def function(points, indices):
        measures = ops.simplex_measures(points, indices)
        return loss(measures) + ops.simplex_log_volume(points, indices).square().sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for simplices in (5, 9, 17):
        points, indices = Case(simplices, rows=rows).inputs(device=device)
        results = []
        for run in (function, compiled):
            leaf = points.clone().requires_grad_()
            value = run(leaf, indices)
            value.backward()
            results.append([value.detach(), leaf.grad])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-12)


def test_export_with_dynamic_batch(device):
    class Volume(torch.nn.Module):
        def forward(self, points):
            return ops.simplex_volume(points)

    batch = torch.export.Dim("batch", min=2, max=64)
    points, _ = Case().inputs(device=device)
    program = torch.export.export(Volume(), (points,), dynamic_shapes=({0: batch},))
    larger, _ = Case(20).inputs(device=device)
    assert torch.equal(program.module()(larger), Volume()(larger))


@pytest.mark.parametrize("rows", [0, 9])
def test_torch_func(device, rows):
    points, indices = Case(3, 2, 3, rows).inputs(device=device)

    def run(t):
        return loss(ops.simplex_measures(t, indices))

    torch.testing.assert_close(
        torch.func.grad(run)(points), gradient(lambda t: ops.simplex_measures(t, indices), points),
        rtol=1e-11, atol=1e-11,
    )  # fmt: skip

    def volumes(t):
        return ops.simplex_volume(t, indices)

    def define(t):
        return reference.simplex_measures(vertices(t, indices))[0]

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(
            transform(volumes)(points), torch.func.jacrev(define)(points), rtol=1e-10, atol=1e-10
        )
    hessian = torch.func.hessian(lambda t: volumes(t).sum())(points)
    wanted = torch.func.hessian(lambda t: define(t).sum())(points)
    torch.testing.assert_close(hessian, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "rows, dims", [(0, (0, None)), (0, (2, None)), (9, (0, None)), (9, (None, 1)), (9, (1, 0))]
)
def test_vmap(device, rows, dims):
    points, indices = Case(rows=rows).inputs(device=device)
    stacked = points if dims[0] is None else torch.stack([points, 0.5 * points, -points + 1], dims[0])
    rowed = (
        indices if dims[1] is None else torch.stack([indices, indices.flip(0), (indices + 1) % rows], dims[1])
    )

    def single(p, i):
        return tuple(ops.simplex_measures(p, i))

    def total(p, i):
        return loss(single(p, i))

    results = torch.func.vmap(single, in_dims=dims)(stacked, rowed)
    grads = torch.func.vmap(torch.func.grad(total), in_dims=dims)(stacked, rowed)
    for i in range(3):
        own = [t if d is None else t.select(d, i) for t, d in zip((stacked, rowed), dims, strict=True)]
        for result, wanted in zip(results, single(*own), strict=True):
            torch.testing.assert_close(result[i], wanted, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(grads[i], torch.func.grad(total)(*own), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(device, dtype):
    points, _ = Case().inputs(torch.float32, device)
    with torch.autocast(device, dtype=dtype):
        volume = ops.simplex_volume(points)
        low = ops.simplex_volume(points.to(dtype))
    assert volume.dtype == low.dtype == torch.float32
    assert torch.equal(volume, ops.simplex_volume(points))


def test_half_precision_volumes_do_not_overflow(device):
    points = (300 * torch.randn(5, 5, 6, device=device)).half()
    volume = ops.simplex_volume(points)
    assert volume.dtype == torch.float32 and bool((volume > 1e6).all())
    assert ops.simplex_volume(points.double()).dtype == torch.float64


def test_flop_formula(device):
    points, _ = Case(5, 4, 6).inputs(torch.float32, device)
    leaf = points.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        volume = ops.simplex_volume(leaf)
    assert counter.get_total_flops() == 5 * 6 * (4 + 4 * 5)
    with FlopCounterMode(display=False) as counter:
        volume.sum().backward()
    assert counter.get_total_flops() == 5 * 6 * (4 + 4 * 5) + 5 * 6 * (2 * 16 + 4)


# 7. rejects


def bad_calls() -> dict[str, tuple[tuple, tuple | None, str]]:
    return {
        "one vertex": ((5, 1, 6), None, "expected 2 to 9 vertices a simplex, got 1"),
        "ten vertices": ((5, 10, 6), None, "expected 2 to 9 vertices a simplex, got 10"),
        "points flat": ((5, 6), None, r"expected points with 3 dimensions, got \[5, 6\]"),
        "table deep": ((5, 3, 6), (5, 3), r"expected points with 2 dimensions, got \[5, 3, 6\]"),
        "indices flat": ((5, 6), (5,), r"expected indices with 2 dimensions, got \[5\]"),
        "indices wide": ((5, 6), (5, 10), "expected 2 to 9 vertices a simplex, got 10"),
    }


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", bad_calls())
def test_rejects(device, name):
    shape, rows, message = bad_calls()[name]
    points = torch.ones(shape, device=device)
    indices = None if rows is None else torch.zeros(rows, dtype=torch.long, device=device)
    with pytest.raises(RuntimeError, match=f"cayley_menger: {message}"):
        op(points, indices, True, True, True, True, True, False)


def test_rejects_in_the_public_function():
    points, indices = Case(rows=9).inputs()
    with pytest.raises(ValueError, match="expected outputs among volume, .*, got 'area'"):
        ops.simplex_measures(points, indices, outputs=("area",))
    with pytest.raises(TypeError, match="cayley_menger: expected points of dtype float64, float32"):
        ops.simplex_volume(points.long(), indices)
    with pytest.raises(
        TypeError, match="cayley_menger: expected indices of dtype int64 or int32, got torch.float64"
    ):
        ops.simplex_volume(points, indices.double())
    with pytest.raises(
        ValueError, match=r"expected points \[N, D\] with indices \[..., k \+ 1\], got \[3, 9, 6\]"
    ):
        ops.simplex_volume(points.expand(3, -1, -1), indices)
    with pytest.raises(ValueError, match=r"expected points of shape \[..., k \+ 1, D\], got \[6\]"):
        ops.simplex_volume(points[0])
    with pytest.raises(ValueError, match="cayley_menger: expected 2 to 9 vertices a simplex, got 1"):
        ops.simplex_volume(points[:1])


@pytest.mark.parametrize("row", [-1, 9])
def test_names_an_index_outside_of_the_table(row):
    points, indices = Case(rows=9).inputs()
    indices[3, 2] = row
    with pytest.raises(RuntimeError, match=rf"expected indices in \[0, 9\), got {row} in simplex 3"):
        ops.simplex_volume(points, indices)


@pytest.mark.cuda
def test_an_index_outside_of_the_table_gives_nan_on_a_gpu():
    points, indices = Case(rows=9).inputs(device="cuda")
    indices[3, 2] = 9
    indices[1, 0] = -1
    leaf = points.requires_grad_()
    for order in (1, 2):
        volume = ops.simplex_volume(leaf, indices)
        assert volume.isnan().tolist() == [False, True, False, True, False]
        (grad,) = torch.autograd.grad(volume[[0, 2, 4]].sum() + volume.sum(), leaf, create_graph=order == 2)
        kept = ops.simplex_volume(leaf, indices[[0, 2, 4]])
        torch.testing.assert_close(grad, 2 * torch.autograd.grad(kept.sum(), leaf)[0])


# 8. determinism, stream, graph, device


def test_two_runs_give_the_same_bits(device):
    for rows in (0, 64):
        points, indices = Case(3001, 4, 37, rows).inputs(torch.float32, device)
        runs = [
            gradient(lambda t: ops.simplex_measures(t, indices, deterministic=True), points)  # noqa: B023
            for _ in range(2)
        ]
        assert torch.equal(*runs)


def test_bits_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    for rows in (0, 64):
        points, indices = Case(5001, 4, 37, rows).inputs(torch.float32)
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = points.clone().requires_grad_()
            volume = ops.simplex_volume(leaf, indices)
            runs.append(torch.autograd.grad(volume, leaf, torch.ones_like(volume))[0])
        torch.set_num_threads(before)
        assert torch.equal(*runs)


def test_the_flag_is_read_in_the_forward(monkeypatch):
    """A backward that runs after the flag has changed keeps to what the forward saw."""
    seen = []
    real = ops.cayley_menger._backward_op

    def spy(*arguments):
        seen.append(arguments[7] is not None)
        return real(*arguments)

    monkeypatch.setattr(ops.cayley_menger, "_backward_op", spy)
    points, indices = Case(rows=9).inputs()
    leaf = points.requires_grad_()
    for flag, argument, wanted in (
        (True, None, True),
        (False, None, False),
        (True, False, False),
        (False, True, True),
    ):
        torch.use_deterministic_algorithms(flag, warn_only=True)
        volume = ops.simplex_volume(leaf, indices, deterministic=argument)
        torch.use_deterministic_algorithms(not flag, warn_only=True)
        volume.sum().backward()
        assert seen.pop() is wanted


@pytest.mark.cuda
def test_fast_and_deterministic_backward_agree():
    points, indices = Case(4000, 4, 64, 100).inputs(torch.float32, "cuda")
    fast, ordered = (
        gradient(lambda t: ops.simplex_measures(t, indices, deterministic=d), points)  # noqa: B023
        for d in (False, True)
    )
    torch.testing.assert_close(fast, ordered, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
def test_honours_the_stream():
    points, _ = Case(65536, 4, 32).inputs(torch.float32, "cuda")
    assert points.is_cuda
    wanted = ops.simplex_volume(points)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        result = ops.simplex_volume(points * 1.0)  # ready only after the sleep, on this stream
    stream.synchronize()
    assert torch.equal(result, wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [0, 500])
def test_replays_in_a_cuda_graph(rows):
    points, indices = Case(1000, 4, 16, rows).inputs(torch.float32, "cuda")
    leaf = points.requires_grad_()

    def step(points):
        volume = ops.simplex_volume(points, indices, deterministic=True)
        return volume, torch.autograd.grad(volume.sum(), points)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(leaf)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(leaf)
    with torch.no_grad():
        leaf.mul_(-0.5)
    graph.replay()
    again = leaf.detach().clone().requires_grad_()
    for result, wanted in zip(captured, step(again), strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    points, indices = Case(rows=9).inputs(torch.float32, "cuda:1")
    volume = ops.simplex_volume(points, indices)
    assert volume.device == torch.device("cuda:1")
    torch.testing.assert_close(volume.cpu(), ops.simplex_volume(points.cpu(), indices.cpu()))
    with pytest.raises(RuntimeError, match="on the device of the first argument"):
        op(points.to("cuda:0"), indices, True, True, True, True, True, False)
