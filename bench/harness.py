"""The one timing harness: correctness gate, timing, peak memory, rooflines, JSONL rows.

A row is one provider on one case in one mode. Its gate runs first; a row whose gate fails holds no speed. Ceilings
(copy rate, matrix product of the dtype) are measured in the same run, with the same harness.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stratcore

Call = Callable[[], Any]
MIB = 1 << 20


# ---- timing


@dataclass(frozen=True)
class Budget:
    """How long one row may take: by time, not by count."""

    warmup_s: float = 0.3
    measure_s: float = 1.0
    min_repeats: int = 5
    max_repeats: int = 2000


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    On CUDA p20 to p80 are device time with a cold L2 and the launches already queued, so they show the kernels
    alone; `wall_ms` is what one call costs in a loop with the host's part. On the CPU both are the same clock.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    wall_ms: float
    repeats: int


def measure(call: Call, device: torch.device, budget: Budget) -> Timing:
    """Warms up, then repeats `call` for the time that the budget gives."""
    repeat = _device_samples if device.type == "cuda" else _host_samples
    samples_ms, wall_ms = repeat(call, device, budget)
    p20, p50, p80 = (float(p) for p in np.percentile(samples_ms, [20, 50, 80]))
    return Timing(p20, p50, p80, p50 if wall_ms is None else wall_ms, len(samples_ms))


def _seconds(call: Call, count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _warm_up(call: Call, seconds: float) -> float:
    """Calls for at least `seconds` and twice; returns the shortest call."""
    stop, shortest = time.perf_counter() + seconds, _seconds(call)
    while True:
        shortest = min(shortest, _seconds(call))
        if time.perf_counter() >= stop:
            return shortest


def _repeats(estimate_s: float, budget: Budget) -> int:
    wanted = int(budget.measure_s / max(estimate_s, 1e-9))
    return min(max(wanted, budget.min_repeats), budget.max_repeats)


def _host_samples(call: Call, device: torch.device, budget: Budget) -> tuple[list[float], None]:
    estimate = _warm_up(call, budget.warmup_s)
    # Calls too short for the clock are timed in blocks.
    block = max(1, math.ceil(1e-4 / max(estimate, 1e-9)))
    repeats = _repeats(estimate * block, budget)
    return [_seconds(call, block) * 1e3 for _ in range(repeats)], None


def _device_samples(call: Call, device: torch.device, budget: Budget) -> tuple[list[float], float]:
    def synchronized() -> None:
        call()
        torch.cuda.synchronize(device)

    estimate = _warm_up(synchronized, budget.warmup_s)
    wall_ms = _wall_ms(call, device, _repeats(estimate, budget))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(max(256 * MIB, 4 * cache), dtype=torch.int8, device=device)
    flush_s = _event_ms(flush.zero_) / 1e3
    # Flushing goes on until the host has issued the call: events then see kernels, not gaps between launches.
    rounds = 1 + min(50, math.ceil(_issue_seconds(call, device) / flush_s))
    repeats = _repeats(estimate + rounds * flush_s, budget)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in events:
        for _ in range(rounds):
            flush.zero_()
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) for start, stop in events], wall_ms


def _wall_ms(call: Call, device: torch.device, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats * 1e3


def _issue_seconds(call: Call, device: torch.device) -> float:
    """Host time until a call returns, with an empty queue before it."""
    shortest = math.inf
    for _ in range(5):
        shortest = min(shortest, _seconds(call))
        torch.cuda.synchronize(device)
    return shortest


def _event_ms(call: Call, count: int = 10) -> float:
    call()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / count


def peak_memory(call: Call, device: torch.device) -> float | None:
    """MiB that one call needs beyond what was allocated before; on the CPU growth of the resident set."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        Path("/proc/self/clear_refs").write_text("5")  # peak := current
        before = _resident("VmRSS")
        call()
        return max(0.0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(name: str) -> float:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {words[0].rstrip(":"): words[1] for words in lines if len(words) > 1}
    return int(sizes[name]) / 1024


# ---- correctness


@dataclass(frozen=True)
class Tolerance:
    """How far from float64 a result may be.

    error <= factor * error of the baseline + slack, for the whole tensor, and with `floor` in the place of
    `slack` for the median row. `slack` allows for results that jump (a selection that flips in a few rows);
    without jumps it is the floor as well. `coarse` holds where there is no baseline.
    """

    floor: float
    slack: float | None = None
    factor: float = 2.0
    coarse: float = 0.5


@dataclass(frozen=True)
class Gate:
    """Verdict on one provider, errors against float64."""

    passed: bool
    max_error: float
    relative_error: float
    text: str = ""


def _errors(result: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Largest absolute error, relative error in norm, and that of the median row."""
    result, exact = result.detach().double(), exact.detach().double()
    if exact.numel() == 0:
        return 0.0, 0.0, 0.0
    difference = result - exact
    rows, exact_rows = (t.reshape(-1, t.shape[-1] if t.ndim else 1) for t in (difference, exact))
    typical = exact.norm() / max(1, exact_rows.shape[0]) ** 0.5
    by_row = rows.norm(dim=-1) / exact_rows.norm(dim=-1).clamp_min(max(float(typical) * 1e-3, 1e-300))
    relative = difference.norm() / exact.norm().clamp_min(1e-300)
    return float(difference.abs().max()), float(relative), float(by_row.median())


def check(
    results: Sequence[Tensor],
    exact: Sequence[Tensor],
    baseline: Sequence[Tensor] | None,
    tolerance: Tolerance,
) -> Gate:
    """Compares each result with its float64 oracle, by the error that `baseline` (eager, same dtype) makes."""
    largest, worst, texts = 0.0, 0.0, []
    slack = tolerance.floor if tolerance.slack is None else tolerance.slack
    for index, (result, oracle) in enumerate(zip(results, exact, strict=True)):
        if result.shape != oracle.shape:
            texts.append(f"output {index}: shape {list(result.shape)}, expected {list(oracle.shape)}")
            continue
        maximum, relative, median = _errors(result, oracle)
        if not math.isfinite(relative):
            largest = worst = math.inf
            texts.append(f"output {index}: not finite")
            continue
        largest, worst = max(largest, maximum), max(worst, relative)
        bounds = (tolerance.coarse, tolerance.coarse)
        if baseline is not None:
            _, base, base_median = _errors(baseline[index], oracle)
            bounds = (tolerance.factor * base + slack, tolerance.factor * base_median + tolerance.floor)
        if relative > bounds[0]:
            texts.append(f"output {index}: relative error {relative:.2e} > {bounds[0]:.2e}")
        elif median > bounds[1] and oracle.ndim > 1:
            texts.append(f"output {index}: median row's error {median:.2e} > {bounds[1]:.2e}")
    return Gate(not texts, largest, worst, "; ".join(texts))


# ---- rooflines and surroundings


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches: bytes read plus written a second, and floating-point operations a second."""

    bytes_per_s: float
    flops_per_s: float

    def floor_ms(self, flops: float, moved: float) -> float:
        """The least time of so many operations and bytes: the longer of the two."""
        return max(flops / self.flops_per_s, moved / self.bytes_per_s) * 1e3


def measure_ceilings(device: torch.device, dtype: torch.dtype, budget: Budget) -> Ceilings:
    """Large copy and large matrix product, in torch's present matmul precision."""
    on_gpu = device.type == "cuda"
    copied = torch.randn(2, (1 << 28) if on_gpu else (1 << 24), device=device)
    copy = measure(lambda: copied[1].copy_(copied[0]), device, budget)
    size = (8192 if dtype in (torch.bfloat16, torch.float16) else 4096) if on_gpu else 1024
    factors = torch.randn(2, size, size, device=device).to(dtype)
    product = measure(lambda: factors[0] @ factors[1], device, budget)
    moved = copied.numel() * copied.element_size()
    return Ceilings(moved / copy.p50_ms * 1e3, 2 * size**3 / product.p50_ms * 1e3)


def _output_of(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    folder = Path(__file__).parent
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return finished.stdout.strip() if finished.returncode == 0 else None


def device_of(name: str) -> torch.device:
    """The device of that name; 'cuda' is the current GPU."""
    device = torch.device(name)
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


def commit() -> str:
    """The checked-out commit, '-dirty' where files differ from it; 'unknown' outside a git checkout."""
    return _output_of("git", "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def surroundings(device: torch.device, command: str) -> dict[str, Any]:
    """What every row says about where it was measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name, driver = (models or [platform.processor() or platform.machine()])[0], None
    return {
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "processors": os.cpu_count(),
        "driver": driver.splitlines()[0] if driver else None,
        "torch": torch.__version__,
        "stratcore": stratcore.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
    }


# ---- rows


@dataclass(frozen=True)
class Job:
    """One case in one mode: what is computed, and the least work that it takes."""

    op: str
    case: str
    mode: str
    shapes: dict[str, Any]
    dtype: torch.dtype
    flops: float
    bytes: float


@dataclass
class Recorder:
    """Gates, times and writes rows, one JSON line each, as they come."""

    device: torch.device
    budget: Budget
    command: str
    out: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._surroundings = surroundings(self.device, self.command)
        self._ceilings: dict[tuple[torch.dtype, str], Ceilings] = {}
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text("")

    def ceilings(self, dtype: torch.dtype) -> Ceilings:
        """Measured once for each dtype and matmul precision."""
        key = (dtype, torch.get_float32_matmul_precision())
        if key not in self._ceilings:
            self._ceilings[key] = measure_ceilings(self.device, dtype, self.budget)
        return self._ceilings[key]

    def record(self, job: Job, provider: str, call: Call, gate: Gate) -> dict[str, Any]:
        """Times `call` if its gate passed; writes and returns the row."""
        row = {
            "op": job.op,
            "provider": provider,
            "mode": job.mode,
            "case": job.case,
            "shapes": job.shapes,
            "dtype": str(job.dtype).removeprefix("torch."),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "gate": gate.passed,
            "max_error": gate.max_error if math.isfinite(gate.max_error) else None,
            "relative_error": gate.relative_error if math.isfinite(gate.relative_error) else None,
        }
        row |= self._speed(job, call) if gate.passed else {"error": gate.text}
        row |= self._surroundings
        self.rows.append(row)
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def _speed(self, job: Job, call: Call) -> dict[str, Any]:
        ceilings = self.ceilings(job.dtype)
        memory = peak_memory(call, self.device)
        timing = measure(call, self.device, self.budget)
        seconds = timing.p50_ms / 1e3
        return asdict(timing) | {
            "peak_mib": memory,
            "flops": job.flops,
            "bytes": job.bytes,
            "tflop_per_s": job.flops / seconds / 1e12,
            "gb_per_s": job.bytes / seconds / 1e9,
            "floor_ms": ceilings.floor_ms(job.flops, job.bytes),
            "roofline_share": ceilings.floor_ms(job.flops, job.bytes) / timing.p50_ms,
            "ceiling_tflop_per_s": ceilings.flops_per_s / 1e12,
            "ceiling_gb_per_s": ceilings.bytes_per_s / 1e9,
        }
