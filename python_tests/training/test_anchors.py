from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from stratcore.training.anchors import AnchorRevival

CPU = torch.device("cpu")


def test_dead_anchors_go_to_the_rows_farthest_from_the_living() -> None:
    anchors = nn.Parameter(torch.tensor([[2.0, 0, 0], [0, 0, -3.0], [0, 0.5, -0.5], [1.0, 0.1, 0]]))
    rows = normalize(torch.tensor([[1.0, 0, 0], [1.0, 0.2, 0], [0, 1.0, 0], [-1.0, 0, 0.0]]), dim=-1)
    revival = AnchorRevival(4, CPU)
    revival.note((rows[:2] @ normalize(anchors.detach(), dim=-1).mT).argmax(-1))
    assert revival.counts.tolist() == [1, 0, 0, 1]
    assert int(revival.revive(anchors, rows)) == 2
    torch.testing.assert_close(anchors[1], 3.0 * rows[3])  # opposite to both, and of the old length
    torch.testing.assert_close(anchors[2], 0.5**0.5 * rows[2])
    torch.testing.assert_close(anchors[0], torch.tensor([2.0, 0, 0]))
    assert revival.counts.tolist() == [0, 0, 0, 0]


def test_anchors_in_use_stay_bitwise_and_more_dead_ones_than_rows_wait() -> None:
    anchors = nn.Parameter(torch.randn(6, 3))
    before = anchors.detach().clone()
    revival = AnchorRevival(6, CPU)
    revival.note(torch.arange(6))
    assert int(revival.revive(anchors, normalize(torch.randn(4, 3), dim=-1))) == 0
    assert torch.equal(anchors, before)
    rows = normalize(torch.randn(2, 3), dim=-1)
    assert int(revival.revive(anchors, rows)) == 6
    changed = (anchors != before).any(-1)
    assert changed.tolist() == [True, True, False, False, False, False]


def test_a_collapse_is_undone() -> None:
    """All rows near one anchor of 16: after two revivals most anchors have rows."""
    rows = normalize(torch.randn(200, 8) + 3.0 * torch.eye(8)[0], dim=-1)
    anchors = nn.Parameter(-torch.eye(8)[0] + 0.01 * torch.randn(16, 8))
    with torch.no_grad():
        anchors[5] = torch.eye(8)[0]
    revival, used = AnchorRevival(16, CPU), []
    for _ in range(3):
        nearest = (rows @ normalize(anchors.detach(), dim=-1).mT).argmax(-1)
        used.append(nearest.unique().numel())
        revival.note(nearest)
        revival.revive(anchors, rows)
    assert used[0] == 1 and used[2] >= 15


def test_state() -> None:
    first, second = AnchorRevival(3, CPU), AnchorRevival(3, CPU)
    first.note(torch.tensor([0, 2, 2]))
    second.load_state_dict(first.state_dict())
    assert second.counts.tolist() == [1, 0, 2]
