"""CV of simplex volumes against what users write today.

    python -m bench.ops.bench_simplex_cv --device cuda --cases table --out bench/results/h100/simplex_cv.jsonl

Providers: `eager` (the form of the source documents: random permutations, gather, Gram matrix, bordered 6 x 6
determinant, mask, std / mean), `stratcore`, on CUDA `graph` (stratcore's kernels captured and replayed, a fresh
sample each), and `yardstick`, which is `(x * 2).backward(g)`: the least that a differentiable call costs. The eager
form draws its own sample, so the gate gives it the indices that stratcore drew; its time includes its drawing. On
CUDA read `wall_ms`: these are calls of microseconds.

Legend: N rows, D dimension, n simplices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance, check
from stratcore import ops
from stratcore.ops import reference

ORDER = 4
POOL = 512
TARGET = 0.2


@dataclass(frozen=True)
class Case:
    """The vertices are drawn from the first POOL rows."""

    name: str
    group: str
    simplices: int
    dim: int
    rows: int = 1024
    dtype: torch.dtype = torch.float32

    def job(self, mode: str) -> Job:
        """Least bytes: the rows of the pool once; backward: these and the gradient."""
        both = mode != "fwd"
        pairs = ORDER * (ORDER + 1) // 2
        flops = 2 * self.simplices * self.dim * (pairs + (ORDER**2 if both else 0))
        drawn = min(POOL, self.rows, self.simplices * (ORDER + 1)) * self.dim
        moved = (drawn * (2 if both else 1) + (self.rows * self.dim if both else 0)) * self.dtype.itemsize
        shapes = {"rows": self.rows, "dim": self.dim, "simplices": self.simplices, "order": ORDER}
        return Job("simplex_cv", self.name, mode, shapes, self.dtype, flops, moved)


CASES = [
    *(
        Case(f"n{simplices}_d{dim}", "table", simplices, dim)
        for dim in (128, 256)
        for simplices in (64, 256, 1024, 4096)
    ),
    Case("bf16", "table", 1024, 128, dtype=torch.bfloat16),
    Case("small", "small", 64, 16, rows=40),
]


# ---- what users write


def drawn_indices(rows: int, simplices: int, device: torch.device) -> Tensor:
    pool = min(rows, POOL)
    return torch.rand(simplices, pool, device=device).argsort(dim=1)[:, : ORDER + 1]


def eager_loss(x: Tensor, simplices: int, indices: Tensor | None = None) -> Tensor:
    if indices is None:
        indices = drawn_indices(x.shape[0], simplices, x.device)
    points = x[indices].float() if x.dtype in (torch.bfloat16, torch.float16) else x[indices]
    gram = torch.bmm(points, points.transpose(1, 2))
    norms = torch.diagonal(gram, dim1=1, dim2=2)
    squared_distances = norms.unsqueeze(2) + norms.unsqueeze(1) - 2 * gram
    bordered = points.new_zeros(simplices, ORDER + 2, ORDER + 2)
    bordered[:, 0, 1:] = 1
    bordered[:, 1:, 0] = 1
    bordered[:, 1:, 1:] = squared_distances
    squared = -torch.linalg.det(bordered) / 9216
    volumes = squared[squared > 1e-20].sqrt()
    if volumes.numel() < 5:
        return x.sum() * 0
    return (volumes.std() / (volumes.mean() + 1e-8) - TARGET) ** 2


def own_loss(x: Tensor, simplices: int, seed: Tensor) -> Tensor:
    return ops.simplex_cv(
        x, num_simplices=simplices, target=TARGET, seed=seed, pool=min(x.shape[0], POOL),
        valid_above=1e-20, min_valid=5, eps=1e-8,
    ).loss  # fmt: skip


# ---- problems


class Problem:
    """Points on the sphere, one seed, and the indices that it stands for."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(0)
        normal = torch.randn(case.rows, case.dim, device=device, generator=generator)
        self.x = torch.nn.functional.normalize(normal, dim=1).to(case.dtype)
        self.grad = torch.randn_like(self.x)
        self.seed = torch.tensor([7, 0], device=device)
        self.indices = ops.simplex_cv(
            self.x, num_simplices=case.simplices, seed=self.seed, pool=min(case.rows, POOL)
        ).indices

    def call(self, loss: Callable[[Tensor], Tensor], mode: str, x: Tensor | None = None) -> Call:
        points = self.x if x is None else x
        # Given, as the yardstick's is: else every call would make one.
        one = torch.ones((), dtype=torch.promote_types(points.dtype, torch.float32), device=points.device)
        return runner.timed_call(lambda leaf: [loss(leaf)], [points], mode, one)

    def oracle(self, mode: str) -> list[Tensor]:
        def loss(x: Tensor) -> Tensor:
            return reference.simplex_cv(x, self.indices, TARGET, 1e-20, 5, 1e-8)[0]

        return list(self.call(loss, mode, self.x.double())())

    def eager(self, mode: str, fresh: bool) -> Call:
        indices = None if fresh else self.indices
        return self.call(lambda x: eager_loss(x, self.case.simplices, indices), mode)

    def own(self, mode: str) -> Call:
        return self.call(lambda x: own_loss(x, self.case.simplices, self.seed), mode)

    def graph(self, mode: str) -> Call:
        """A captured call; every replay advances the seed."""
        call, stream = self.own(mode), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
            self.seed[1] += 1
        kept = [t for t in results]

        def replay() -> list[Tensor]:
            graph.replay()
            return kept

        return replay

    def yardstick(self) -> Call:
        leaf = self.x.detach().requires_grad_()

        def run() -> Tensor | None:
            leaf.grad = None
            (leaf * 2).backward(self.grad)
            return leaf.grad

        return run


