"""Bits, threads, streams, CUDA graphs and devices of the Cayley-Menger op."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.cayley_menger_cases import Case, gradient, op
from stratcore import ops


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
