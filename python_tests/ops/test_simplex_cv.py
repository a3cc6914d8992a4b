"""The tests of an op for simplex_cv. Legend: N rows, D dimension, n simplices, k order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from python_tests.accuracy import assert_as_accurate
from stratcore import ops
from stratcore.ops import reference

op = torch.ops.stratcore.simplex_cv
backward_op = torch.ops.stratcore.simplex_cv_backward
# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SOURCE = {"valid_above": 1e-20, "min_valid": 5, "eps": 1e-8}  # the conventions of the source documents


def points(rows: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype).to(device)


def define(x: Tensor, found: ops.SimplexCV, target: float, **options: Any) -> tuple:
    return reference.simplex_cv(x, found.indices, target, **options)


# 1. known values


@pytest.mark.parametrize("k", range(1, 9))
def test_known_volumes(device, k):
    """Origin and unit vectors: V = 1 / k!. All simplices are that one, so std = 0 and the gradient is finite."""
    x = torch.eye(k + 1, k, dtype=torch.float64, device=device).requires_grad_()
    found = ops.simplex_cv(x, k=k, num_simplices=17, seed=5, target=0.3)
    torch.testing.assert_close(found.volumes, torch.full_like(found.volumes, 1 / math.factorial(k)))
    assert found.count.item() == 17 and found.std.item() < 1e-15
    assert found.loss.item() == pytest.approx(0.09)
    assert found.mean.item() == pytest.approx(1 / math.factorial(k))
    found.loss.backward()
    assert x.grad.isfinite().all()


def test_types_and_shapes(device):
    for dtype in FLOATING:
        found = ops.simplex_cv(points(9, 5, device, dtype), k=3, num_simplices=6, seed=0)
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert all(t.dtype == wanted and t.shape == () for t in found[:4])
        assert found.count.dtype == found.indices.dtype == torch.int64
        assert found.volumes.dtype == wanted and found.indices.shape == (6, 4)
    found = ops.simplex_cv(points(9, 5, device), seed=0)
    assert found.loss.item() == pytest.approx((found.cv.item() - ops.cv_uniform(5)) ** 2, rel=1e-12)


# 2. matches the reference


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    "rows, dim, k, n", [(2, 1, 1, 3), (12, 9, 8, 40), (20, 19, 4, 33), (50, 3, 2, 8), (300, 128, 4, 257)]
)
def test_matches_reference(device, dtype, rows, dim, k, n):
    x = points(rows, dim, device, dtype)
    found = ops.simplex_cv(x, k=k, num_simplices=n, seed=9, target=0.2)
    wide = x.double() if dtype in (torch.float64, torch.float32) else x.float().double()
    exact, eager = define(wide, found, 0.2), define(x if dtype == torch.float64 else x.float(), found, 0.2)
    assert int(found.count) == exact[4]
    for result, own, wanted in zip(found[1:4] + found[5:6], eager[1:4] + eager[5:], exact[1:4] + exact[5:],
                                   strict=True):  # fmt: skip
        assert_as_accurate(result, own, wanted)


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("height", [1e-2, 1e-4])
def test_flat_simplices_far_from_the_origin(device, height, shift):
    """Rounded inputs are the points: float32 points, float64 oracle on the same numbers."""
    x = points(60, 32, device)
    flat = torch.cat([x[:, :3], height * x[:, 3:4], torch.zeros_like(x[:, 4:])], 1)
    rotation = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q.to(device)
    x = (flat @ rotation + shift).float().requires_grad_()
    found = ops.simplex_cv(x, num_simplices=500, seed=2)
    exact_x = x.detach().double().requires_grad_()
    vertices = exact_x[found.indices]
    edges = vertices[:, 1:] - vertices[:, :1]
    exact = torch.linalg.qr(edges.mT).R.diagonal(dim1=-2, dim2=-1).prod(-1).abs() / 24
    least_heights = 1 / torch.linalg.pinv(edges.detach()).norm(dim=1).amax(-1)
    usual = least_heights / edges.detach().norm(dim=-1).amax(-1) > height / 10
    assert usual.float().mean() > 0.8
    errors = (found.volumes.double() / exact - 1).abs().detach()
    assert errors[usual].max() < 1e-5 and errors.median() < 1e-7
    weights = torch.randn(500, dtype=torch.float64, device=device) * usual
    (grad,) = torch.autograd.grad(found.volumes, x, weights.float())
    (wanted,) = torch.autograd.grad(exact, exact_x, weights.float().double())
    assert (grad.double() - wanted).norm() < 1e-3 * wanted.norm()


def test_any_strides(device):
    x = points(30, 11, device)
    plain = ops.simplex_cv(x, num_simplices=20, seed=1)
    wide = torch.full((30, 23), math.nan, dtype=x.dtype, device=device)
    wide[:, 1::2] = x
    for strided in (wide[:, 1::2], x.mT.contiguous().mT):
        found = ops.simplex_cv(strided, num_simplices=20, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


# conventions


@pytest.mark.parametrize("rows", [40, 600])
def test_source_conventions(device, rows):
    """The value of the source documents' form on the same indices: bordered 6 x 6 determinant, mask, std, mean."""
    x = torch.nn.functional.normalize(points(rows, 16, device), dim=1)
    found = ops.simplex_cv(x, num_simplices=64, seed=3, target=0.22, pool=min(512, rows), **SOURCE)
    assert int(found.indices.max()) < 512
    d2 = torch.cdist(x[found.indices], x[found.indices], compute_mode="donot_use_mm_for_euclid_dist").square()
    bordered = torch.ones(64, 6, 6, dtype=torch.float64, device=device)
    bordered[:, 0, 0] = 0
    bordered[:, 1:, 1:] = d2
    squared = -torch.linalg.det(bordered) / 9216
    volumes = squared[squared > 1e-20].sqrt()
    loss = (volumes.std() / (volumes.mean() + 1e-8) - 0.22) ** 2
    torch.testing.assert_close(found.loss, loss, rtol=1e-9, atol=0)
    assert int(found.count) == volumes.numel()


