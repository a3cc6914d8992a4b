"""Volumes of simplices against what users write today.

    python -m bench.ops.bench_cayley_menger --device cuda --cases peers,more --out bench/results/h200/...
    OMP_NUM_THREADS=1 python -m bench.ops.bench_cayley_menger --cases cpu --out bench/results/cpu/cayley_menger.jsonl
    python -m bench.ops.bench_cayley_menger --device cuda --cases numerics

Providers: `det` (differences, bordered matrix, torch.linalg.det), `cdist` (the same from torch.cdist), `cholesky`
(Gram matrix of the edges, cholesky_ex), `compile` (torch.compile of an LDL^T of it, written out), `stratcore`; from a
table they gather first. Each computes the case at full size before it is timed and is compared with float64 on a
sample. `numerics` times nothing: it prints the errors of V^2 of flat simplices.

Legend: B simplices, k order, D dimension, N rows of a table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import runner
from bench.compare import format_table
from bench.harness import Call, Job, Recorder, Tolerance
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

SAMPLE = 256
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """kind: 'points', 'table' (rows > 0, gathered) or 'distances' (given, squared)."""

    name: str
    group: str
    simplices: int
    dim: int
    k: int = 4
    dtype: torch.dtype = torch.float32
    kind: str = "points"
    rows: int = 0
    deterministic: bool = False

    def input_shape(self) -> tuple[int, ...]:
        if self.kind == "distances":
            return self.simplices, self.k * (self.k + 1) // 2
        return (self.rows, self.dim) if self.rows else (self.simplices, self.k + 1, self.dim)

    def job(self, mode: str) -> Job:
        """Least bytes: forward the input and the volumes; backward the input again and its gradient."""
        both = mode == "fwd+bwd"
        given = math.prod(self.input_shape()) * self.dtype.itemsize
        volumes = self.simplices * max(4, self.dtype.itemsize)
        indices = 8 * self.simplices * (self.k + 1) if self.rows else 0
        gram = 0 if self.kind == "distances" else self.simplices * self.dim * self.k * (self.k + 2)
        backward = 0 if self.kind == "distances" else self.simplices * self.dim * self.k * (2 * self.k + 1)
        shapes = {"simplices": self.simplices, "k": self.k, "dim": self.dim, "kind": self.kind, "rows": self.rows,
                  "deterministic": self.deterministic}  # fmt: skip
        moved = given + volumes + indices + (2 * given + volumes + indices if both else 0)
        flops = gram * (2 if both else 1) + (backward if both else 0)
        return Job("cayley_menger", self.name, mode, shapes, self.dtype, flops, moved)


CASES = [
    Case("b500_d128", "peers", 500, 128),
    Case("b65536_d16", "peers", 65536, 16),
    Case("b65536_d128", "peers", 65536, 128),
    Case("b1048576_d8", "peers", 1048576, 8),
    Case("b1048576_d32", "peers", 1048576, 32),
    Case("b262144_d256", "peers", 262144, 256),
    Case("b65536_d128_bf16", "more", 65536, 128, dtype=torch.bfloat16),
    Case("b1048576_d32_bf16", "more", 1048576, 32, dtype=torch.bfloat16),
    Case("b262144_d64_k2", "more", 262144, 64, 2),
    Case("b65536_d128_k8", "more", 65536, 128, 8),
    Case("table_fast", "more", 65536, 128, kind="table", rows=16384),
    Case("table_deterministic", "more", 65536, 128, kind="table", rows=16384, deterministic=True),
    Case("distances_k4", "more", 1048576, 0, kind="distances"),
    Case("distances_k8", "more", 65536, 0, 8, kind="distances"),
    Case("cpu_d128", "cpu", 4096, 128),
    Case("cpu_d8", "cpu", 16384, 8),
    Case("cpu_d768", "cpu", 1024, 768),
    Case("cpu_k2_d128", "cpu", 4096, 128, 2),
    Case("cpu_k8_d128", "cpu", 2048, 128, 8),
    Case("cpu_d128_bf16", "cpu", 4096, 128, dtype=torch.bfloat16),
    Case("cpu_table", "cpu", 4096, 128, kind="table", rows=512),
    Case("cpu_distances", "cpu", 16384, 0, kind="distances"),
    Case("small_points", "small", 300, 12),
    Case("small_bf16", "small", 300, 33, dtype=torch.bfloat16),
    Case("small_table", "small", 300, 12, 3, kind="table", rows=50),
    Case("small_distances", "small", 300, 0, kind="distances"),
]


# ---- what users write


def bordered_volume(distances: Tensor) -> Tensor:
    """From [B, k + 1, k + 1] squared distances."""
    vertices = distances.shape[-1]
    bordered = torch.nn.functional.pad(distances, (1, 0, 1, 0), value=1.0)
    corner = torch.zeros_like(bordered[0])
    corner[0, 0] = 1.0
    k = vertices - 1
    factor = (-1) ** (k + 1) / (2**k * math.factorial(k) ** 2)
    return (factor * torch.linalg.det(bordered - corner)).clamp_min(0).sqrt()


def det_volume(points: Tensor) -> Tensor:
    return bordered_volume((points[:, :, None] - points[:, None]).square().sum(-1))


def cdist_volume(points: Tensor) -> Tensor:
    return bordered_volume(torch.cdist(points, points).square())


def cholesky_volume(points: Tensor) -> Tensor:
    edges = points[:, 1:] - points[:, :1]
    factor, _ = torch.linalg.cholesky_ex(edges @ edges.mT)
    return factor.diagonal(dim1=-2, dim2=-1).prod(-1) / math.factorial(edges.shape[1])


def unrolled_heights(gram: Sequence[Sequence[Tensor]]) -> Tensor:
    """V from the entries [i][j], j <= i, of the Gram matrix, by LDL^T written out."""
    k = len(gram)
    lower: list[list[Tensor]] = [[] for _ in range(k)]
    pivots: list[Tensor] = []
    for i in range(k):
        for j in range(i):
            value = gram[i][j]
            for p in range(j):
                value = value - lower[i][p] * lower[j][p] * pivots[p]
            lower[i].append(value / pivots[j])
        pivot = gram[i][i]
        for p in range(i):
            pivot = pivot - lower[i][p] * lower[i][p] * pivots[p]
        pivots.append(pivot)
    product = pivots[0]
    for pivot in pivots[1:]:
        product = product * pivot
    return product.clamp_min(0).sqrt() / math.factorial(k)


def unrolled_volume(points: Tensor) -> Tensor:
    edges = [points[:, i] - points[:, 0] for i in range(1, points.shape[1])]
    return unrolled_heights([[(e * edges[j]).sum(-1) for j in range(i + 1)] for i, e in enumerate(edges)])


def square_form(distances: Tensor) -> Tensor:
    """[B, P] -> [B, k + 1, k + 1]."""
    k = reference.order_of(distances.shape[-1])
    first, second = torch.triu_indices(k + 1, k + 1, 1, device=distances.device)
    square = distances.new_zeros(distances.shape[0], k + 1, k + 1)
    square[:, first, second] = distances
    square[:, second, first] = distances
    return square


def unrolled_distances_volume(distances: Tensor) -> Tensor:
    k = reference.order_of(distances.shape[-1])

    def at(i: int, j: int) -> Tensor:
        return distances[:, i * (2 * k + 1 - i) // 2 + j - i - 1]

    return unrolled_heights(
        [
            [0.5 * (at(0, i) + at(0, j) - at(j, i)) if j < i else at(0, i) for j in range(1, i + 1)]
            for i in range(1, k + 1)
        ]
    )


# ---- problems


class Problem:
    """Inputs of a case, its providers, and the same in float64 on a sample."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator)

        self.indices = None
        if case.kind == "distances":
            points = normal(case.simplices, case.k + 1, 16)
            self.input = reference.squared_distances(points).to(case.dtype)
        else:
            self.input = normal(*case.input_shape()).to(case.dtype)
        if case.rows:
            keys = torch.rand(case.simplices, min(case.rows, 64), device=device, generator=generator)
            start = torch.randint(case.rows, (case.simplices, 1), device=device, generator=generator)
            self.indices = (start + keys.argsort(-1)[:, : case.k + 1]) % case.rows
        self.sample = torch.randperm(case.simplices, device=device, generator=generator)[:SAMPLE]
        self.grad = normal(case.simplices).abs() + 0.1
        self.sampled_grad = torch.zeros_like(self.grad)
        self.sampled_grad[self.sample] = self.grad[self.sample]

    def functions(self, mode: str) -> dict[str, Callable[[], Function]]:
        """How to make each provider. The first is the baseline of the gate."""
        case, indices = self.case, self.indices

        def plain(volume: Function) -> Function:
            if indices is None:
                return lambda x: volume(x.float())
            return lambda x: volume(x[indices].float())

        if case.kind == "distances":
            return {
                "det": lambda: lambda d: bordered_volume(square_form(d)),
                "compile": lambda: torch.compile(unrolled_distances_volume),
                "stratcore": lambda: lambda d: ops.measures_from_distances(d).volume,
            }
        return {
            "det": lambda: plain(det_volume),
            "cdist": lambda: plain(cdist_volume),
            "cholesky": lambda: plain(cholesky_volume),
            "compile": lambda: torch.compile(plain(unrolled_volume)),
            "stratcore": lambda: lambda x: ops.simplex_volume(x, indices, deterministic=case.deterministic),
        }

    def call(self, function: Function, mode: str, grad: Tensor | None = None) -> Call:
        return runner.timed_call(function, [self.input], mode, self.grad if grad is None else grad)

    def sampled(self, function: Function, mode: str) -> list[Tensor]:
        """The call at full size, reduced to the sampled simplices; only these have a gradient."""
        result = self.call(function, mode, self.sampled_grad)()
        if mode == "fwd":
            return [result[self.sample].clone()]
        return [result[0] if self.indices is not None else result[0][self.sample]]

    def oracle(self, mode: str) -> list[Tensor]:
        """The same in float64, on the sampled simplices alone."""
        leaf = self.input if self.indices is not None else self.input[self.sample]
        leaf = leaf.detach().double().requires_grad_(mode == "fwd+bwd")
        if self.case.kind == "distances":
            volume = reference.squared_volume_of_distances(leaf).sqrt()
        else:
            vertices = leaf if self.indices is None else leaf[self.indices[self.sample]]
            volume = reference.squared_volume_of_edges(vertices).sqrt()
        if mode == "fwd":
            return [volume]
        return list(torch.autograd.grad(volume, leaf, self.grad[self.sample].double()))

    def tolerance(self, mode: str) -> Tolerance:
        """Of the gate: as good as the bordered determinant; gradients of bfloat16 inputs are bfloat16."""
        rounded = mode == "fwd+bwd" and self.case.dtype == torch.bfloat16
        return Tolerance(floor=4e-3 if rounded else 2e-6, factor=4.0, coarse=1e-2 if rounded else 1e-3)


