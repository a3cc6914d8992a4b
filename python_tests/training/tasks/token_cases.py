"""Rows of tokens that a tiny host can learn, and hosts for them. Legend: R rows, L tokens of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from python_tests.huggingface.hosts import host
from stratcore.layers import ToroidalBranchOptions
from stratcore.models import ToroidalLM, ToroidalLMOptions


def token_rows(rows: int = 24, length: int = 16, seed: int = 0) -> np.ndarray:
    """[R, L]: a walk of one step up or two from a drawn start, modulo 61."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 3, (rows, length))
    return (rng.integers(0, 61, (rows, 1)) + steps.cumsum(1)) % 61 + 1


def small_lm(dtype: torch.dtype = torch.float32, what: str = "replaced", **options: Any) -> ToroidalLM:
    """A Llama of three layers with one of them toroidal."""
    form = {"layers": (1,), "torus": ToroidalBranchOptions(depth=2, lambda_distance=0.1), **options}
    model = ToroidalLM(host("llama").to(dtype), ToroidalLMOptions(**form))
    model.train_only(what)
    return model
