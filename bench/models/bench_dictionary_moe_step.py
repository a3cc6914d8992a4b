"""Training step of the recipe `dictionary_moe` with our kernels and with the same model in eager torch.

    python -m bench.models.bench_dictionary_moe_step --device cuda --batches 8,4096

A step is one of the Trainer: noise, model, loss, backward, guard, clipping, Adam, unit atoms, use of atoms, metrics.
Arms: `reference` computes the codes by `stratcore.ops.reference`, `topk` by what a user would write (`torch.topk`, an
expert after the other), `stratcore` by the op, `graph` is that with `numerics.cuda_graph`. Wall time, median of
several blocks of steps. Before anything is timed, losses and gradients of the arms are compared.
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
}
EPOCH = 16


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


def runtime_of(device: torch.device) -> Runtime:
    """One process."""
    return Runtime.create("cuda" if device.type == "cuda" else "cpu")


def built(batch: int, device: torch.device) -> DictionaryMoETask:
    """The recipe's task over so many made-up rows that an epoch has EPOCH steps."""
    run = dictionary_moe()
    torch.manual_seed(0)
    rows = Rows(torch.randn(EPOCH * batch, run.model.input_dim), torch.zeros(EPOCH * batch).long())
    return DictionaryMoETask(
        DictionaryMoE(run.model).to(device),
        rows,
        rows,
        run.objective,
        runtime_of(device),
        batch_size=batch,
        seed=0,
    )


def gradients(batch: int, device: torch.device) -> list[Tensor]:
    """Loss and gradients of one batch without noise."""
    task = built(batch, device)
    x_BD = torch.randn(batch, task.model.options.input_dim, device=device)
    loss = task._loss(x_BD, x_BD.new_zeros(batch).long(), task.model(x_BD))[0]
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


def training_step(batch: int, device: torch.device, graph: bool) -> Callable[[], None]:
    """A step as the Trainer makes it."""
    numerics = Numerics(cuda_graph=graph, deterministic=False)
    stage = replace(dictionary_moe().stage, numerics=numerics, accumulate=1)
    task = built(batch, device)
    optimization, stream = Optimization(task, stage, runtime_of(device)), BatchStream(task)
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
        own = gradients(batch, device)
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
            wanted = gradients(batch, device)
        times: dict[str, float] = {}
        for name, function in ARMS.items():
            if name == "graph" and device.type != "cuda":
                continue
            error = difference(batch, device, function, wanted)
            if not error < 5e-2:  # a selection that flips between nearly equal entries moves a row
                raise RuntimeError(f"{name}: loss or gradients differ from the reference by {error:.1e}")
            with codes_by(function):
                step = training_step(batch, device, name == "graph")
                times[name] = milliseconds(step, device, options.seconds)
            print(
                f"batch {batch:5d}  {name:10s} {times[name]:9.3f} ms  "
                f"{times['reference'] / times[name]:6.2f}x reference  difference {error:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
