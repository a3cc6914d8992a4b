"""Runs all cases as one rank under torchrun and writes what it found; started by test_context_parallel.py."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from python_tests.layers.context_parallel_cases import (
    CASES,
    FRUGAL,
    TOLERANCE,
    compare,
    frugal,
    nearly_attained,
    partial_gradients,
    refusals,
)


def main() -> None:
    folder, device = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=60))
    found = {"refusals": refusals(device), "partial gradients": partial_gradients(device)}
    for share in (1.0, 0.98):
        found[f"nearly attained, {share}"] = nearly_attained(device, share)
    for name, (change, options) in FRUGAL.items():
        found[name] = frugal(change, device, **options)
    for name, case in CASES.items():
        for dtype in TOLERANCE:
            for method in ("ring", "all_gather"):
                found[f"{name}, {dtype}, {method}"] = compare(case, getattr(torch, dtype), device, method)
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.all_reduce(torch.zeros(1, device=device))  # nobody leaves while others still listen
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
