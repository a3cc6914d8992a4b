"""Values of the Cayley-Menger op: known, the reference's, special and bad input. Letters: cayley_menger_cases.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.cayley_menger_cases import (
    DTYPES,
    OUTPUTS,
    SHAPES,
    Case,
    baseline,
    gradient,
    op,
    vertices,
)
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

# known values

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


def test_half_precision_volumes_do_not_overflow(device):
    points = (300 * torch.randn(5, 5, 6, device=device)).half()
    volume = ops.simplex_volume(points)
    assert volume.dtype == torch.float32 and bool((volume > 1e6).all())
    assert ops.simplex_volume(points.double()).dtype == torch.float64


# rejects


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
