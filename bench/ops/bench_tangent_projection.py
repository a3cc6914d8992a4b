"""Normalization onto the sphere with its surrogate gradient, against what users write today.

    python -m bench.ops.bench_tangent_projection --device cuda --cases table \
        --out bench/results/h200/tangent_projection.jsonl

Providers: `eager` (an autograd.Function of plain torch: norm, division; backward with y @ anchors^T, argmax,
gather), `compile` (torch.compile of its two bodies), `stratcore`. `normalize` (F.normalize) knows no anchors: where
the case has some it stands as the case NAME/no_anchors, a floor of today and no rival. NAME/yardstick is x * 2 and
its backward, what any operation costs on the host. Mode `fwd` is without a gradient, so nobody reads the anchors;
mode `graph` is forward and backward replayed from a CUDA graph.

The least bytes are those of reading x, writing y, reading x and g and writing the gradient. The product with the
anchors is not in the floor: scores in a lower precision with the best ones taken again decide as well. Every
provider computes the case at full size before it is timed and is compared with float64 on a sample of the rows.

Legend: N rows, D dimension, A anchors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance, check
from stratcore import ops
from stratcore.ops import reference

SAMPLE = 256
SEPARATION = 0.1
MODES = ("fwd", "fwd+bwd", "graph")
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """anchors 0: the tangential term alone."""

    name: str
    group: str
    rows: int
    dim: int
    anchors: int
    dtype: torch.dtype = torch.float32

    def job(self, mode: str, suffix: str = "") -> Job:
        """Least bytes: x and y forward; x, the gradient and its result backward."""
        passes = 2 if mode == "fwd" else 5
        moved = passes * self.rows * self.dim * self.dtype.itemsize
        shapes = {"rows": self.rows, "dim": self.dim, "anchors": self.anchors}
        return Job("tangent_projection", self.name + suffix, mode, shapes, self.dtype, 0, moved)


def both_dtypes(name: str, group: str, rows: int, dim: int, anchors: int) -> list[Case]:
    return [
        Case(f"{name}_{label}", group, rows, dim, anchors, dtype)
        for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    ]


CASES = [
    *both_dtypes("n1m_d256_a0", "table", 1 << 20, 256, 0),
    *both_dtypes("n1m_d256_a128", "table", 1 << 20, 256, 128),
    *both_dtypes("n1m_d256_a512", "table", 1 << 20, 256, 512),
    *both_dtypes("n64k_d256_a128", "table", 1 << 16, 256, 128),
    *both_dtypes("n64k_d1024_a512", "table", 1 << 16, 1024, 512),
    *both_dtypes("n512_d256_a128", "table", 512, 256, 128),
    Case("cpu_n64k_d256_a0", "cpu", 1 << 16, 256, 0),
    Case("cpu_n64k_d256_a128", "cpu", 1 << 16, 256, 128),
    Case("cpu_n512_d256_a128", "cpu", 512, 256, 128),
    *both_dtypes("small", "small", 64, 32, 16),
    *both_dtypes("small_a0", "small", 64, 32, 0),
]


# ---- what users write


def forward_body(x: Tensor) -> tuple[Tensor, Tensor]:
    norm = x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return x / norm, norm


def backward_body(grad: Tensor, y: Tensor, norm: Tensor, anchors: Tensor | None) -> Tensor:
    grad = grad - (grad * y).sum(-1, keepdim=True) * y
    if anchors is not None:
        unit = torch.nn.functional.normalize(anchors, dim=-1)
        nearest = unit[(y @ unit.T).argmax(-1)]
        grad = grad + SEPARATION * (nearest - (nearest * y).sum(-1, keepdim=True) * y)
    return grad / norm


class PlainTorch(torch.autograd.Function):
    """The two bodies as users join them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchors: Tensor | None, forward: Any, backward: Any) -> Tensor:
        y, norm = forward(x)
        ctx.save_for_backward(y, norm, *([] if anchors is None else [anchors]))
        ctx.backward_body = backward
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        y, norm, *rest = ctx.saved_tensors
        return ctx.backward_body(grad, y, norm, rest[0] if rest else None), None, None, None


def plain_torch(anchors: Tensor | None, compiled: bool) -> Function:
    wrap = torch.compile if compiled else lambda body: body
    bodies = wrap(forward_body), wrap(backward_body)
    return lambda x: PlainTorch.apply(x, anchors, *bodies)


def stratcore(anchors: Tensor | None) -> Function:
    return lambda x: ops.sphere_normalize(x, anchors, separation=SEPARATION)


