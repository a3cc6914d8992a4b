"""Top-k LISTA and row top-k against what users write today.

    python -m bench.ops.bench_topk_lista --device cuda --cases table,topk --out bench/results/h100/topk_lista.jsonl

Providers of codes: `eager` (addmm, soft threshold, torch.topk, scatter, straight-through), `compile` (torch.compile
of it), `stratcore`. Providers of the selection alone: `torch.topk` (with its scatter), `stratcore` (topk_ste),
`native` (the kernel without torch's dispatcher; built as bench/__init__.py says). FLOPs are those of dense
products, so a kernel that uses the sparsity of the codes may pass 100 % of the roofline. Every provider computes
the case at full size before it is timed and is compared with float64 on a sample of the rows.

Legend: E experts, B rows, D input size, M atoms.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance
from stratcore import ops
from stratcore.ops import reference

STEPS = 4
SAMPLE = 64
EXPERTS = (8, 12, 16, 20, 24, 28, 32)
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """kind: 'codes', 'routed' (each row by one expert) or 'topk' (the selection alone)."""

    name: str
    group: str
    rows: int
    dim: int
    atoms: int
    k: tuple[int, ...]
    form: str = "classic"
    dtype: torch.dtype = torch.float32
    kind: str = "codes"
    tf32: bool = False

    def elements(self) -> tuple[int, int]:
        """Of the inputs and of the result."""
        if self.kind == "topk":
            return self.rows * self.atoms, self.rows * self.atoms
        experts, square = len(self.k), self.atoms if self.form == "classic" else self.dim
        parameters = experts * self.atoms * (self.dim + square + 1)
        copies = 1 if self.kind == "routed" else experts
        return self.rows * self.dim + parameters, copies * self.rows * self.atoms

    def job(self, mode: str) -> Job:
        """Least bytes: each tensor once. Backward: two products for each of the forward's."""
        both = mode == "fwd+bwd"
        inputs, outputs = self.elements()
        products = self.dim + STEPS * self.atoms if self.form == "classic" else self.dim * (1 + 2 * STEPS)
        flops = 0 if self.kind == "topk" else 2 * outputs * products
        shapes = {"rows": self.rows, "dim": self.dim, "atoms": self.atoms, "k": list(self.k),
                  "steps": 0 if self.kind == "topk" else STEPS, "form": self.form, "kind": self.kind}  # fmt: skip
        moved = (inputs + outputs) * self.dtype.itemsize * (2 if both else 1)
        op = "topk_ste" if self.kind == "topk" else "topk_lista"
        return Job(op, self.name, mode, shapes, self.dtype, flops * (3 if both else 1), moved)


CASES = [
    Case("m32", "table", 65536, 64, 32, (8,)),
    Case("m512_tf32", "table", 8192, 768, 512, (16,), tf32=True),
    Case("m4096_tf32", "table", 8192, 768, 4096, (32,), tf32=True),
    Case("m16384_bf16", "table", 8192, 2048, 16384, (32,), dtype=torch.bfloat16),
    Case("m16384_bf16_coupled", "table", 8192, 2048, 16384, (32,), "coupled", torch.bfloat16),
    Case("experts7_routed", "table", 8192, 768, 512, EXPERTS, kind="routed", tf32=True),
    Case("experts7_all", "table", 8192, 768, 512, EXPERTS, tf32=True),
    Case("topk_m256", "topk", 65536, 0, 256, (8,), kind="topk"),
    Case("topk_m1024", "topk", 16384, 0, 1024, (16,), kind="topk"),
    Case("topk_m4096", "topk", 8192, 0, 4096, (32,), kind="topk"),
    Case("topk_m16384", "topk", 2048, 0, 16384, (32,), kind="topk"),
    Case("cpu_m512", "cpu", 1024, 768, 512, (16,)),
    Case("cpu_m4096", "cpu", 256, 768, 4096, (32,)),
    Case("cpu_m512_rows8192", "cpu_table", 8192, 768, 512, (16,)),
    Case("cpu_m4096_rows8192", "cpu_table", 8192, 768, 4096, (32,)),
    Case("cpu_topk_m4096", "cpu", 1024, 0, 4096, (32,), kind="topk"),
    Case("small_classic", "small", 256, 64, 128, (8,)),
    Case("small_coupled", "small", 256, 64, 128, (8,), "coupled"),
    Case("small_experts", "small", 128, 32, 64, (4, 8, 12)),
    Case("small_routed", "small", 256, 32, 64, (4, 8, 12), kind="routed"),
    Case("small_topk", "small", 512, 0, 256, (8,), kind="topk"),
]


