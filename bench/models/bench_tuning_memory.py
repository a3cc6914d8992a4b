"""Peak memory of tuning toroidal layers of a Phi-2-size model against its estimate, under a cap on a GPU's memory.

    python -m bench.models.bench_tuning_memory --device cuda --cases phi2 --out FILE.jsonl

For 4, 8 and 32 layers and for 7.6 and 16 GB: what the source documents did (all projections, eight rows, activations
kept), and the most thorough setting that `plans_that_fit` names for the budget. Each trains for three steps with
random weights while torch may not take more than the budget. A row says what was estimated and measured, and whether
the cap was hit. Gate: measured where it ran, and within 10 % of the estimate. On a CPU nothing is measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PhiConfig

from bench.harness import device_of, surroundings
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions
from stratcore.training import Numerics, OptimizerOptions, Runtime, Stage
from stratcore.training.batch_stream import BatchStream
from stratcore.training.lora import add_lora
from stratcore.training.memory import HostSizes, TuningPlan, estimate_memory, host_sizes, plans_that_fit
from stratcore.training.optimization import Optimization
from stratcore.training.tasks import LanguageModelingTask

STEPS, WITHIN = 3, 0.1
DEPTH = 2


@dataclass(frozen=True)
class Case:
    """A host, which of its layers become toroidal, and how much memory there is."""

    name: str
    group: str
    host: dict[str, Any]
    layers: tuple[tuple[int, ...], ...]
    budgets: tuple[float, ...]
    rows: int
    length: int

    @property
    def config(self) -> PhiConfig:
        """The host's."""
        return PhiConfig(**self.host)


PHI2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "partial_rotary_factor": 0.4,
    "max_position_embeddings": 2048,
}
TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 64,
}
CASES = (
    Case(
        "phi2", "table", PHI2, ((0, 8, 16, 24), tuple(range(0, 32, 4)), tuple(range(32))), (7.6, 16.0), 8, 256
    ),
    Case("tiny", "small", TINY, ((0, 2),), (0.0008, 0.01), 2, 16),
)


def settings(case: Case, sizes: HostSizes) -> Iterator[tuple[float, str, TuningPlan]]:
    """Budget in GB, why this plan, and the plan."""
    for layers in case.layers:
        wish = TuningPlan(layers=layers, rows=case.rows, length=case.length, depths=(DEPTH,), accumulate=2)
        for budget in case.budgets:
            yield budget, "as published", wish
            fitting = plans_that_fit(sizes, wish, int(budget * 1e9))
            if fitting:
                yield budget, "advised", fitting[0][0]


def measured_peak(case: Case, plan: TuningPlan, device: torch.device, budget: float) -> int | None:
    """Most bytes that tensors held during the steps; None where the budget was too little."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget * 1e9 / total), device)
    try:
        optimization, stream = tuning(case, plan, Runtime.create("cuda"))
        torch.cuda.reset_peak_memory_stats(device)
        for index in range(STEPS):
            optimization.run(stream, index)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def tuning(case: Case, plan: TuningPlan, runtime: Runtime) -> tuple[Optimization, BatchStream]:
    """The steps of a plan, ready to run."""
    with torch.device(runtime.device):
        host = AutoModelForCausalLM.from_config(case.config, dtype=getattr(torch, plan.host_dtype))
    torus = ToroidalBranchOptions(depth=DEPTH, fusion="low_rank")
    model = ToroidalLM(host, ToroidalLMOptions(layers=plan.layers, torus=torus)).train()
    if plan.trained == "lora":
        add_lora(model, rank=plan.lora_rank)
    else:
        model.train_only(plan.trained)
    rows = np.random.default_rng(0).integers(0, case.host["vocab_size"], (4 * plan.rows, plan.length))
    task = LanguageModelingTask(model, rows, rows[:1], runtime, batch_size=plan.rows, seed=0)
    numerics = Numerics(
        precision=plan.precision,  # type: ignore[arg-type]
        deterministic=False,
        gradient_checkpointing=plan.checkpointing,
    )
    stage = Stage(
        steps=STEPS,
        accumulate=plan.accumulate,
        optimizer=OptimizerOptions(name="adamw", lr=1e-5, clip_norm=1.0),
        numerics=numerics,
    )
    return Optimization(task, stage, runtime), BatchStream(task)


def row_of(
    case: Case, budget: float, why: str, plan: TuningPlan, sizes: HostSizes, device: torch.device
) -> dict[str, Any]:
    """Estimate and measurement of one setting."""
    estimate = estimate_memory(sizes, plan)
    measured = measured_peak(case, plan, device, budget) if device.type == "cuda" else None
    error = None if measured is None else estimate.peak / measured - 1
    row = {
        "op": "tuning_memory",
        "case": case.name,
        "budget_gb": budget,
        "setting": why,
        "num_layers": len(plan.layers),
        "plan": {**asdict(plan), "layers": list(plan.layers)},
        "estimate": asdict(estimate),
        "measured": measured,
        "relative_error": error,
        "gate": None
        if device.type != "cuda"
        else measured is None or abs(estimate.peak / measured - 1) <= WITHIN,
    }
    found = "not measured" if device.type != "cuda" else "out of memory"
    if measured is not None and error is not None:
        found = f"{measured / 1e9:.2f} GB, estimate {100 * error:+.1f} %"
    print(
        f"{case.name}, {len(plan.layers)} layers, {budget:g} GB, {why}: trained={plan.trained} rows={plan.rows} "
        f"checkpointing={plan.checkpointing}: estimated {estimate.peak / 1e9:.2f} GB, {found}",
        flush=True,
    )
    return row


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    module = "bench.models.bench_tuning_memory"
    parser = argparse.ArgumentParser(prog=f"python -m {module}", allow_abbrev=False)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--cases", default="tiny", choices=[case.name for case in CASES])
    parser.add_argument("--out", type=Path, help="JSONL file to write")
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    (case,) = [case for case in CASES if case.name == options.cases]
    with torch.device("meta"):
        sizes = host_sizes(AutoModelForCausalLM.from_config(case.config))
    where = surroundings(device, " ".join(["python", "-m", module, *arguments]))
    rows = []
    for budget, why, plan in settings(case, sizes):
        rows.append(row_of(case, budget, why, plan, sizes, device) | where)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