# ---- problems


@dataclass(frozen=True)
class Provider:
    """How to make it; y and the gradient in float64 from x and dL/dy; what its case is called beside the rivals'."""

    make: Callable[[], Function]
    oracle: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    suffix: str = ""


class Problem:
    """Inputs of a case, its providers, and the same in float64 on a sample of the rows."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.generator = torch.Generator(device).manual_seed(0)
        self.x = self._normal(case.rows, case.dim).requires_grad_()
        self.grad = self._normal(case.rows, case.dim)
        self.anchors = self._normal(case.anchors, case.dim) if case.anchors else None
        self.rows = torch.randperm(case.rows, device=device, generator=self.generator)[:SAMPLE]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.generator.device, generator=self.generator).to(self.case.dtype)

    def _surrogate(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, n = reference.on_sphere(x), None
        if self.anchors is not None:
            directions = self.anchors.double()
            n = reference.unit_anchors(directions)[reference.nearest_anchor(y, directions)[0]]
        return y, reference.surrogate_gradient(grad, x, n, separation=SEPARATION)

    @staticmethod
    def _normalized(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return reference.on_sphere(x), reference.surrogate_gradient(grad, x)

    def providers(self) -> dict[str, Provider]:
        """How to make each; the first is the baseline of the gate."""
        anchors, ours = self.anchors, self._surrogate
        return {
            "eager": Provider(lambda: plain_torch(anchors, compiled=False), ours),
            "compile": Provider(lambda: plain_torch(anchors, compiled=True), ours),
            "stratcore": Provider(lambda: stratcore(anchors), ours),
            "normalize": Provider(
                lambda: torch.nn.functional.normalize,
                self._normalized,
                "" if anchors is None else "/no_anchors",
            ),
            "yardstick": Provider(lambda: lambda x: x * 2, lambda x, g: (x * 2, g * 2), "/yardstick"),
        }

    def call(self, function: Function, mode: str) -> Call:
        """What is timed: y, the gradient of x, or the gradient from a replayed graph."""

        def forward() -> Tensor:
            with torch.no_grad():
                return function(self.x)

        def both() -> Tensor:
            return torch.autograd.grad(function(self.x), self.x, self.grad)[0]

        if mode != "graph":
            return forward if mode == "fwd" else both
        for _ in range(3):  # compiles, and fills the allocator's pools
            both()
        torch.cuda.synchronize(self.x.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = both()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def exact(self, provider: Provider, mode: str) -> Tensor:
        x, grad = (t.detach()[self.rows].double() for t in (self.x, self.grad))
        return provider.oracle(x, grad)[0 if mode == "fwd" else 1]

    def tolerance(self) -> Tolerance:
        # An anchor that wins by less than the rounding of a score moves a whole row, in eager torch as here.
        low = self.case.dtype == torch.bfloat16
        return Tolerance(
            floor=1e-2 if low else 1e-5, slack=0.05 if low and self.case.anchors else None, coarse=0.1
        )


# ---- running


def run_mode(problem: Problem, mode: str, recorder: Recorder, options: argparse.Namespace) -> None:
    """Gates and times every wanted provider; those that are missing are named with the reason."""
    case, baseline = problem.case, None
    if mode == "graph" and recorder.device.type != "cuda":
        return
    for name, provider in problem.providers().items():
        if options.providers and name not in options.providers:
            continue
        result = None
        with runner.may_be_missing(case.name, mode, name, options):
            call = problem.call(provider.make(), mode)
            result = call()[problem.rows].clone()
        if result is None:
            continue
        exact = problem.exact(provider, mode)
        gate = check([result], [exact], baseline if not provider.suffix else None, problem.tolerance())
        baseline = [result] if name == "eager" else baseline
        runner.report(recorder.record(case.job(mode, provider.suffix), name, call, gate))


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    gib = case.job("fwd+bwd").bytes / 2**30
    if recorder.device.type == "cpu" and gib > options.cpu_limit:
        print(f"skipped on the CPU: {case.name} (tensors of {gib:.1f} GiB)", flush=True)
        return
    torch.compiler.reset()
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        run_mode(problem, mode, recorder, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = runner.argument_parser(
        "bench.ops.bench_tangent_projection", "groups or names: table,cpu,small", MODES
    )
    runner.add_limits(parser, 1, "GiB")
    return runner.parse_known(parser, arguments, cases=runner.names_of(CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    runner.run_cases(options, CASES, run_case)


if __name__ == "__main__":
    main()