@pytest.mark.parametrize("min_valid, defined", [(2, True), (7, True), (8, False), (100, False)])
def test_min_valid(device, min_valid, defined):
    """Rows 0 to 4 are a simplex, all others equal row 0: seven of the given simplices are not degenerate."""
    x = points(5, 6, device)[[0, 1, 2, 3, 4, *[0] * 2]].requires_grad_()
    seed = next(s for s in range(1000) if int(ops.simplex_cv(x, num_simplices=20, seed=s).count) == 7)
    found = ops.simplex_cv(x, num_simplices=20, seed=seed, target=3.0, min_valid=min_valid)
    assert int(found.count) == 7
    assert all(bool(t.isfinite()) == defined for t in found[1:4])
    assert found.loss.item() == (pytest.approx(9.0) if defined else 0.0)
    (found.loss + found.cv.nan_to_num() + found.mean.nan_to_num() + found.std.nan_to_num()).backward()
    assert x.grad.isfinite().all() and bool((x.grad != 0).any()) == defined


def test_degenerate_and_undefined_points(device):
    line = torch.linspace(0, 1, 12, dtype=torch.float64, device=device)[:, None] * points(1, 5, device)
    found = ops.simplex_cv(line.requires_grad_(), k=2, num_simplices=30, seed=0)
    assert found.volumes.eq(0).all() and int(found.count) == 0 and found.loss.item() == 0
    assert ops.simplex_cv(points(9, 2, device), num_simplices=5, seed=0).count == 0  # k > D
    x = points(30, 6, device)
    x[3, 2] = math.nan
    found = ops.simplex_cv(x, num_simplices=60, seed=0)
    touched = (found.indices == 3).any(1)
    assert touched.any() and torch.equal(found.volumes.isnan(), touched)
    assert int(found.count) == int((~touched).sum()) and found.cv.isfinite()
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(ops.simplex_cv(leaf, num_simplices=60, seed=0).loss, leaf)
    assert grad.isfinite().all()


def test_valid_above_compares_squared_volumes(device):
    x = points(30, 6, device)
    squared = ops.simplex_cv(x, num_simplices=50, seed=1).volumes.square()
    for bound in (float(squared.median()) * (1 + 1e-9), float(squared.max()) * 1.01):
        found = ops.simplex_cv(x, num_simplices=50, seed=1, valid_above=bound)
        assert int(found.count) == int((squared > bound).sum())


# 3. gradcheck


