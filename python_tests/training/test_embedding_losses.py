from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stratcore.training import embedding_losses as losses


def unit(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_smoothed_bce_is_its_formula() -> None:
    logits, targets = (
        torch.randn(5, 4, dtype=torch.float64),
        torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0]],
    )
    y = targets * 0.9 + 0.1 / 4
    p = logits.sigmoid()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(losses.smoothed_bce(logits, targets, 0.1), expected)


def test_info_nce_of_one_direction_and_of_both() -> None:
    a, b = unit(6, 8), unit(6, 8)
    logits, own = a @ b.mT / 0.07, torch.arange(6)
    one, both = losses.info_nce(a, b, symmetric=False), losses.info_nce(a, b)
    torch.testing.assert_close(one.loss, cross_entropy(logits, own))
    torch.testing.assert_close(both.loss, 0.5 * (cross_entropy(logits, own) + cross_entropy(logits.mT, own)))
    torch.testing.assert_close(losses.info_nce(b, a).loss, both.loss)  # the other has another value
    assert not torch.allclose(losses.info_nce(b, a, symmetric=False).loss, one.loss)
    assert float(losses.info_nce(a, a).accuracy) == 1.0
    assert float(losses.info_nce(a, a.flip(0)).accuracy) == 0.0
    same = torch.ones(6, 8, dtype=torch.float64) / 8**0.5
    assert float(losses.info_nce(same, same).loss) == pytest.approx(math.log(6))


def test_cross_info_nce_pairs_the_streams_of_different_views() -> None:
    g, s = (unit(6, 8), unit(6, 8)), (unit(6, 8), unit(6, 8))
    expected = 0.5 * (losses.info_nce(g[0], s[1]).loss + losses.info_nce(s[0], g[1]).loss)
    torch.testing.assert_close(losses.cross_info_nce(g, s).loss, expected)


def test_spread() -> None:
    anchors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    # cosines above 0: of the third with the first two, 1 / sqrt 2, each in both orders; of 12 pairs
    assert float(losses.anchor_spread(anchors)) == pytest.approx(4 / math.sqrt(2) / 12)
    assert float(losses.anchor_spread(torch.eye(3))) == 0.0


def test_diversity_of_classes_against_a_loop() -> None:
    x, y = normalize(unit(12, 4) + 1.0, dim=-1), torch.tensor([0] * 5 + [1] * 6 + [2])
    values = []
    for c in (0, 1):  # class 2 has one row, class 3 none
        own = x[y == c]
        cosine = own @ own.mT
        mean = (cosine.sum() - cosine.trace()) / (len(own) * (len(own) - 1))
        values.append(torch.relu(mean - 0.2))
    torch.testing.assert_close(losses.class_diversity(x, y, 4, limit=0.2), torch.stack(values).mean())
    assert float(losses.class_diversity(x[-1:], y[-1:], 4)) == 0.0


def test_anchor_usage_of_even_use_of_collapse_and_of_anchors_that_fall_together() -> None:
    even = 1 - torch.eye(4, dtype=torch.float64)
    assert float(losses.anchor_usage_loss(even, 0.01)) == pytest.approx(0.0, abs=1e-9)
    collapsed = torch.ones(9, 4, dtype=torch.float64)
    collapsed[:, 2] = 0
    assert float(losses.anchor_usage_loss(collapsed, 0.01)) == pytest.approx(math.log(4))
    together = torch.rand(9, 1, dtype=torch.float64).expand(9, 4)
    assert float(losses.anchor_usage_loss(together, 0.01)) == pytest.approx(math.log(4))


def test_hard_pairs_against_a_loop() -> None:
    x, y = unit(7, 5), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    memory, labels = unit(4, 5), torch.tensor([1, -1, 2, 0])
    found = losses.hard_pairs(x, y, memory, labels)
    every, kinds = torch.cat([x, memory]), torch.cat([y, labels])
    for row in range(7):
        same = [j for j in range(11) if kinds[j] == y[row] and j != row]
        other = [j for j in range(11) if kinds[j] not in (-1, y[row])]
        torch.testing.assert_close(found.positive[row], min(x[row] @ every[j] for j in same))
        torch.testing.assert_close(found.negative[row], max(x[row] @ every[j] for j in other))
    expected = torch.relu(found.negative - found.positive + 0.2).mean()
    torch.testing.assert_close(losses.batch_hard_margin(found, 0.2), expected)


def test_rows_without_a_pair_count_nothing() -> None:
    x = unit(3, 5).requires_grad_()
    found = losses.hard_pairs(x, torch.tensor([0, 0, 1]))
    assert found.valid.tolist() == [True, True, False]
    loss = losses.batch_hard_margin(found, 0.5)
    loss.backward()
    assert x.grad.isfinite().all()
    alone = losses.hard_pairs(x.detach(), torch.tensor([0, 1, 2]))
    assert float(losses.batch_hard_margin(alone, 0.5)) == 0.0 and float(alone.mean()[0]) == 0.0


def test_the_gap_of_the_source_documents_log() -> None:
    """hard_neg 0.466 and hard_pos -0.216 were logged with a gap of 0.682."""
    pairs = losses.HardPairs(torch.tensor([0.466]), torch.tensor([-0.216]), torch.tensor([True]))
    assert float(losses.batch_hard_margin(pairs, 0.0)) == pytest.approx(0.682)
