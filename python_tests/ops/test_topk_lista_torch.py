"""topk_lista in torch: opcheck, compile, export, torch.func, autocast, FLOPs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from python_tests.ops.topk_lista_cases import FORMS, Case, leaves, op
from stratcore import ops

# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


# opcheck


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [0, 5])
def test_opcheck(device, form, rows, requires_grad):
    case = Case(form, rows=rows)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.requires_grad_(requires_grad) for t in case.inputs(dtype, device)]
        for dense, support in ((True, True), (False, False), (True, False)):
            torch.library.opcheck(op, (*inputs, list(case.k), form, 3, dense, support))


def test_opcheck_topk_and_backward(device):
    x = torch.randn(4, 6, device=device)
    for masked in (False, True):
        torch.library.opcheck(torch.ops.stratcore.topk_ste, (x.clone().requires_grad_(), 3, masked))
    case = Case()
    inputs = case.inputs(torch.float32, device)
    codes, values, indices, support = op(*inputs, list(case.k), "classic", 3, True, True)
    arguments = (*inputs, values, indices, support, list(case.k), "classic", True, False, True, True)
    torch.library.opcheck(torch.ops.stratcore.topk_lista_backward, (codes, values, *arguments))
    torch.library.opcheck(torch.ops.stratcore.topk_lista_backward, (None, values, *arguments))


# compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize("form", FORMS)
def test_compile_fullgraph_with_dynamic_batch(device, form):
    case = Case(form)
    torch._dynamo.reset()

    def loss(x, encoder, recurrent, theta):
        code = ops.topk_lista(x, encoder, recurrent, theta, case.k, num_steps=3, form=form)
        return (ops.topk_ste(code, 3) ** 2).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9, 17):
        inputs = replace(case, rows=rows).inputs(device=device)
        results = []
        for function in (loss, compiled):
            own = leaves([inputs[0][0], *inputs[1:]])
            value = function(*own)
            value.backward()
            results.append([value.detach(), *(t.grad for t in own)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager, rtol=1e-12, atol=1e-12)


def test_export_with_dynamic_batch(device):
    case = Case()
    x, *parameters = case.inputs(device=device)

    class Encoder(torch.nn.Module):
        def forward(self, x):
            return ops.topk_lista(x, *parameters, case.k, num_steps=3)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Encoder(), (x[0],), dynamic_shapes=({0: batch},))
    larger = replace(case, rows=20).inputs(device=device)[0][0]
    torch.testing.assert_close(program.module()(larger), Encoder()(larger))


def test_torch_func(device):
    case = Case(rows=3, num_steps=2)
    inputs = case.inputs(device=device)

    def loss(*t):
        return case.run(list(t)).square().sum()

    eager = leaves(inputs)
    loss(*eager).backward()
    grads = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*inputs)
    for grad, leaf in zip(grads, eager, strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batched", [(0, None, None, None), (None, 1, None, 0), (1, 2, 0, None)])
def test_vmap(device, form, batched):
    case = Case(form)
    inputs = case.inputs(device=device)
    stacked = [
        t if d is None else torch.stack([t, 0.5 * t, -t], d) for t, d in zip(inputs, batched, strict=True)
    ]

    def single(*t):
        return case.run(list(t))

    result = torch.func.vmap(single, in_dims=batched)(*stacked)
    for i in range(3):
        own = [t if d is None else t.select(d, i) for t, d in zip(stacked, batched, strict=True)]
        torch.testing.assert_close(result[i], single(*own), rtol=1e-12, atol=1e-13)
    if batched[0] == 0:
        grads = torch.func.vmap(torch.func.grad(lambda *t: single(*t).square().sum()), in_dims=batched)(
            *stacked
        )
        wanted = torch.func.grad(lambda *t: single(*t).square().sum())(stacked[0][1], *stacked[1:])
        torch.testing.assert_close(grads[1], wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(device, dtype):
    case = Case()
    inputs = case.inputs(torch.float32, device)
    with torch.autocast(device, dtype=dtype):
        code = case.run(inputs)
        low = case.run([t.to(dtype) for t in inputs])
    assert code.dtype == low.dtype == torch.float32
    assert torch.equal(code, case.run(inputs))


def test_flop_formula(device):
    case = Case(rows=5, dim=6, atoms=11)
    for form, products in (
        ("classic", 2 * 5 * 6 * 11 + 3 * 2 * 5 * 11 * 11),
        ("coupled", 7 * 2 * 5 * 6 * 11),
    ):
        inputs = leaves(replace(case, form=form).inputs(torch.float32, device))
        with FlopCounterMode(display=False) as counter:
            code = replace(case, form=form).run(inputs)
        assert counter.get_total_flops() == 3 * products
        with FlopCounterMode(display=False) as counter:
            code.sum().backward()
        assert counter.get_total_flops() >= 2 * 3 * products
