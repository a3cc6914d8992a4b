from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stratcore.training.mastery import EmbeddingQueue, Mastery, MasteryOptions

CPU = torch.device("cpu")
SMALL = MasteryOptions(
    trigger_batches=3, capacity=8, least=4, most=16, resize=4, cooldown=2, margin_batches=10
)
YES, NO = torch.tensor(True), torch.tensor(False)


def queue(*sizes: int, capacity: int = 8, limit: int = 16) -> EmbeddingQueue:
    """After batches of these sizes; row number i is (i, i) with label i."""
    own, row = EmbeddingQueue(capacity, limit, 2, CPU), 0
    for size in sizes:
        number = torch.arange(row, row + size)
        own.push(number[:, None].expand(-1, 2).float(), number, YES)
        row += size
    return own


def held(own: EmbeddingQueue) -> list[int]:
    rows, labels = own.in_order()
    kept = labels[labels >= 0].tolist()
    assert rows[labels >= 0][:, 0].tolist() == kept
    return kept


# ---- queue


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), []),
        ((3,), [0, 1, 2]),
        ((5, 5), [2, 3, 4, 5, 6, 7, 8, 9]),
        ((8, 8), [*range(8, 16)]),
        ((3, 12), [*range(7, 15)]),
    ],
)
def test_the_oldest_rows_make_room(sizes: tuple[int, ...], expected: list[int]) -> None:
    assert held(queue(*sizes)) == expected


def test_it_starts_empty_and_takes_nothing_unwanted() -> None:
    own = queue()
    assert (own.labels == -1).all()
    own.push(torch.ones(3, 2), torch.arange(3), NO)
    assert held(own) == [] and int(own._head) == 0
    rows = torch.ones(3, 2, requires_grad=True)
    own.push(rows, torch.arange(3), YES)
    assert not own.rows.requires_grad


@pytest.mark.parametrize("sizes", [(3,), (5, 5), (8, 8)])
@pytest.mark.parametrize("capacity", [4, 12, 16])
def test_resizing_keeps_the_newest_and_goes_on(sizes: tuple[int, ...], capacity: int) -> None:
    own = queue(*sizes)
    before = held(own)
    own.resize(capacity)
    assert own.rows.shape == (capacity, 2) and held(own) == before[-capacity:]
    own.push(torch.full((2, 2), 99.0), torch.full((2,), 99), YES)
    assert held(own) == (before + [99, 99])[-min(capacity, len(before) + 2) :]


# ---- state machine


def accuracies(mastery: Mastery, values: list[float]) -> list[bool]:
    found = []
    for value in values:
        mastery.observe(torch.tensor(value))
        found.append(bool(mastery.active))
    return found


def test_it_starts_after_so_many_mastered_batches_in_a_row_and_stays() -> None:
    mastery = Mastery(SMALL, 2, CPU)
    assert accuracies(mastery, [1, 1, 0.99, 1, 1]) == [False] * 5
    assert accuracies(mastery, [1, 0, 0]) == [True] * 3


def test_the_margin_rises_linearly_from_the_start() -> None:
    mastery = Mastery(SMALL, 2, CPU)
    accuracies(mastery, [1, 1])
    margins = []
    for _ in range(14):
        mastery.observe(torch.tensor(1.0))
        margins.append(float(mastery.margin()))
    expected = [0.1 + 0.02 * min(i, 10) for i in range(14)]
    assert margins == pytest.approx(expected)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(4, 2, generator=generator), dim=-1), torch.tensor([0, 0, 1, 1])


def test_no_loss_and_no_row_before_the_start() -> None:
    mastery = Mastery(SMALL, 2, CPU)
    found = mastery(*batch(0))
    assert float(found.loss) == 0.0 and float(found.active) == 0.0 and held(mastery.queue) == []
    accuracies(mastery, [1, 1, 1])
    found = mastery(*batch(0))
    assert float(found.loss) > 0 and float(found.active) == 1.0
    assert (mastery.queue.labels >= 0).sum() == 4
    again = mastery(*batch(1))  # now against the first batch too
    alone = Mastery(SMALL, 2, CPU)
    accuracies(alone, [1, 1, 1])
    assert float(again.negative) > float(alone(*batch(1)).negative)


def active(**changes: Any) -> Mastery:
    mastery = Mastery(replace(SMALL, **changes), 2, CPU)
    accuracies(mastery, [1, 1, 1])
    return mastery


def sizes(mastery: Mastery, gaps: list[float]) -> list[int]:
    return [mastery.control(0.5 + gap / 100, 0.5) for gap in gaps]


def test_rule_of_the_change() -> None:
    """8.2 -> 11.5 is a change of 3.3 > 3: the source documents' own line of the log, where 4096 became 6144."""
    source = MasteryOptions(trigger_batches=1)
    mastery = Mastery(source, 2, CPU)
    accuracies(mastery, [1])
    assert sizes(mastery, [8.2, 11.5]) == [4096, 6144]
    assert sizes(active(cooldown=0), [8, 10, 13.5, 13.5, 10, 3, -3]) == [8, 8, 12, 12, 8, 4, 4]
    assert sizes(active(), [8, 12, 16, 20, 24, 24]) == [8, 12, 12, 12, 16, 16]  # two evaluations of rest
    assert sizes(active(cooldown=0), [0, 10, 20, 30]) == [8, 12, 16, 16]  # the cap


def test_rule_of_the_level() -> None:
    assert sizes(active(rule="level", cooldown=0), [5, 9.5, 9.5, 2.5]) == [8, 12, 16, 12]
    drifting = [4.0, 4.2, 4.4, 5.0, 6.0, 7.5, 7.5]  # 7.5 - 4.0 > 3, over five evaluations
    assert sizes(active(rule="level", cooldown=0), drifting) == [8, 8, 8, 8, 8, 12, 16]
    falling = [8.5, 8.0, 7.5, 7.0, 6.0, 5.0]
    assert sizes(active(rule="level", cooldown=0), falling)[-1] == 4


def test_no_control_before_the_start_and_none_if_fixed() -> None:
    assert sizes(Mastery(SMALL, 2, CPU), [0, 50, 90]) == [8, 8, 8]
    assert sizes(active(rule="fixed"), [0, 50, 90]) == [8, 8, 8]


def test_a_resumed_one_goes_on_bitwise() -> None:
    """Queue wrapped around and resized, margin half-way, cooldown running."""
    first = active()
    for seed in range(5):
        first.observe(torch.tensor(1.0))
        first(*batch(seed))
    sizes(first, [8, 12])
    first(*batch(9))
    second = Mastery(SMALL, 2, CPU)
    second.load_state_dict(first.state_dict())
    for seed in range(6, 12):
        results = []
        for mastery in (first, second):
            mastery.observe(torch.tensor(0.5))
            results.append(torch.stack([*mastery(*batch(seed))]))
            results.append(torch.tensor([*sizes(mastery, [seed * seed])]))
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert torch.equal(first.queue.rows, second.queue.rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "x"}, "mastery.rule: expected one of fixed, change, level, got 'x'"),
        ({"capacity": 100}, r"mastery.capacity: expected a number in \[least, most\] = \[4, 16\], got 100"),
        ({"resize": 0}, "mastery.resize: expected a number >= 1, got 0"),
        ({"low": 10.0}, "mastery.cooldown, change, low"),
        ({"trigger_accuracy": 0.0}, r"mastery.trigger_accuracy: expected a share in \(0, 1\], got 0.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **changes)