# ---- what users write


def soft_threshold(u: Tensor, theta: Tensor) -> Tensor:
    return u.sign() * torch.relu(u.abs() - theta)


def topk_straight_through(h: Tensor, k: int) -> Tensor:
    indices = h.abs().topk(k, dim=-1).indices
    kept = torch.zeros_like(h).scatter(-1, indices, h.gather(-1, indices))
    return h + (kept - h).detach()


def eager_code(x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, k: int, form: str) -> Tensor:
    encoded = x @ encoder.T
    z = topk_straight_through(soft_threshold(encoded, theta), k)
    for _ in range(STEPS):
        if form == "classic":
            u = torch.addmm(encoded, z, recurrent.T)
        else:
            u = torch.addmm(z, x - z @ recurrent.T, encoder.T)
        z = topk_straight_through(soft_threshold(u, theta), k)
    return z


def stratcore_code(x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, k: Any, form: str) -> Tensor:
    return ops.topk_lista(x, encoder, recurrent, theta, k, num_steps=STEPS, form=form)


def oracle_code(x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, k: int, form: str) -> Tensor:
    parameters = (p[None, None] for p in (encoder, recurrent, theta))
    return reference.topk_lista(x[None], *parameters, [k], STEPS, form)[-1][0]


def each_expert(code: Function, case: Case) -> Function:
    """All rows by every expert, in a loop: [E, B, M]; [B, M] for a single expert."""

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        codes = [code(x, *(p[e] for p in parameters), k, case.form) for e, k in enumerate(case.k)]
        return torch.stack(codes) if len(codes) > 1 else codes[0]

    return run


def routed(code: Function, case: Case, route: Tensor) -> Function:
    """Each row by its own expert: gather, code, scatter, expert by expert."""

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        codes = x.new_zeros(x.shape[0], case.atoms)
        for expert, k in enumerate(case.k):
            rows = (route == expert).nonzero().squeeze(1)
            codes = codes.index_copy(0, rows, code(x[rows], *(p[expert] for p in parameters), k, case.form))
        return codes

    return run


def native_topk(case: Case, like: Tensor) -> Function:
    """The selection kernel by pointers, outputs allocated once."""
    try:
        native = importlib.import_module("bench.native._native")
    except ImportError as error:
        raise ImportError(f"{error}; bench/__init__.py says how to build it") from error
    slots = (case.rows, case.k[0])
    outputs = torch.empty_like(like), like.new_empty(slots), like.new_empty(slots, dtype=torch.int32)
    sizes = case.rows, case.atoms, list(case.k)

    def run(x: Tensor) -> Tensor:
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        pointers = (t.data_ptr() for t in outputs)
        threads = torch.get_num_threads()
        native.topk_lista_select(x.data_ptr(), 0, *pointers, *sizes, stream, x.is_cuda, threads)
        return outputs[0]

    return run


# ---- problems


