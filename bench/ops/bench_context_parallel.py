"""Context parallel attention on the ranks of one machine against the op on one device that holds the whole sequence.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m bench.ops.bench_context_parallel --device cuda

A row is one provider on one case in one mode; the slowest rank counts. Results and gradients of every rank are first
compared with the one device; a provider that differs gets no speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.harness import surroundings
from stratcore import ops
from stratcore.layers import context_parallel_attention

PROVIDERS = ("one device", "ring", "all_gather")


@dataclass(frozen=True)
class Case:
    """Sizes of the whole sequence, with slopes of ALiBi on a ring of its length."""

    tokens: int
    heads: int = 16
    key_heads: int = 4
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    tolerance: float = 3e-2  # of the largest entry
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "n4096_small": Case(4096, 4, 2, 32, torch.float32, 1e-4),
    "n4096_small_eps": Case(4096, 4, 2, 32, torch.float32, 1e-4, {"eps": 2.0**-20}),
    "n32768": Case(32768),
    "n32768_causal": Case(32768, options={"causal": True}),
    "n65536_eps": Case(65536, options={"eps": 2.0**-17}),
    "n65536_causal_eps": Case(65536, options={"eps": 2.0**-17, "causal": True}),
}


class Arms:
    """The providers of one case on one rank."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(1)
        shapes = [(case.heads, case.tokens)] * 2 + [(case.key_heads, case.tokens)] * 2
        drawn = [torch.randn(1, *s, case.dim, generator=generator, device=device) for s in shapes]
        q, self.grad, k, v = (t.to(case.dtype) for t in drawn)
        slopes = ops.alibi_slopes(case.heads).to(device)
        self.options = {"lattice": case.tokens, **case.options}
        self.whole = [t.requires_grad_() for t in (q, k, v, slopes)]
        bounds = [case.tokens * at // dist.get_world_size() for at in (dist.get_rank(), dist.get_rank() + 1)]
        self.rows = slice(*bounds)
        self.own = [t.detach()[:, :, self.rows].clone().requires_grad_() for t in (q, k, v)]
        self.own.append(slopes.detach().clone().requires_grad_())
        self.traffic: Any = None

    def forward(self, provider: str) -> Tensor:
        if provider == "one device":
            return ops.toroidal_attention(*self.whole, **self.options)
        result = context_parallel_attention(*self.own, method=provider, **self.options)
        self.traffic = result.traffic
        return result.out

    def both(self, provider: str) -> tuple[Tensor, ...]:
        alone = provider == "one device"
        grad = self.grad if alone else self.grad[:, :, self.rows]
        return torch.autograd.grad(self.forward(provider), self.whole if alone else self.own, grad)

    def error(self, provider: str) -> float:
        """Largest over out and gradients of this rank's shard, relative to the largest entry."""
        expected = [t[:, :, self.rows] for t in (self.forward("one device"), *self.both("one device")[:3])]
        actual = [self.forward(provider), *self.both(provider)[:3]]
        pairs = zip(actual, expected, strict=True)
        return max(float((a - e).detach().abs().max() / e.detach().abs().max()) for a, e in pairs)


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median over calls of the slowest rank's time."""
    samples = []
    for _ in range(repeats + 2):
        dist.barrier()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - start)
    taken = torch.tensor(samples[2:], dtype=torch.float64, device=device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return 1e3 * statistics.median(taken.tolist())


def peak_mib(call: Callable[[], Any], device: torch.device) -> float | None:
    """What a call adds to the memory of this rank's GPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / (1 << 20)


def rows_of(name: str, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    case, rows = CASES[name], []
    arms = Arms(case, device)
    for provider in PROVIDERS:
        error = torch.tensor([0.0 if provider == "one device" else arms.error(provider)], device=device)
        dist.all_reduce(error, op=dist.ReduceOp.MAX)
        for mode, call in (("fwd", arms.forward), ("fwd+bwd", arms.both)):
            row = {"case": name, "provider": provider, "mode": mode, "error": error.item()}
            if error.item() <= case.tolerance:
                row["ms"] = milliseconds(lambda: call(provider), device, repeats)  # noqa: B023
                row["peak_mib"] = peak_mib(lambda: call(provider), device)  # noqa: B023
            if provider != "one device":
                row |= vars(arms.traffic)
            rows.append(row)
    return rows


def line_of(row: dict[str, Any]) -> str:
    speed = f"{row['ms']:10.3f} ms" if "ms" in row else "     no speed"
    sent = [row.get(name, 0) / 1e6 for name in ("bytes_sent", "backward_bytes_sent")]
    memory = "" if row.get("peak_mib") is None else f" {row['peak_mib']:6.0f} MiB"
    where = f"{row['case']:<18} {row['provider']:<11} {row['mode']:<8}"
    return (
        f"{where}{speed} {sent[0]:8.2f} MB sent {sent[1]:8.2f} MB backward, error {row['error']:.1e}{memory}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", default="n4096_small,n4096_small_eps", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="append rows to this file")
    given = parser.parse_args(arguments)
    given.cases = given.cases.split(",")
    for name in given.cases:
        if name not in CASES:
            parser.error(f"--cases: expected some of {', '.join(CASES)}, got {name!r}")
    return given


def main() -> None:
    """Measures and, on rank 0, prints; traffic and memory are those of rank 0."""
    given = parse()
    device = torch.device(given.device)
    if given.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    around = surroundings(device, "python -m bench.ops.bench_context_parallel " + shlex.join(sys.argv[1:]))
    for name in given.cases:
        for row in rows_of(name, device, given.repeats):
            if dist.get_rank() > 0:
                continue
            print(line_of(row), flush=True)
            if given.out:
                with open(given.out, "a", encoding="utf-8") as stream:
                    stream.write(json.dumps({**row, "ranks": dist.get_world_size(), **around}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
