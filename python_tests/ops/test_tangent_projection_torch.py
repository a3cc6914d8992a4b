"""sphere_normalize in torch: opcheck, compile, export, torch.func, autocast, FLOPs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from python_tests.ops.tangent_projection_cases import SURROGATES, backward_op, gradient, normal, op, problem
from stratcore import ops
from stratcore.ops import reference

# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


# opcheck


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 5])
def test_opcheck(device, dtype, rows, requires_grad):
    x, anchors, grad = problem(rows, 9, 4, dtype, device)
    x.requires_grad_(requires_grad)
    for directions, strength in ((anchors, 0.3), (anchors, 0.0), (None, 0.0)):
        options = (1.0, strength, "repel", "tangent", 1e-12)
        torch.library.opcheck(op, (x, directions, *options))
        _, norm, nearest, _ = op(x.detach(), directions, *options)
        torch.library.opcheck(backward_op, (grad, x.detach(), directions, norm, nearest, *options))


# compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize("options", [*SURROGATES[::4], {}], ids=str)
def test_compile_fullgraph_with_dynamic_batch(device, options):
    torch._dynamo.reset()

    def loss(x: Tensor, anchors: Tensor, grad: Tensor) -> Tensor:
        result = ops.sphere_normalize_nearest(x, anchors, **options)
        return (ops.sphere_normalize(result.y, anchors, **options) * grad * result.cosine[:, None]).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9, 17):
        x, anchors, grad = problem(rows, 7, 4, device=device)
        results = []
        for function in (loss, compiled):
            leaf = x.clone().requires_grad_()
            value = function(leaf, anchors, grad)
            value.backward()
            results.append([value.detach(), leaf.grad])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_export_with_dynamic_batch(device):
    x, anchors, _ = problem(6, 7, 4, device=device)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (
                ops.sphere_normalize(x, anchors, separation=0.1),
                *ops.sphere_normalize_nearest(x, anchors),
            )

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch},))
    larger = normal(20, 7, device=device, seed=4)
    torch.testing.assert_close(program.module()(larger), Module()(larger))


@pytest.mark.parametrize("options", [*SURROGATES, {}], ids=str)
def test_torch_func(device, options):
    x, anchors, grad = problem(6, 7, 4, device=device)

    def loss(x: Tensor, anchors: Tensor, grad: Tensor) -> Tensor:
        return (ops.sphere_normalize(x, anchors, **options) * grad).sum()

    wanted = gradient(x, anchors, grad, **options)
    own, other = torch.func.grad(loss, argnums=(0, 1))(x, anchors, grad)
    torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)
    assert not other.any()
    rows = torch.func.vmap(torch.func.grad(loss), (0, None, 0))(x, anchors, grad)
    torch.testing.assert_close(rows, wanted, rtol=1e-12, atol=1e-12)
    stacked = torch.stack([anchors, anchors.flip(0) * 2, -anchors], 1)
    each = torch.func.vmap(torch.func.grad(loss), (None, 1, None))(x, stacked, grad)
    for i in range(3):
        torch.testing.assert_close(
            each[i], gradient(x, stacked[:, i], grad, **options), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 0), (2, 1)])
def test_vmap(device, in_dims, anchored):
    x = normal(*(4, 7) if in_dims[0] is None else (3, 4, 7), device=device)
    anchors = normal(*(5, 7) if in_dims[1] is None else (3, 5, 7), device=device, seed=2)
    stacked = [t if d is None else t.movedim(0, d) for t, d in zip((x, anchors), in_dims, strict=True)]

    def run(x: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        return (
            tuple(ops.sphere_normalize_nearest(x, anchors))
            if anchored
            else (ops.sphere_normalize(x, anchors),)
        )

    results = torch.func.vmap(run, in_dims)(*stacked)
    for i in range(3):
        single = run(*(t if d is None else t[i] for t, d in zip((x, anchors), in_dims, strict=True)))
        for result, wanted in zip(results, single, strict=True):
            assert torch.equal(result[i], wanted)


@pytest.mark.parametrize("options", [*SURROGATES, {}], ids=str)
def test_batched_gradients(device, options):
    x, anchors, _ = problem(4, 7, 5, device=device)
    grads = normal(3, 4, 7, device=device, seed=1)
    leaf = x.clone().requires_grad_()
    y = ops.sphere_normalize(leaf, anchors, **options)

    def one(grad: Tensor) -> Tensor:
        return torch.autograd.grad(y, leaf, grad, retain_graph=True)[0]

    (batched,) = torch.autograd.grad(y, leaf, grads, is_grads_batched=True, retain_graph=True)
    for result in (batched, torch.func.vmap(one)(grads), torch.func.vmap(one, 1)(grads.transpose(0, 1))):
        for i in range(3):
            assert torch.equal(result[i], gradient(x, anchors, grads[i], **options))


@pytest.mark.parametrize(
    "in_dims", [(0, 0, None, 0, 0), (0, 0, 0, 0, 0), (None, 1, None, 1, 1), (0, None, 1, None, 0)]
)
def test_vmap_of_the_backward(device, in_dims):
    x, anchors, grad = problem(12, 7, 5, device=device)
    parts = [t.view(3, 4, 7) for t in (grad, x)] + [normal(3, 5, 7, device=device, seed=2)]
    parts += [parts[1].norm(dim=-1), torch.arange(12, dtype=torch.int32, device=device).view(3, 4) % 5]
    own = [t[0] if d is None else t.movedim(0, d) for t, d in zip(parts, in_dims, strict=True)]
    options = (0.7, 0.3, "repel", "tangent", 1e-12)
    results = torch.func.vmap(lambda *t: backward_op(*t, *options), in_dims)(*own)
    for i in range(3):
        single = [t[0] if d is None else t[i] for t, d in zip(parts, in_dims, strict=True)]
        assert torch.equal(results[i], backward_op(*single, *options))


def test_forward_mode(device):
    x, anchors, tangent = problem(4, 7, 5, device=device)
    run = lambda x: ops.sphere_normalize(x, jacobian="normalize")  # noqa: E731
    _, ours = torch.func.jvp(run, (x,), (tangent,))
    torch.testing.assert_close(ours, torch.func.jvp(reference.on_sphere, (x,), (tangent,))[1])
    with pytest.raises(RuntimeError, match="tangent_projection: expected separation 0 in forward mode"):
        torch.func.jvp(lambda x: ops.sphere_normalize(x, anchors, separation=0.1), (x,), (tangent,))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(device, low):
    x, anchors, grad = problem(6, 7, 4, torch.float32, device)
    with torch.autocast(device, dtype=low):
        assert torch.equal(ops.sphere_normalize(x), ops.sphere_normalize(x.clone()))
        assert ops.sphere_normalize(x).dtype == torch.float32
        mixed = ops.sphere_normalize_nearest(x.to(low), anchors)
        mixed_grad = gradient(x.to(low), anchors, grad.to(low), separation=0.1)
    same = ops.sphere_normalize_nearest(x.to(low), anchors.to(low))
    assert mixed.y.dtype == mixed_grad.dtype == low
    assert all(torch.equal(a, b) for a, b in zip(mixed, same, strict=True))


def test_flop_formula(device):
    x, anchors, grad = problem(6, 7, 4, torch.float32, device)
    with FlopCounterMode(display=False) as counter:
        ops.sphere_normalize_nearest(x, anchors)
    assert counter.get_total_flops() == 2 * 6 * 7 * 4
    with FlopCounterMode(display=False) as counter:
        gradient(x, anchors, grad)
    assert counter.get_total_flops() == 0  # without separation the anchors are not read