# ---- numerics


def flat_simplices(height: float, count: int, generator: torch.Generator, shift: float) -> Tensor:
    """A bent regular tetrahedron of edge 1.4 in 32 dimensions, a fifth vertex `height` above its centroid."""
    dim, device = 32, generator.device
    square = torch.randn(dim, dim, generator=generator, device=device, dtype=torch.float64)
    frame = torch.linalg.qr(square).Q[:, :4]
    inside = 0.1 * torch.randn(count, 5, 3, generator=generator, device=device, dtype=torch.float64)
    corners = [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    inside[:, :4] += 0.5 * torch.tensor(corners, device=device)
    inside[:, 4] = inside[:, :4].mean(1)
    heights = torch.zeros(count, 5, 1, device=device, dtype=torch.float64)
    heights[:, 4] = height
    return (torch.cat([inside, heights], -1) @ frame.mT + shift).float()


def print_numerics(device: torch.device, count: int) -> None:
    """Relative errors and wrong signs of V^2 in float32 against float64 on the rounded coordinates."""
    header = ["height", "shift", "provider", "median error", "largest error", "wrong signs", "of", ""]
    cells = []
    providers: dict[str, Function] = {
        "bordered determinant": reference.squared_volume,
        "stratcore": ops.simplex_squared_volume,
    }
    for height, shift in ((1e-2, 0.0), (1e-2, 10.0), (1e-4, 0.0)):
        for name, function in providers.items():
            generator, errors, wrong = torch.Generator(device).manual_seed(1), [], 0
            for start in range(0, count, 50000):
                points = flat_simplices(height, min(50000, count - start), generator, shift)
                exact = reference.squared_volume_of_edges(points.double())
                squared = function(points).double()
                errors.append(((squared - exact) / exact).abs())
                wrong += int((squared <= 0).sum())
            error = torch.cat(errors)
            row = [
                f"{height:g}",
                f"{shift:g}",
                name,
                f"{float(error.median()):.1e}",
                f"{float(error.max()):.1e}",
            ]
            cells.append([*row, str(wrong), str(count), ""])
    print(format_table(header, cells), flush=True)


# ---- running


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    gib = math.prod(case.input_shape()) * (case.k + 1) * case.dtype.itemsize / 2**30
    if recorder.device.type == "cpu" and gib > options.cpu_limit:
        print(f"skipped on the CPU: {case.name} (differences of {gib:.1f} GiB)", flush=True)
        return
    torch.compiler.reset()
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        runner.run_providers(problem, mode, recorder, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    groups = "groups (peers,more,cpu,small,numerics) or names"
    parser = runner.argument_parser("bench.ops.bench_cayley_menger", groups)
    runner.add_limits(parser, 1, "GiB")
    parser.add_argument("--count", type=int, default=1_000_000, help="simplices of each row of numerics")
    return runner.parse_known(parser, arguments, cases=runner.names_of(CASES) | {"numerics"})


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    recorder = runner.run_cases(options, CASES, run_case)
    if "numerics" in options.cases:
        print_numerics(recorder.device, options.count)


if __name__ == "__main__":
    main()
