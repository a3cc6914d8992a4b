"""Bits, streams, CUDA graphs and devices of topk_lista."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.topk_lista_cases import BACKWARDS, Case, leaves, op
from stratcore import ops


def test_two_runs_give_the_same_bits(device):
    case = Case(rows=257, dim=64, atoms=130, k=(3, 20, 64))
    runs = []
    for _ in range(2):
        inputs = leaves(case.inputs(torch.float32, device))
        case.run(inputs).square().sum().backward()
        runs.append([t.grad for t in inputs])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.cuda
def test_honours_the_stream():
    case = Case(rows=4096, dim=64, atoms=64, k=(8, 8, 8))
    inputs = case.inputs(torch.float32, "cuda")
    assert inputs[0].is_cuda
    wanted = case.run(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [t * 1.0 for t in inputs]  # ready only after the sleep, on this stream
        result = case.run(late)
    stream.synchronize()
    assert torch.equal(result, wanted)


@pytest.mark.cuda
def test_replays_in_a_cuda_graph():
    case = Case(rows=64, dim=16, atoms=32, k=(4, 8, 16))
    inputs = case.inputs(torch.float32, "cuda")
    case.run(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        code = case.run(inputs)
    inputs[0].mul_(-0.5)
    graph.replay()
    assert torch.equal(code, case.run(inputs))


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = Case()
    inputs = case.inputs(torch.float32, "cuda:1")
    code = case.run(inputs)
    assert code.device == torch.device("cuda:1")
    torch.testing.assert_close(code.cpu(), case.run([t.cpu() for t in inputs]))
    with pytest.raises(RuntimeError, match="on the device of the first argument"):
        op(inputs[0].to("cuda:0"), *inputs[1:], list(case.k), "classic", 3, True, False)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "atoms, k",
    [(32, 8), (256, 32), (256, 8), (257, 8), (500, 33), (512, 512), (1000, 300), (1024, 16), (4096, 32), (16384, 64)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["ties", "normal", "few", "special"])
def test_cuda_selects_what_the_cpu_selects(atoms, k, kind):
    """`ties`: 8 distinct magnitudes, so that the order of ties decides; `few`: mostly fewer than k non-zeros."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, atoms, generator=generator)
    if kind == "ties":
        x = torch.randint(-4, 5, (64, atoms), generator=generator).float()
    elif kind == "few":
        x = x.masked_fill(torch.rand(64, atoms, generator=generator) > 0.5 * k / atoms, 0.0)
    elif kind == "special":
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-42])
        places = torch.randint(atoms, (64, 4), generator=generator)
        x = x.scatter(1, places, special[torch.randint(4, (64, 4), generator=generator)])
    on_cpu, on_gpu = (torch.ops.stratcore.topk_ste(t, k, False) for t in (x, x.cuda()))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize(
    "atoms, dim, k", [(32, 64, (8,)), (32, 36, (8, 3)), (20, 7, (9, 20)), (7, 130, (5, 2, 1))]
)
@pytest.mark.parametrize("rows", [3, 9001])
def test_few_atoms_on_the_gpu(rows, atoms, dim, k, backward):
    """Numbers of few bits: no rounding, equal magnitudes everywhere, so codes agree to the bit."""
    generator = torch.Generator().manual_seed(3)

    def small(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator) * scale

    shape = (len(k), rows, atoms)
    inputs = [
        small(1, rows, dim),
        small(1, len(k), atoms, dim, scale=0.25),
        small(1, len(k), atoms, atoms, scale=0.25),
        small(4, len(k), atoms).abs() * 0.125,
    ]
    weights, slot_weights = small(*shape), small(4, len(k), rows, max(k))
    results = []
    for device in ("cpu", "cuda"):
        own = leaves([t.to(device) for t in inputs])
        arguments = (own[0][0], *own[1:], k)
        dense = ops.topk_lista(*arguments, num_steps=3, backward=backward)
        sparse = ops.topk_lista_sparse(*arguments, num_steps=3, backward=backward, every_step=True)
        loss = (dense * weights.to(device)).sum() + (sparse.values * slot_weights.to(device)).sum()
        grads = torch.autograd.grad(loss, own)
        results.append([t.detach().cpu() for t in (dense, sparse.indices, sparse.values, *grads)])
    for name, a, b in zip(("dense", "indices", "values", "x"), *(r[:4] for r in results), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(*(r[4:] for r in results), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4 * float(a.abs().max()))