@pytest.mark.parametrize("k, dim", [(1, 3), (2, 5), (4, 4), (4, 9), (8, 10)])
def test_gradcheck(device, k, dim):
    x = points(14, dim, device).requires_grad_()

    def run(x: Tensor) -> tuple[Tensor, ...]:
        found = ops.simplex_cv(x, k=k, num_simplices=12, seed=3, target=0.4, eps=1e-3)
        return *found[:4], found.volumes

    assert torch.autograd.gradcheck(run, x, nondet_tol=0.0, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, x, nondet_tol=1e-9)


# 4. backward matches the reference


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("rows, dim, k, n", [(12, 9, 8, 20), (40, 19, 4, 200), (300, 128, 4, 500)])
def test_backward_matches_reference(device, dtype, rows, dim, k, n):
    x = points(rows, dim, device, dtype).requires_grad_()
    found = ops.simplex_cv(x, k=k, num_simplices=n, seed=9, target=0.2)
    weights = torch.randn(n, dtype=torch.float64, device=device)

    def total(parts: tuple) -> Tensor:
        loss, cv, mean, std, _, volumes = parts
        return loss + 0.3 * cv - 2 * mean + 0.7 * std + (volumes * weights.to(volumes.dtype)).sum() / n

    total(found[:6]).backward()
    grads = []
    for wide in (torch.float64, torch.float64 if dtype == torch.float64 else torch.float32):
        own = x.detach().to(wide).requires_grad_()
        total(define(own, found, 0.2)).backward()
        grads.append(own.grad)
    assert_as_accurate(x.grad, grads[1].to(dtype), grads[0])


def test_second_order_matches_reference(device):
    seconds = []
    for run in (lambda x, f: f, lambda x, f: define(x, f, 0.2)):
        x = points(20, 9, device).requires_grad_()
        parts = run(x, ops.simplex_cv(x, num_simplices=30, seed=9, target=0.2))
        value = parts[0] + parts[1] * parts[2] + parts[3] + parts[5].square().sum()
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        grad.square().sum().backward()
        seconds.append(x.grad)
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-10)


# 5. opcheck


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(device, dtype, requires_grad):
    x = points(20, 6, device, dtype).requires_grad_(requires_grad)
    seed = torch.tensor([1, 2], device=device)
    torch.library.opcheck(op, (x, seed, 4, 10, 15, 0.2, 0.0, 2, 0.0))
    with torch.no_grad():
        loss, _, _, _, _, volumes, *saved = op(x, seed, 4, 10, 15, 0.2, 0.0, 2, 0.0)
    arguments = (loss, None, loss, None, volumes, x.detach(), *saved, 0.2, 0.0, 2, 0.0)
    torch.library.opcheck(backward_op, arguments)
    torch.library.opcheck(backward_op, (None,) * 5 + arguments[5:])


# 6. compile, export, torch.func, autocast, FLOPs


def test_compile_fullgraph_with_dynamic_batch(device):
    torch._dynamo.reset()
    seed = torch.tensor([1, 2], device=device)

    def loss(x: Tensor, seed: Tensor) -> Tensor:
        found = ops.simplex_cv(x, num_simplices=30, seed=seed)
        return found.loss + found.volumes.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (10, 17, 40):
        results = []
        for function in (loss, compiled):
            x = points(rows, 9, device).requires_grad_()
            value = function(x, seed)
            value.backward()
            results.append((value.detach(), x.grad))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-14)


def test_export_with_dynamic_batch(device):
    class Evenness(torch.nn.Module):
        def forward(self, x: Tensor, seed: Tensor) -> Tensor:
            return ops.simplex_cv(x, num_simplices=30, seed=seed).cv

    seed = torch.tensor([1, 2], device=device)
    batch = torch.export.Dim("batch", min=5, max=1000)
    program = torch.export.export(
        Evenness(), (points(20, 9, device), seed), dynamic_shapes=({0: batch}, None)
    )
    larger = points(77, 9, device)
    torch.testing.assert_close(program.module()(larger, seed), Evenness()(larger, seed))


