"""Token routing and stratified mixtures of experts: tokens sent to k of E experts against all experts on all tokens.

    python -m bench.layers.bench_stratified_routing --device cuda --cases table

Providers: `dense` (the same layer, every expert on every token), `dense_compile` (torch.compile of it) and `sparse`
(the layer's own dispatch). Ideal: E / k times as fast as `dense`. The gate compares a sample of tokens with float64;
whose k-th and next choice are closer than rounding are left out of it.

Legend: T tokens, D channels, H hidden size, E experts.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import runner
from bench.harness import Call, Job, Recorder, Tolerance
from stratcore.layers import (
    RouterOptions,
    StratifiedMoE,
    StratifiedMoEOptions,
    TokenRouting,
    TokenRoutingOptions,
)

SAMPLE = 64
Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """layer: 'routing' or 'moe'."""

    name: str
    group: str
    layer: str
    experts: int
    k: int
    tokens: int = 65_536
    dim: int = 768
    hidden: int = 3_072
    dtype: torch.dtype = torch.bfloat16

    def job(self, mode: str) -> Job:
        """Work of k experts a token; least bytes: tokens in and out, weights once."""
        both = 3 if mode == "fwd+bwd" else 1
        flops = both * 4 * self.tokens * self.k * self.dim * self.hidden
        moved = both * (2 * self.tokens * self.dim + 2 * self.experts * self.dim * self.hidden)
        shapes = {"tokens": self.tokens, "dim": self.dim, "hidden": self.hidden, "experts": self.experts,
                  "k": self.k, "layer": self.layer}  # fmt: skip
        return Job(
            "stratified_routing", self.name, mode, shapes, self.dtype, flops, moved * self.dtype.itemsize
        )


CASES = [
    Case("routing_e8_k1", "table", "routing", 8, 1),
    Case("routing_e8_k2", "table", "routing", 8, 2),
    Case("routing_e64_k2", "table", "routing", 64, 2),
    Case("moe_e8_k2", "table", "moe", 8, 2),
    Case("moe_e64_k2", "table", "moe", 64, 2),
    Case("small_routing", "small", "routing", 4, 1, tokens=256, dim=32, hidden=64, dtype=torch.float32),
    Case("small_moe", "small", "moe", 4, 2, tokens=256, dim=32, hidden=64, dtype=torch.float32),
]


def build(case: Case, dispatch: str) -> nn.Module:
    """The layer, its zeros replaced by random numbers, so that there is something to compare."""
    torch.manual_seed(0)
    layer: nn.Module
    if case.layer == "routing":
        router = RouterOptions(num_strata=case.experts, mode="top_k", top_k=case.k)
        options = TokenRoutingOptions(dim=case.dim, router=router, hidden_dim=case.hidden, dispatch=dispatch)
        layer = TokenRouting(options)
    else:
        sizes = {"hidden_dim": case.hidden, "num_experts": case.experts, "top_k": case.k}
        layer = StratifiedMoE(StratifiedMoEOptions(dim=case.dim, dispatch=dispatch, **sizes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                )
    return layer


@dataclass(frozen=True, eq=False)
class Provider:
    """How a layer is called, and whose parameters it has."""

    layer: nn.Module
    run: Callable[[Tensor], Any]

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x).hidden


class Problem:
    """One layer in both forms, and tokens."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.layers = {name: build(case, name).to(device, case.dtype) for name in ("dense", "sparse")}
        generator = torch.Generator(device).manual_seed(2)
        self.x = torch.randn(1, case.tokens, case.dim, device=device, generator=generator).to(case.dtype)
        self.grad = torch.randn(1, case.tokens, case.dim, device=device, generator=generator).to(case.dtype)
        self.sample = self._clear_tokens()

    def _clear_tokens(self) -> Tensor:
        """Tokens whose choice of experts no rounding changes."""
        with torch.no_grad():
            routing = self.layers["sparse"](self.x[:, : 16 * SAMPLE]).routing
        logits = next(iter(routing.values())).logits[0].float().sort(descending=True).values
        gap = logits[:, self.case.k - 1] - logits[:, min(self.case.k, self.case.experts - 1)]
        return gap.argsort(descending=True)[:SAMPLE]

    def functions(self, mode: str) -> Mapping[str, Callable[[], Function]]:
        """Providers, the baseline first."""
        dense, sparse = self.layers["dense"], self.layers["sparse"]
        return {
            "dense": lambda: Provider(dense, dense),
            "dense_compile": lambda: Provider(dense, torch.compile(dense, dynamic=False)),
            "sparse": lambda: Provider(sparse, sparse),
        }

    def call(self, function: Any, mode: str) -> Call:
        """Forward, or forward and gradients of tokens and of all parameters."""

        def run() -> Any:
            if mode == "fwd":
                with torch.no_grad():
                    return function(self.x)
            x = self.x.detach().requires_grad_()
            return torch.autograd.grad(function(x), [x, *function.layer.parameters()], self.grad)

        return run

    def sampled(self, function: Function, mode: str) -> list[Tensor]:
        """Result, or gradient, of the sampled tokens."""
        x = self.x.detach().requires_grad_(mode == "fwd+bwd")
        with torch.set_grad_enabled(mode == "fwd+bwd"):
            result = function(x)
        if mode == "fwd":
            return [result[0, self.sample]]
        (gradient,) = torch.autograd.grad(result, [x], self.grad)
        return [gradient[0, self.sample]]

    def oracle(self, mode: str) -> list[Tensor]:
        """In float64, on the sampled tokens alone: no token knows of another."""
        layer = copy.deepcopy(self.layers["dense"]).double()
        x = self.x[:, self.sample].double().requires_grad_()
        result = layer(x).hidden
        if mode == "fwd":
            return [result[0].detach()]
        return [torch.autograd.grad(result, [x], self.grad[:, self.sample].double())[0][0]]

    def tolerance(self, mode: str) -> Tolerance:
        """By the error of the dense form."""
        floor = 1e-2 if self.case.dtype == torch.bfloat16 else 1e-5
        return Tolerance(floor=floor, coarse=max(5e-2, floor))


def run_case(case: Case, recorder: Recorder, options: argparse.Namespace) -> None:
    """All modes of a case."""
    problem = Problem(case, recorder.device)
    for mode in options.modes:
        runner.run_providers(problem, mode, recorder, options)


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    module = "bench.layers.bench_stratified_routing"
    parser = runner.argument_parser(module, "table, small or names of cases")
    parser.add_argument("--compile-limit", type=float, default=180, help="seconds for one torch.compile")
    providers = ("dense", "dense_compile", "sparse")
    options = runner.parse_known(parser, arguments, cases=runner.names_of(CASES), providers=providers)
    runner.run_cases(options, CASES, run_case)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
