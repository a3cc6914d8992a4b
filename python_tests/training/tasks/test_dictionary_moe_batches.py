"""Batches of the dictionary task: their order, their ranks, and where an epoch is resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from python_tests.training.tasks.dictionary_moe_cases import drawn, small_task
from stratcore.models import DictionaryMoE, DictionaryMoEOptions
from stratcore.training import Runtime
from stratcore.training.tasks import DictionaryMoETask, ObjectiveOptions, Rows

pytestmark = pytest.mark.usefixtures("single_thread")


def test_batches_cover_each_row_once_an_epoch():
    task = small_task()
    epochs = [torch.cat(list(task.batches(epoch, 0))) for epoch in (0, 1)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(40))
    assert not torch.equal(*epochs) and torch.equal(epochs[0], torch.cat(list(task.batches(0, 0))))
    assert [len(batch) for batch in small_task(rows=39).batches(0, 0)] == [8] * 4


def test_batches_depend_on_the_seed_and_not_on_global_generators():
    first = torch.cat(list(small_task().batches(3, 0)))
    torch.rand(9)
    assert torch.equal(first, torch.cat(list(small_task().batches(3, 0))))
    other = small_task()
    other._seed = 6
    assert not torch.equal(first, torch.cat(list(other.batches(3, 0))))


def test_starting_inside_an_epoch_is_a_jump_and_no_replay():
    task = small_task()
    whole = list(task.batches(2, 0))
    for start in range(6):
        assert [b.tolist() for b in task.batches(2, start)] == [b.tolist() for b in whole[start:]]
    rows = Rows(torch.zeros(1_000_000, 1), torch.zeros(1_000_000, dtype=torch.long))
    tiny = DictionaryMoE(DictionaryMoEOptions(input_dim=1, atoms=1, sparsities=(1,), candidates=1))
    many = DictionaryMoETask(
        tiny, rows, rows, ObjectiveOptions(), Runtime.create("cpu"), batch_size=1, seed=0
    )
    seconds = []
    for start in (0, 999_999) * 3:
        begun = time.perf_counter()
        next(many.batches(0, start))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds[1::2]) < min(seconds[::2]) + 0.3  # a replay of a million batches costs more


@dataclass(frozen=True)
class OneOfTwo:
    rank: int
    world_size: int = 2
    device: torch.device = torch.device("cpu")


def test_ranks_take_disjoint_halves_of_every_batch():
    tasks = [small_task(rows=39)]
    for rank in (0, 1):
        tasks.append(
            DictionaryMoETask(
                tasks[0].model, drawn(39), drawn(9), ObjectiveOptions(), OneOfTwo(rank), batch_size=8, seed=5
            )
        )
    batches = [list(task.batches(1, 1)) for task in tasks]
    assert len({len(b) for b in batches}) == 1 and len(batches[0]) == 3
    for whole, first, second in zip(*batches, strict=True):
        assert torch.equal(whole, torch.cat([first, second])) and len(first) == len(second) == 4
    with pytest.raises(ValueError, match="batch_size: expected a multiple of 2 ranks"):
        DictionaryMoETask(
            tasks[0].model, drawn(), drawn(), ObjectiveOptions(), OneOfTwo(0), batch_size=7, seed=5
        )
