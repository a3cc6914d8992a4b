"""Toroidal attention under torch: opcheck, compile, export, torch.func, autocast, streams.

Legend: toroidal_problem.py.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.harness import peak_memory
from python_tests.ops.toroidal_problem import DTYPES, all_gradients, masks, normal, problem, run, weights_of
from stratcore import ops

op = torch.ops.stratcore.toroidal_attention
backward_op = torch.ops.stratcore.toroidal_attention_backward
# torch 2.15's opcheck reads .grad of the copies that it makes of our inputs
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
OPTIONS = ([3, 4], [3, 2], "l1", 0.5, True, 2, 3, 1, 0.0, True)
SIZES = (2, 4, 2, 6, 9, 4)


def rows_first(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


# 5. opcheck


@pytest.mark.parametrize(
    "dtype, batch, requires_grad",
    [
        (torch.float64, 2, True),
        (torch.float32, 2, False),
        (torch.bfloat16, 2, True),
        (torch.float16, 0, True),
    ],
)
def test_opcheck(device, dtype, batch, requires_grad):
    """Contiguous queries with a mask, and transposed ones, whose result has their layout."""
    sizes = (batch, *SIZES[1:])
    q, k, v, slopes = problem(sizes, dtype, device, 2)
    some = masks(SIZES, device)["bool"][:batch]
    for query, mask in ((q, some), (rows_first(q), None)):
        tensors = (query, k, v, slopes)
        out, lse, _ = op(*tensors, mask, *OPTIONS)
        grad_lse = None if mask is None else torch.ones_like(lse)
        torch.library.opcheck(
            backward_op, (torch.ones_like(out), grad_lse, *tensors, mask, out, lse, *OPTIONS)
        )
        leaves = [t.detach().requires_grad_(requires_grad) for t in tensors]
        torch.library.opcheck(op, (*leaves, mask, *OPTIONS))


# 6. compile, export, torch.func, autocast, FLOPs


@pytest.mark.parametrize(
    "options",
    [
        {"lattice": [100], "causal": True},
        {"lattice": [10, 10], "block": [5, 2], "metric": "chordal", "eps": 1e-3, "scale": 0.3},
    ],
    ids=str,
)
def test_compile_fullgraph_with_dynamic_batch(device, options):
    torch._dynamo.reset()

    def loss(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, mask: Tensor) -> Tensor:
        out, lse, _, visible = run(q, k, v, slopes, mask=mask, **options)
        other = ops.toroidal_attention(out, k, v, slopes[:, 0], **options)
        return (other * out).sum() + lse.sin().sum() + visible.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, queries in ((2, 6), (3, 70), (5, 9)):
        sizes = (batch, 4, 2, queries, queries, 8)
        tensors = problem(sizes, device=device)
        tensors[0] = rows_first(tensors[0])
        mask = torch.arange(queries, device=device) >= 0
        results = []
        for function in (loss, compiled):
            leaves = [t.clone().requires_grad_() for t in tensors]
            value = function(*leaves, mask)
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_export_with_dynamic_batch(device):
    _, k, v, slopes = problem((1, 2, 2, 5, 9, 4), device=device)

    class Module(torch.nn.Module):
        def forward(self, q: Tensor) -> tuple[Tensor, ...]:
            keys, values = (t.expand(q.shape[0], -1, -1, -1) for t in (k, v))
            return tuple(run(q, keys, values, slopes, lattice=9, causal=True))

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Module(), (normal(3, 2, 5, 4, device=device),), dynamic_shapes=({0: batch},)
    )
    larger = normal(7, 2, 5, 4, device=device, seed=4)
    torch.testing.assert_close(program.module()(larger), Module()(larger))


BATCHED = {
    "all": (0, 0, 0, 0),
    "queries": (1, None, None, None),
    "slopes": (None, None, None, 1),
    "keys": (None, 2, 0, None),
}


@pytest.mark.parametrize("masked", ["no", "padding", "per head", "batched"])
@pytest.mark.parametrize("name", BATCHED)
def test_vmap(device, name, masked):
    """A batch of its own for any input, forward and backward: each element as by itself."""
    in_dims = (*BATCHED[name], 0 if masked == "batched" else None)
    tensors = [t for t in problem(SIZES, device=device, axes=2)]
    some = masks(SIZES, device)["bool"]
    mask = {
        "no": None,
        "padding": some[:, :1, :1],
        "per head": some,
        "batched": torch.stack([some, ~some, some]),
    }
    stacked = [
        t if dim is None else torch.stack([t, 2 * t, t.flip(-1)], dim)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
    stacked.append(mask[masked])
    weights = weights_of(SIZES, device)

    def each(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, mask: Tensor | None) -> tuple:
        def loss(*t: Tensor) -> tuple[Tensor, tuple]:
            result = run(*t, mask=mask, lattice=[3, 4], causal=True, query_offset=5)
            return (result.out * weights[0]).sum() + result.lse.sin().nan_to_num().sum(), tuple(result)

        grads, results = torch.func.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, slopes)
        return (*grads, *results)

    batched = torch.func.vmap(each, in_dims)(*stacked)
    for i in range(3):
        single = each(*(t if d is None else t.select(d, i) for t, d in zip(stacked, in_dims, strict=True)))
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-12)


def test_jacobians(device):
    q, k, v, slopes = problem((1, 2, 1, 2, 3, 2), device=device)
    call = lambda q, slopes: ops.toroidal_attention(q, k, v, slopes, lattice=3)  # noqa: E731
    reverse = torch.func.jacrev(call, argnums=(0, 1))(q, slopes)
    torch.testing.assert_close(torch.func.jacfwd(call, argnums=(0, 1))(q, slopes), reverse)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_to_its_dtype(device, low):
    q, k, v, slopes = problem((1, 2, 2, 9, 9, 4), torch.float32, device)
    wanted = run(*(t.to(low) for t in (q, k, v)), slopes, lattice=9)
    with torch.autocast(device, dtype=low):
        mixed = run(q, k.to(low), v, slopes.to(low).float() * 0 + slopes, lattice=9)
        wide = run(*(t.double() for t in (q, k, v)), slopes, lattice=9)
        leaf = q.clone().requires_grad_()
        ops.toroidal_attention(leaf, k, v, slopes, lattice=9).float().sum().backward()
    assert mixed.out.dtype == low and mixed.lse.dtype == torch.float32 and wide.out.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(mixed, wanted, strict=True))
    assert leaf.grad.dtype == torch.float32


def test_flop_formula(device):
    """As torch counts its own attention: two products forward and five backward, causal or not."""
    sizes = (2, 4, 2, 6, 9, 8)
    tensors, weights = problem(sizes, torch.float32, device), weights_of(sizes, device)
    products = 2 * 2 * 4 * 6 * 9 * 8
    for causal in (False, True):
        with FlopCounterMode(display=False) as counter:
            run(*tensors, lattice=9, causal=causal)
        assert counter.get_total_flops() == 2 * products
        with FlopCounterMode(display=False) as counter:
            all_gradients(lambda *t: run(*t, lattice=9, causal=causal), tensors, weights)  # noqa: B023
        assert counter.get_total_flops() == 7 * products


# 8. determinism, stream, graph, device


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(device, dtype):
    sizes = (2, 4, 2, 150, 300, 16)
    tensors, weights = problem(sizes, dtype, device), weights_of(sizes, device)
    call = lambda *t: run(*t, lattice=300, deterministic=True, eps=0.01)  # noqa: E731
    runs = [(*call(*tensors), *all_gradients(call, tensors, weights)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    # nor does a batch element depend on the others
    last = call(*(t[1:] for t in tensors[:3]), tensors[3])
    assert all(torch.equal(a[1:], b) for a, b in zip(runs[0], last, strict=False))


def test_the_number_of_threads_changes_no_bit():
    sizes = (1, 4, 2, 300, 300, 16)
    tensors, weights = problem(sizes, torch.float32), weights_of(sizes)
    results, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(all_gradients(lambda *t: run(*t, lattice=300), tensors, weights))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_matrix_of_scores_is_ever_in_memory(device):
    """Forward and backward of 8192 tokens stay far below the 256 MiB of one matrix in float32."""
    sizes = (1, 1, 1, 8192, 8192, 16)
    tensors, weights = problem(sizes, torch.float32, device), weights_of(sizes, device)
    call = lambda: all_gradients(lambda *t: run(*t, lattice=8192), tensors, weights)  # noqa: E731
    call()
    peak = peak_memory(call, torch.device(device))
    assert peak is None or peak < 64


@pytest.mark.parametrize("flag", [False, True])
def test_deterministic_follows_torch_once(monkeypatch, flag):
    seen: list[Any] = []
    tensors = [t.requires_grad_() for t in problem((1, 1, 1, 3, 3, 2))]
    module = import_module("stratcore.ops.toroidal_attention")  # the attribute of that name is the function
    right = module._backward_op
    monkeypatch.setattr(module, "_backward_op", lambda *a: seen.append(a[-1]) or right(*a))
    torch.use_deterministic_algorithms(flag)
    out = [ops.toroidal_attention(*tensors, lattice=3, deterministic=d) for d in (None, False, True)]
    torch.use_deterministic_algorithms(not flag)
    for result in out:
        result.sum().backward()
    assert seen == [flag, False, True]


@pytest.mark.cuda
def test_honours_the_stream():
    sizes = (2, 4, 4, 1024, 1024, 64)
    tensors, weights = problem(sizes, torch.bfloat16, "cuda"), weights_of(sizes, "cuda")
    call = lambda *t: run(*t, lattice=1024, deterministic=True)  # noqa: E731
    wanted = all_gradients(call, tensors, weights)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [t * 1.0 for t in tensors]  # ready only after the sleep, on this stream
        result = all_gradients(call, late, weights)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True))


@pytest.mark.cuda
def test_replays_in_a_cuda_graph():
    sizes = (1, 2, 2, 200, 200, 32)
    leaves = [t.requires_grad_() for t in problem(sizes, torch.bfloat16, "cuda")]
    grad = torch.ones(1, 2, 200, 32, dtype=torch.bfloat16, device="cuda")

    def gradients() -> tuple[Tensor, ...]:
        out = ops.toroidal_attention(*leaves, lattice=200, eps=1e-3, deterministic=True)
        return torch.autograd.grad(out, leaves, grad)

    gradients()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gradients()
    with torch.no_grad():
        leaves[0].mul_(-0.5)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(results, gradients(), strict=True))


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    tensors = problem((1, 2, 2, 20, 20, 8), torch.float32, "cuda:1")
    out = ops.toroidal_attention(*tensors, lattice=20)
    assert out.device == torch.device("cuda:1")
    torch.testing.assert_close(out.cpu(), ops.toroidal_attention(*(t.cpu() for t in tensors), lattice=20))
