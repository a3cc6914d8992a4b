"""Attention on a torus against what users write today.

    python -m bench.ops.bench_toroidal_attention --device cuda --cases table \
        --out bench/results/h200/toroidal_attention.jsonl

Providers: `eager` (products and softmax of matrices of scores), `sdpa_bias` (scaled_dot_product_attention with the
bias as mask), `flex` (FlexAttention, compiled, with the distance as score_mod), `flex_block` (with a hand-made mask
of blocks too, where the case names a radius beyond which nothing matters), `stratcore`. `sdpa` knows no distance; it
stands as the case NAME/no_bias, what attention costs at all. Modes: `fwd`; `fwd+bwd`, gradients of q, k and v;
`learn`, of the slopes too.

FLOPs are those of all visible pairs, whatever a mask of blocks or `eps` leaves out, so these may pass 100 % of the
roofline. Every provider computes the case at full size before it is timed; the heads of the first key head are then
compared with float64.

Legend: B batch, H query heads, G key heads, N tokens, E dimension of a head.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance, check
from stratcore import ops
from stratcore.ops import reference

MODES = ("fwd", "fwd+bwd", "learn")
Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """slope: of every head, or 'alibi'; radius: of flex_block; lattice: none for a ring of all tokens."""

    name: str
    group: str
    batch: int
    heads: int
    tokens: int
    dim: int
    dtype: torch.dtype = BF16
    causal: bool = False
    kv_heads: int = 0
    slope: float | str = 0.1
    eps: float = 0.0
    radius: int = 0
    lattice: tuple[int, ...] = ()
    block: tuple[int, ...] = ()

    def job(self, mode: str, suffix: str = "") -> Job:
        """Two products forward, five more backward; each tensor moved once."""
        pairs = self.batch * self.heads * self.tokens**2 * (0.5 if self.causal else 1)
        passes = 1 if mode == "fwd" else 3.5
        elements = 2 * self.batch * self.tokens * self.dim * (self.heads + (self.kv_heads or self.heads))
        moved = elements * self.dtype.itemsize * (1 if mode == "fwd" else 3)
        shapes = {"batch": self.batch, "heads": self.heads, "kv_heads": self.kv_heads or self.heads,
                  "tokens": self.tokens, "dim": self.dim, "causal": self.causal, "slope": self.slope, "eps": self.eps,
                  "lattice": list(self.lattice) or [self.tokens], "radius": self.radius}  # fmt: skip
        return Job(
            "toroidal_attention",
            self.name + suffix,
            mode,
            shapes,
            self.dtype,
            4 * pairs * self.dim * passes,
            moved,
        )

    def places(self) -> dict[str, Any]:
        """The torus, as the reference takes it."""
        lattice = self.lattice or (self.tokens,)
        return {"lattice": lattice, "block": self.block or lattice}


CASES = [
    Case("n4096_d128", "table", 4, 32, 4096, 128),
    Case("n4096_d128_causal", "table", 4, 32, 4096, 128, causal=True),
    Case("n2048_d80_causal", "table", 4, 32, 2048, 80, causal=True),
    Case("n16384_d128_causal_eps", "table", 1, 32, 16384, 128, causal=True, eps=2.0**-17, radius=512),
    Case("n65536_d128_alibi", "table", 1, 32, 65536, 128, slope="alibi"),
    Case("n65536_d128_alibi_eps", "table", 1, 32, 65536, 128, slope="alibi", eps=2.0**-17),
    Case("n16384_d64", "table", 1, 16, 16384, 64),
    Case("n4096_d64_fp32", "table", 4, 16, 4096, 64, FP32),
    Case("n4096_d128_shared_keys", "more", 4, 32, 4096, 128, causal=True, kv_heads=8),
    Case("plane_64x64_d128", "more", 4, 32, 4096, 128, lattice=(64, 64), block=(8, 16)),
    Case(
        "plane_64x64_d128_eps",
        "more",
        4,
        32,
        4096,
        128,
        slope="alibi",
        eps=2.0**-17,
        lattice=(64, 64),
        block=(8, 16),
    ),
    Case("cpu_n1024_d64", "cpu", 1, 4, 1024, 64, FP32),
    Case("cpu_n1024_d128_causal", "cpu", 1, 4, 1024, 128, FP32, causal=True),
    Case("cpu_n4096_d64_alibi_eps", "cpu", 1, 4, 4096, 64, FP32, slope="alibi", eps=2.0**-20),
    Case("cpu_n1024_d64_bf16", "cpu", 1, 4, 1024, 64, BF16),
    Case("small_ring", "small", 2, 4, 96, 32, FP32),
    Case("small_causal", "small", 1, 4, 128, 32, BF16, causal=True, kv_heads=2),
    Case("small_plane", "small", 1, 2, 96, 16, FP32, lattice=(8, 12), block=(4, 3), slope="alibi"),
    Case("small_eps", "small", 1, 2, 256, 16, FP32, slope=2.0, eps=1e-5),
]


# ---- what users write


def distances(case: Case, device: torch.device, first: int = 0, count: int | None = None) -> Tensor:
    """[N or count, N] in float64, of queries from `first` on."""
    rows = case.tokens if count is None else count
    return reference.toroidal_distance(
        queries=rows, keys=case.tokens, query_offset=first, device=device, **case.places()
    )[0]


def repeated(case: Case, t: Tensor) -> Tensor:
    return t.repeat_interleave(case.heads // (case.kv_heads or case.heads), 1)


def bias_of(case: Case, distance: Tensor, slopes: Tensor) -> Tensor:
    """[H, N, N], -inf where causal order hides the key."""
    bias = -slopes.to(distance.dtype)[:, None, None] * distance
    if not case.causal:
        return bias
    hidden = torch.ones_like(distance, dtype=torch.bool).triu(1)
    return bias.masked_fill(hidden, -math.inf)


def eager(case: Case, slopes: Tensor) -> Function:
    distance = distances(case, slopes.device).to(case.dtype)

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        k, v = repeated(case, k), repeated(case, v)
        scores = q @ k.mT * case.dim**-0.5 + bias_of(case, distance, slopes)
        return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v

    return run


def sdpa_bias(case: Case, slopes: Tensor) -> Function:
    """The bias is made once, but for slopes that learn."""
    distance = distances(case, slopes.device).to(case.dtype)
    fixed = bias_of(case, distance, slopes)

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        bias = bias_of(case, distance, slopes) if slopes.requires_grad else fixed
        return scaled_dot_product_attention(q, repeated(case, k), repeated(case, v), attn_mask=bias[None])

    return run


def sdpa(case: Case, slopes: Tensor) -> Function:
    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, repeated(case, k), repeated(case, v), is_causal=case.causal)

    return run


def block_mask(case: Case, device: torch.device, radius: int) -> BlockMask | None:
    if not case.causal and not radius:
        return None

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        apart = (i - j).abs()
        seen = torch.minimum(apart, case.tokens - apart) <= (radius or case.tokens)
        return seen & (i >= j) if case.causal else seen

    return create_block_mask(visible, None, None, case.tokens, case.tokens, device=device)


def flex(case: Case, slopes: Tensor, radius: int = 0) -> Function:
    """Distances as users write them: of a ring from the indices, of a plane through a table of coordinates."""
    mask, lattice = block_mask(case, slopes.device, radius), case.places()["lattice"]
    sites = reference.lattice_sites(**case.places()).to(slopes.device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            for axis, period in enumerate(lattice):
                x, y = (i, j) if len(lattice) == 1 else (sites[i, axis], sites[j, axis])
                apart = (x - y).abs()
                score = score - slopes[h] * torch.minimum(apart, period - apart)
            return score

        return compiled(q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    return run


def stratcore(case: Case, slopes: Tensor) -> Function:
    places = {name: list(sizes) for name, sizes in case.places().items()}

    def run(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        return ops.toroidal_attention(q, k, v, slopes, causal=case.causal, eps=case.eps, **places)

    return run


# ---- problems


@dataclass(frozen=True)
class Provider:
    """How to make it, and whether it knows of distance."""

    make: Callable[[Case, Tensor], Function]
    biased: bool = True


class Problem:
    """Inputs of a case, standard normal, and the same in float64 for the heads of the first key head."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator(device).manual_seed(0)
        self.shared = case.heads // (case.kv_heads or case.heads)
        self.q = self._normal(case.heads)
        self.k, self.v = (self._normal(case.kv_heads or case.heads) for _ in range(2))
        self.grad = self._normal(case.heads)
        slopes = (
            ops.alibi_slopes(case.heads) if case.slope == "alibi" else torch.full((case.heads,), case.slope)
        )
        self.slopes = slopes.to(device)

    def _normal(self, heads: int) -> Tensor:
        shape = (self.case.batch, heads, self.case.tokens, self.case.dim)
        return torch.randn(shape, device=self.device, generator=self.generator).to(self.case.dtype)

    def providers(self) -> dict[str, Provider]:
        """How to make each; the first is the baseline of the gate where it fits."""
        blocks = {"flex_block": Provider(functools.partial(flex, radius=self.case.radius))}
        return {
            "eager": Provider(eager),
            "sdpa_bias": Provider(sdpa_bias),
            "flex": Provider(flex),
            **(blocks if self.case.radius else {}),
            "stratcore": Provider(stratcore),
            "sdpa": Provider(sdpa, biased=False),
        }

    def call(self, function: Function, mode: str) -> Call:
        """What is timed: [out], or the gradients."""
        leaves = [t.detach().requires_grad_(mode != "fwd") for t in (self.q, self.k, self.v)]
        slopes = self.slopes.detach().requires_grad_(mode == "learn")

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*leaves, slopes)]

        def both() -> list[Tensor]:
            wanted = [*leaves, slopes] if mode == "learn" else leaves
            return list(torch.autograd.grad(function(*leaves, slopes), wanted, self.grad))

        return forward if mode == "fwd" else both

    def sampled(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Those of the first key head: out; or the gradients of q, k, v and slopes."""
        heads = [self.shared, 1, 1]
        parts = [t[:, :count].clone() for t, count in zip(results, heads, strict=False)]
        return [*parts, results[3][: self.shared].clone()] if len(results) > 3 else parts

    def oracle(self, mode: str, biased: bool) -> list[Tensor]:
        """In float64, by chunks of queries."""
        case = self.case
        out, grad_q = (torch.zeros_like(self.q[:, : self.shared], dtype=torch.float64) for _ in range(2))
        grad_k, grad_v = (torch.zeros_like(self.k[:, :1], dtype=torch.float64) for _ in range(2))
        slopes = self.slopes[: self.shared].double() * biased
        grad_slopes, mass, scale = torch.zeros_like(slopes), torch.zeros_like(slopes), case.dim**-0.5
        k, v = self.k[:, :1].double(), self.v[:, :1].double()
        size = max(1, (1 << 26) // (case.batch * self.shared * case.tokens))
        for first in range(0, case.tokens, size):
            rows = slice(first, min(first + size, case.tokens))
            q, grad = (t[:, : self.shared, rows].double() for t in (self.q, self.grad))
            distance = distances(case, self.device, first, q.shape[2])
            scores = scale * q @ k.mT - slopes[:, None, None] * distance
            if case.causal:
                i, j = (torch.arange(n, device=self.device) for n in (q.shape[2], case.tokens))
                scores = scores.masked_fill(j > i[:, None] + first, -math.inf)
            weights = torch.softmax(scores, -1)
            out[:, :, rows] = weights @ v
            if mode == "fwd":
                continue
            delta = (grad * out[:, :, rows]).sum(-1, keepdim=True)
            grad_scores = weights * (grad @ v.mT - delta)
            grad_q[:, :, rows] = scale * grad_scores @ k
            grad_k += (scale * grad_scores.mT @ q).sum(1, keepdim=True)
            grad_v += (weights.mT @ grad).sum(1, keepdim=True)
            grad_slopes -= (grad_scores * distance).sum((0, 2, 3))
            mass += (grad_scores * distance).abs().sum((0, 2, 3))
        if mode == "fwd":
            return [out]
        self.mass = mass
        return [grad_q, grad_k, grad_v, grad_slopes] if mode == "learn" else [grad_q, grad_k, grad_v]

    def beside_mass(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """That of the slopes as 1 + its share in the sum of the absolute values of its terms, which cancel."""
        return [*gradients[:3], 1 + gradients[3].double() / self.mass]

    def tolerance(self) -> Tolerance:
        low = self.case.dtype == BF16
        return Tolerance(floor=2e-2 if low else 5e-5, coarse=5e-2 if low else 5e-4)


# ---- running


def run_mode(problem: Problem, mode: str, recorder: Recorder, options: argparse.Namespace) -> None:
    """Gates and times every wanted provider; those that are missing are named with the reason."""
    case, baseline, exact = problem.case, None, {}
    for name, provider in problem.providers().items():
        if (options.providers and name not in options.providers) or (mode == "learn" and not provider.biased):
            continue
        results = None
        with runner.may_be_missing(case.name, mode, name, options):
            call = problem.call(provider.make(case, problem.slopes), mode)
            results = problem.sampled(call())
        if results is None:
            continue
        if provider.biased not in exact:
            exact[provider.biased] = problem.oracle(mode, provider.biased)
        wanted = exact[provider.biased]
        if mode == "learn":
            results, wanted = problem.beside_mass(results), problem.beside_mass(wanted)
        gate = check(results, wanted, baseline if provider.biased else None, problem.tolerance())
        baseline = results if name == "eager" else baseline
        runner.report(
            recorder.record(case.job(mode, "" if provider.biased else "/no_bias"), name, call, gate)
        )


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    work = case.job("fwd").flops / 1e9
    if recorder.device.type == "cpu" and work > options.cpu_limit:
        print(f"skipped on the CPU: {case.name} ({work:.0f} GFLOP forward)", flush=True)
        return
    torch.compiler.reset()
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        run_mode(problem, mode, recorder, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = runner.argument_parser(
        "bench.ops.bench_toroidal_attention", "groups or names: table,more,cpu,small", MODES
    )
    runner.add_limits(parser, 20, "GFLOP")
    return runner.parse_known(parser, arguments, cases=runner.names_of(CASES))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    runner.run_cases(options, CASES, run_case)


if __name__ == "__main__":
    main()
