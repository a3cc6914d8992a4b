"""Bits, streams, CUDA graphs and devices of topk_lista."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.topk_lista_cases import Case, leaves, op


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
@pytest.mark.parametrize("atoms, k", [(32, 8), (256, 32), (4096, 32), (16384, 64)])
def test_cuda_selects_what_the_cpu_selects(atoms, k):
    """Equal magnitudes everywhere: 8 distinct values, so that the order of ties decides."""
    x = torch.randint(-4, 5, (64, atoms), generator=torch.Generator().manual_seed(1)).float()
    on_cpu, on_gpu = (torch.ops.stratcore.topk_ste(t, k, False) for t in (x, x.cuda()))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(a, b.cpu())
