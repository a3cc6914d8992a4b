"""The Cayley-Menger op in torch: opcheck, compile, export, torch.func, autocast, FLOPs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from python_tests.ops.cayley_menger_cases import Case, backward_op, gradient, loss, op, vertices
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


# opcheck


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


# compile, export, torch.func, autocast, FLOPs


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


def test_flop_formula(device):
    points, _ = Case(5, 4, 6).inputs(torch.float32, device)
    leaf = points.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        volume = ops.simplex_volume(leaf)
    assert counter.get_total_flops() == 5 * 6 * (4 + 4 * 5)
    with FlopCounterMode(display=False) as counter:
        volume.sum().backward()
    assert counter.get_total_flops() == 5 * 6 * (4 + 4 * 5) + 5 * 6 * (2 * 16 + 4)
