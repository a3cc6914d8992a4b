"""What the tests of the dictionary task share. Legend: N rows, B batch rows, E experts, D input size, M atoms."""

from __future__ import annotations

from typing import Any

import torch

from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import Runtime
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

SMALL = DictionaryMoEOptions(
    input_dim=6, atoms=10, sparsities=(1, 2, 3), query_dim=4, energy_rank=2, num_steps=2, backward="masked"
)


def drawn(count: int = 40, dim: int = 6, seed: int = 2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(count, dim, generator=generator), torch.arange(count) % 3)


def small_task(
    options: DictionaryMoEOptions = SMALL, rows: int = 40, batch_size: int = 8, **objective: Any
) -> DictionaryMoETask:
    torch.manual_seed(0)
    return DictionaryMoETask(
        DictionaryMoE(options),
        drawn(rows),
        drawn(20, seed=3),
        ObjectiveOptions(**objective),
        Runtime.create("cpu"),
        batch_size=batch_size,
        seed=5,
    )
