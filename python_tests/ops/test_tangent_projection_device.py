"""Bits, streams, CUDA graphs and devices of sphere_normalize."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.tangent_projection_cases import DTYPES, gradient, problem
from stratcore import ops


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_give_the_same_bits(device, dtype):
    x, anchors, grad = problem(517, 65, 33, dtype, device)
    runs = [
        (*ops.sphere_normalize_nearest(x, anchors), gradient(x, anchors, grad, separation=0.1))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    # nor does a row depend on where it stands
    last = ops.sphere_normalize_nearest(x[-5:], anchors)
    assert all(torch.equal(a[-5:], b) for a, b in zip(runs[0], last, strict=False))


@pytest.mark.cuda
def test_honours_the_stream():
    x, anchors, grad = problem(4096, 64, 64, torch.float32, "cuda")
    wanted = gradient(x, anchors, grad, separation=0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 1.0  # ready only after the sleep, on this stream
        result = gradient(late, anchors, grad, separation=0.1)
    stream.synchronize()
    assert torch.equal(result, wanted)


@pytest.mark.cuda
def test_replays_in_a_cuda_graph():
    x, anchors, grad = problem(64, 16, 32, torch.float32, "cuda")
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(ops.sphere_normalize(leaf, anchors, separation=0.1), leaf, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (result,) = torch.autograd.grad(ops.sphere_normalize(leaf, anchors, separation=0.1), leaf, grad)
    with torch.no_grad():
        leaf.mul_(-0.5)
    graph.replay()
    assert torch.equal(result, gradient(leaf, anchors, grad, separation=0.1))


@pytest.mark.cuda
def test_uses_the_device_of_its_input():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, anchors, grad = problem(6, 7, 4, torch.float32, "cuda:1")
    ours = gradient(x, anchors, grad, separation=0.1)
    assert ours.device == torch.device("cuda:1")
    torch.testing.assert_close(ours.cpu(), gradient(x.cpu(), anchors.cpu(), grad.cpu(), separation=0.1))
    with pytest.raises(RuntimeError, match="on the device of the first argument"):
        ops.sphere_normalize_nearest(x.to("cuda:0"), anchors)