def test_torch_func(device):
    x = points(20, 6, device)

    def loss(x: Tensor, seed: Tensor) -> Tensor:
        return ops.simplex_cv(x, num_simplices=15, seed=seed, target=0.1).loss

    seeds = torch.tensor([[0, 0], [1, 0], [1, 1]], device=device)
    leaf = x.clone().requires_grad_()
    loss(leaf, seeds[1]).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x, seeds[1]), leaf.grad, rtol=1e-10, atol=1e-13)
    values = torch.func.vmap(loss, in_dims=(None, 0))(x, seeds)
    assert torch.equal(values, torch.stack([loss(x, seed) for seed in seeds]))
    stacked = torch.stack([x, 2 * x, -x], 1)
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(1, 0))(stacked, seeds)
    torch.testing.assert_close(grads[2], torch.func.grad(loss)(-x, seeds[2]), rtol=1e-10, atol=1e-13)
    hessian = torch.func.jacfwd(torch.func.grad(lambda x: loss(x, seeds[0])))(x)
    torch.testing.assert_close(hessian, hessian.permute(2, 3, 0, 1), rtol=1e-9, atol=1e-12)


def test_autocast_changes_nothing(device):
    x, seed = points(20, 6, device, torch.float32), torch.tensor([1, 2], device=device)
    plain = ops.simplex_cv(x, num_simplices=15, seed=seed)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = ops.simplex_cv(x, num_simplices=15, seed=seed)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, inside, strict=True))


def test_flop_formula(device):
    x = points(20, 6, device).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        found = ops.simplex_cv(x, k=3, num_simplices=15, seed=0)
    assert counter.get_total_flops() == 15 * 6 * 2 * 6
    with FlopCounterMode(display=False) as counter:
        found.loss.backward()
    assert counter.get_total_flops() == 15 * 9 * 2 * 6


# 7. rejects

REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "k small": ({"order": 0}, r"expected k in \[1, 8\], got 0"),
    "k large": ({"order": 9}, r"expected k in \[1, 8\], got 9"),
    "no columns": ({"x": (20, 0)}, r"expected x with at least one column, got \[20, 0\]"),
    "dimensions": ({"x": (2, 20, 6)}, r"expected x with 2 dimensions, got \[2, 20, 6\]"),
    "simplices": ({"num_simplices": 0}, "expected num_simplices >= 1, got 0"),
    "pool small": ({"pool": 4}, r"expected pool in \[k \+ 1, rows of x\] = \[5, 20\], got 4"),
    "pool large": ({"pool": 21}, r"expected pool in \[k \+ 1, rows of x\] = \[5, 20\], got 21"),
    "valid_above": ({"valid_above": -1.0}, "expected valid_above >= 0, got -1"),
    "valid_above nan": ({"valid_above": math.nan}, "expected valid_above >= 0, got nan"),
    "min_valid": ({"min_valid": 1}, "expected min_valid >= 2, got 1"),
    "eps": ({"eps": -1e-9}, "expected eps >= 0, got -1e-09"),
    "seed": ({"seed": (3,)}, r"expected seed of shape \[2\].*, got \[3\]"),
}


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("name", REJECTED)
def test_rejects(device, name):
    changes, message = REJECTED[name]
    call = {"x": (20, 6), "seed": (2,), "order": 4, "num_simplices": 10, "pool": 20, "target": 0.2,
            "valid_above": 0.0, "min_valid": 2, "eps": 0.0} | changes  # fmt: skip
    call["x"], call["seed"] = (
        torch.zeros(call["x"], device=device),
        torch.zeros(call["seed"], dtype=torch.int64, device=device),
    )
    with pytest.raises(RuntimeError, match=f"simplex_cv: {message}"):
        op(*call.values())
    call["k"] = call.pop("order")
    with pytest.raises(ValueError, match=f"simplex_cv: {message}"):
        ops.simplex_cv(call.pop("x"), **call)


def test_rejects_other_types(device):
    x = points(20, 6, device)
    with pytest.raises(TypeError, match="simplex_cv: expected x of dtype float64, .*, got torch.int64"):
        ops.simplex_cv(x.long())
    with pytest.raises(TypeError, match="simplex_cv: expected seed of dtype int64, got torch.int32"):
        ops.simplex_cv(x, seed=torch.zeros(2, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="simplex_cv: expected seed of at most 64 bits, got"):
        ops.simplex_cv(x, seed=1 << 64)
    with pytest.raises(ValueError, match=r"expected pool in .*, got 3"):
        ops.simplex_cv(x[:3])
