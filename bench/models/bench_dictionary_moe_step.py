"""Training step of the recipe `dictionary_moe` with our kernels and with the same model in eager torch.

    python -m bench.models.bench_dictionary_moe_step --device cuda --batches 8,4096

A step: noise, model, loss, backward, clipping, Adam, unit atoms. Arms: `reference` computes the codes by
`stratcore.ops.reference`, `topk` by what a user would write (`torch.topk`, an expert after the other), `stratcore`
by the op, `graph` is that one captured in a CUDA graph, `trainer` the step of the Trainer with `numerics.cuda_graph`
(its guard, metrics and rows of every step included). Wall time, median of several blocks of steps. Before
anything is timed, losses and gradients of the arms are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stratcore.layers import lista
from stratcore.models import DictionaryMoE
from stratcore.ops import reference
from stratcore.recipes import dictionary_moe
from stratcore.training import Numerics, Runtime
from stratcore.training.batch_stream import BatchStream
from stratcore.training.optimization import Optimization
from stratcore.training.tasks import DictionaryMoETask, Rows

Codes = Callable[..., Tensor]


def reference_codes(
    x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, k: Any, **how: Any
) -> Tensor:
    """Codes [E, B, M] by the definition that the tests compare with."""
    parameters = (
        encoder.reshape(-1, *encoder.shape[-3:]),
        recurrent[None],
        theta.reshape(-1, *theta.shape[-2:]),
    )
    return reference.topk_lista(x, *parameters, k, how["num_steps"], how["form"], how["backward"])[-1]


def topk_codes(x: Tensor, encoder: Tensor, recurrent: Tensor, theta: Tensor, k: Any, **how: Any) -> Tensor:
    """Codes [E, B, M] of the coupled form, an expert after the other; masked gradient."""
    codes = []
    for e, k_e in enumerate(k):
        weight, bound = encoder[..., e, :, :].squeeze(0), theta[..., e, :].squeeze(0)

        def select(u: Tensor, bound: Tensor = bound, k_e: int = k_e) -> Tensor:
            h = u.sign() * torch.relu(u.abs() - bound)
            indices = h.abs().topk(k_e, dim=-1).indices
            return torch.zeros_like(h).scatter(-1, indices, h.gather(-1, indices))

        z = select(x[e] @ weight.T)
        for _ in range(how["num_steps"]):
            z = select(torch.addmm(z, x[e] - z @ recurrent[e].T, weight.T))
        codes.append(z)
    return torch.stack(codes)


ARMS: dict[str, Codes | None] = {
    "reference": reference_codes,
    "topk": topk_codes,
    "stratcore": None,
    "graph": None,
    "trainer": None,
}
ON_GPU = ("graph", "trainer")


@contextmanager
def codes_by(function: Codes | None) -> Iterator[None]:
    """The encoders of layers.lista compute their codes by this function."""
    own = lista.ops
    if function is not None:
        lista.ops = SimpleNamespace(topk_lista=function)
    try:
        yield
    finally:
        lista.ops = own


class Step:
    """One training step on fixed rows."""

    def __init__(self, batch: int, device: torch.device, graph: bool) -> None:
        run = dictionary_moe()
        torch.manual_seed(0)
        self.model = DictionaryMoE(run.model).to(device)
        rows = Rows(
            torch.randn(batch, run.model.input_dim, device=device), torch.zeros(batch, device=device).long()
        )
        runtime = Runtime.create("cuda" if device.type == "cuda" else "cpu")
        self.task = DictionaryMoETask(
            self.model, rows, rows, run.objective, runtime, batch_size=batch, seed=0
        )
        self.rows, self.noise = rows, run.objective.noise
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=1e-3, betas=(0.9, 0.99), fused=device.type == "cuda", capturable=graph
        )

    def loss(self, noise: float) -> Tensor:
        """The recipe's loss of the rows."""
        x_BD = self.rows.x + noise * torch.randn_like(self.rows.x)
        return self.task._loss(x_BD, self.rows.domain, self.model(x_BD))[0]

    def gradients(self) -> list[Tensor]:
        """Loss and gradients without noise."""
        loss = self.loss(0.0)
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return [loss.detach(), *(g for g in grads if g is not None)]

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        self.loss(self.noise).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.model.experts.normalize_atoms()


def captured(step: Step) -> Callable[[], None]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def trainer_step(batch: int, device: torch.device) -> Callable[[], None]:
    """A step as the Trainer makes it."""
    run, step = dictionary_moe(), Step(batch, device, False)
    numerics = Numerics(cuda_graph=True, deterministic=False)
    stage = replace(run.stage, numerics=numerics, accumulate=1)
    optimization, stream = Optimization(step.task, stage, Runtime.create("cuda")), BatchStream(step.task)
    return lambda: optimization.run(stream, 0)


def milliseconds(call: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Median over nine blocks of steps."""

    def block(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / count

    block(3)
    count = max(2, int(seconds / 9 / block(3)))
    return 1e3 * statistics.median(block(count) for _ in range(9))


def difference(batch: int, device: torch.device, function: Codes | None, wanted: list[Tensor]) -> float:
    """Largest relative difference of loss and gradients."""
    with codes_by(function):
        own = Step(batch, device, False).gradients()
    return max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(own, wanted, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line an arm and batch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="8,4096")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    for batch in map(int, options.batches.split(",")):
        with codes_by(reference_codes):
            wanted = Step(batch, device, False).gradients()
        times: dict[str, float] = {}
        for name, function in ARMS.items():
            if name in ON_GPU and device.type != "cuda":
                continue
            error = difference(batch, device, function, wanted)
            if not error < 5e-2:  # a selection that flips between nearly equal entries moves a row
                raise RuntimeError(f"{name}: loss or gradients differ from the reference by {error:.1e}")
            with codes_by(function):
                if name == "trainer":
                    times[name] = milliseconds(trainer_step(batch, device), device, options.seconds)
                else:
                    step = Step(batch, device, name == "graph")
                    call = captured(step) if name == "graph" else step
                    times[name] = milliseconds(call, device, options.seconds)
            print(
                f"batch {batch:5d}  {name:10s} {times[name]:9.3f} ms  "
                f"{times['reference'] / times[name]:6.2f}x reference  difference {error:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