class Problem:
    """Inputs of a case, its providers, and the same in float64.

    A random unit-norm dictionary with the weights of iterative soft thresholding, and inputs that are sparse in it.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.generator = torch.Generator(device).manual_seed(0)
        self.inputs = [t.to(case.dtype) for t in self._inputs()]
        self.route = torch.randint(len(case.k), (case.rows,), device=device, generator=self.generator)
        self.rows = torch.randperm(case.rows, device=device, generator=self.generator)[:SAMPLE]
        shape = (case.rows, case.atoms)
        if case.kind == "codes" and len(case.k) > 1:
            shape = (len(case.k), *shape)
        self.grad = self._normal(*shape).to(case.dtype)
        self.sampled_grad = torch.zeros_like(self.grad)
        self.sampled_grad[..., self.rows, :] = self.grad[..., self.rows, :]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.generator.device, generator=self.generator)

    def _inputs(self) -> list[Tensor]:
        case, device = self.case, self.generator.device
        if case.kind == "topk":
            return [self._normal(case.rows, case.atoms)]
        dictionary_EDM = torch.nn.functional.normalize(self._normal(len(case.k), case.dim, case.atoms), dim=1)
        step = (1 + (case.atoms / case.dim) ** 0.5) ** -2  # 1 / largest eigenvalue of D^T D
        encoder_EMD = step * dictionary_EDM.mT.contiguous()
        recurrent = dictionary_EDM
        if case.form == "classic":
            recurrent = torch.eye(case.atoms, device=device) - encoder_EMD @ dictionary_EDM
        theta_EM = torch.full((len(case.k), case.atoms), 0.05 * step, device=device)
        atoms = torch.randint(case.atoms, (case.rows, max(case.k)), device=device, generator=self.generator)
        weights = self._normal(case.rows, max(case.k))
        code_BM = torch.zeros(case.rows, case.atoms, device=device).scatter(1, atoms, weights)
        x_BD = code_BM @ dictionary_EDM[0].T + 0.02 * self._normal(case.rows, case.dim)
        return [x_BD, encoder_EMD, recurrent, theta_EM]

    def functions(self, mode: str) -> dict[str, Callable[[], Function]]:
        """How to make each provider; making may fail where something is not built. The first is the baseline."""
        case = self.case
        if case.kind == "topk":
            k = case.k[0]
            native = {"native": lambda: native_topk(case, self.inputs[0])} if mode == "fwd" else {}
            return {
                "torch.topk": lambda: lambda x: topk_straight_through(x, k),
                "stratcore": lambda: lambda x: ops.topk_ste(x, k),
                **native,
            }

        def over_experts(code: Function) -> Function:
            return routed(code, case, self.route) if case.kind == "routed" else each_expert(code, case)

        def own() -> Function:
            if case.kind == "routed":
                return lambda x, *parameters: ops.topk_lista_routed(
                    x, self.route, *parameters, case.k, num_steps=STEPS, form=case.form
                )
            if len(case.k) == 1:
                return over_experts(stratcore_code)
            return lambda *inputs: stratcore_code(*inputs, case.k, case.form)

        eager = over_experts(eager_code)
        return {
            "eager": lambda: eager,
            "compile": lambda: torch.compile(eager, fullgraph=case.kind != "routed"),
            "stratcore": own,
        }

    def call(self, function: Function, mode: str, grad: Tensor | None = None) -> Call:
        return runner.timed_call(function, self.inputs, mode, self.grad if grad is None else grad)

    def sampled(self, function: Function, mode: str) -> list[Tensor]:
        """The call at full size, reduced to the sampled rows; only these rows have a gradient."""
        result = self.call(function, mode, self.sampled_grad)()
        if mode == "fwd":
            return [result[..., self.rows, :].clone()]
        return [result[0][self.rows], *result[1:]]

    def oracle(self, mode: str) -> list[Tensor]:
        """The same in float64, on the sampled rows alone."""
        x, *parameters = (t.detach().double() for t in self.inputs)
        leaves = [t.requires_grad_(mode == "fwd+bwd") for t in (x[self.rows], *parameters)]
        if self.case.kind == "topk":
            result = reference.topk_ste(leaves[0], self.case.k[0])
        elif self.case.kind == "routed":
            result = routed(oracle_code, self.case, self.route[self.rows])(*leaves)
        else:
            result = each_expert(oracle_code, self.case)(*leaves)
        if mode == "fwd":
            return [result]
        return list(torch.autograd.grad(result, leaves, self.grad[..., self.rows, :].double()))

    def tolerance(self, mode: str) -> Tolerance:
        """Of the gate: a selection is exact, codes are as good as eager torch's."""
        if self.case.kind == "topk":
            return Tolerance(floor=0.0, coarse=0.0)
        # A selection that flips between nearly equal entries moves a whole row, in eager torch as here.
        return Tolerance(floor=1e-2 if self.case.dtype == torch.bfloat16 else 1e-5, slack=0.05, coarse=0.6)


# ---- running


@contextlib.contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    gflop = case.job(options.modes[-1]).flops / 1e9
    gib = sum(case.elements()) * case.dtype.itemsize / 2**30
    if recorder.device.type == "cpu" and (gflop > options.cpu_limit or gib > 1):
        print(f"skipped on the CPU: {case.name} ({gflop:.0f} GFLOP, tensors of {gib:.1f} GiB)", flush=True)
        return
    torch.compiler.reset()
    with matmul_precision(case.tf32):
        problem = Problem(case, recorder.device)
        for mode in options.modes:
            runner.run_providers(problem, mode, recorder, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = runner.argument_parser(
        "bench.ops.bench_topk_lista", "groups or names: table,topk,cpu,cpu_table,small"
    )
    runner.add_limits(parser, 60, "GFLOP")
    return runner.parse_known(parser, arguments, cases=runner.names_of(CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    runner.run_cases(options, CASES, run_case)


if __name__ == "__main__":
    main()