# ---- running


def run_mode(problem: Problem, mode: str, recorder: Recorder, wanted: Sequence[str]) -> None:
    """Gates and times the providers; the first is the baseline."""
    exact = problem.oracle(mode)
    baseline = [t.clone() for t in problem.eager(mode, fresh=False)()]
    floor = 2e-2 if problem.case.dtype == torch.bfloat16 else 1e-4
    tolerance = Tolerance(floor=floor, coarse=max(1e-2, 2 * floor))
    providers: dict[str, tuple[Callable[[], Call], Callable[[], Call]]] = {
        "eager": (lambda: problem.eager(mode, fresh=False), lambda: problem.eager(mode, fresh=True)),
        "stratcore": (lambda: problem.own(mode), lambda: problem.own(mode)),
    }
    if recorder.device.type == "cuda":
        providers["graph"] = (lambda: problem.graph(mode), lambda: problem.graph(mode))
    for name, (gated, timed) in providers.items():
        if wanted and name not in wanted:
            continue
        problem.seed.copy_(torch.tensor([7, 0]))
        results = [t.clone() for t in gated()()]
        gate = check(results, exact, None if name == "eager" else baseline, tolerance)
        runner.report(recorder.record(problem.case.job(mode), name, timed(), gate), wall=True)
    if mode == "fwd+bwd" and (not wanted or "yardstick" in wanted):
        double = [2 * problem.grad]
        gate = check([problem.yardstick()()], [t.double() for t in double], double, tolerance)
        # A mode of its own: it is no peer that could be beaten.
        job = problem.case.job("x*2 f+b")
        runner.report(recorder.record(job, "yardstick", problem.yardstick(), gate), wall=True)


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        run_mode(problem, mode, recorder, options.providers)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = runner.argument_parser("bench.ops.bench_simplex_cv", "groups or names: table,small")
    providers = {"eager", "stratcore", "graph", "yardstick"}
    return runner.parse_known(parser, arguments, cases=runner.names_of(CASES), providers=providers)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    runner.run_cases(options, CASES, run_case)


if __name__ == "__main__":
    main()
