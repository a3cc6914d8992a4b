"""Random generators (seeding, state) and the switch for deterministic kernels."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_RANK_STRIDE = 1_000_003


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the generators of Python, NumPy and torch (CPU and every GPU).

    Args:
        seed: An integer in [0, 2^32).
        rank: Ranks draw from different streams; rank 0 is seeded with `seed` itself.

    Raises:
        ValueError: The seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected an integer in [0, 2^32), got {seed!r}")
    value = (seed + _RANK_STRIDE * rank) % 2**32
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def capture_random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the state of every generator as tensors and JSON scalars.

    Args:
        device: The CUDA device whose generator belongs to it; None or a CPU device captures none.

    Returns:
        A dictionary for `restore_random_state`; all of its tensors are on the CPU.
    """
    version, words, gauss_next = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": {"version": version, "words": torch.tensor(words), "gauss_next": gauss_next},
        "numpy": {
            "algorithm": str(algorithm),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Put every generator back to a captured state, bitwise.

    Args:
        state: What `capture_random_state` returned.
        device: The CUDA device to restore, where the state holds one.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss_next"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["algorithm"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Undo within-block draws, so that evaluating more often does not change the training."""
    state = capture_random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


def request_deterministic_cublas() -> None:
    """Ask cuBLAS for its reproducible workspace; it reads the variable once, when CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use deterministic kernels only within the block; the process's own settings come back after it.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    request_deterministic_cublas()
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    was_benchmark = torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    was_fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.backends.cudnn.benchmark = False
    # Filling every fresh tensor finds reads of uninitialized memory; it is for tests and costs a pass each.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warn_only)
        torch.backends.cudnn.benchmark = was_benchmark
        memory.fill_uninitialized_memory = was_fill
