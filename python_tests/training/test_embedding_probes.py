from __future__ import annotations

import math

import pytest
import torch

from stratcore.training.embedding_probes import (
    CHUNK,
    detection_auroc,
    familiarity,
    nearest_neighbors,
    neighbor_accuracy,
)


def circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin()), 1)


def test_neighbors_by_cosine_whatever_the_lengths() -> None:
    query = circle(10, 200) * torch.tensor([[3.0], [0.1]])
    cosine, number = nearest_neighbors(query, circle(0, 30, 180, 250) * 5, 2)
    assert number.tolist() == [[0, 1], [2, 3]]
    wanted = [[math.cos(math.radians(d)) for d in row] for row in ((10, 20), (20, 50))]
    assert torch.allclose(cosine, torch.tensor(wanted), atol=1e-6)
    with pytest.raises(ValueError, match=r"k: expected a number in \[1, 4\] references, got 5"):
        nearest_neighbors(query, circle(0, 30, 180, 250), 5)


def test_queries_in_parts_give_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    query, reference = (torch.randn(n, 3, generator=generator) for n in (CHUNK + 7, 20))
    whole = nearest_neighbors(query, reference, 3)
    last = nearest_neighbors(query[CHUNK:], reference, 3)
    assert torch.equal(whole[1][CHUNK:], last[1]) and torch.allclose(whole[0][CHUNK:], last[0], atol=1e-6)


def test_votes_of_neighbors() -> None:
    reference, label = circle(0, 10, 20, 180, 190), torch.tensor([0, 1, 1, 2, 2])
    query = circle(1, 185, 4)
    assert neighbor_accuracy(query, torch.tensor([0, 2, 0]), reference, label, 1) == 1
    assert neighbor_accuracy(query, torch.tensor([1, 2, 0]), reference, label, 3) == pytest.approx(2 / 3)
    # One vote each for 0 and 1: the lower class.
    assert neighbor_accuracy(circle(4), torch.tensor([0]), reference, label, 2) == 1


def test_familiarity_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]])
    found = familiarity(logits, circle(0), circle(0, 60, 90), 2)
    assert float(found["softmax"]) == pytest.approx(0.75)
    assert float(found["energy"]) == pytest.approx(math.log(4))
    assert float(found["neighbor"]) == pytest.approx(0.5)


def test_area_under_the_curve() -> None:
    known = torch.tensor([1.0, 2.0, 3.0])
    assert detection_auroc(known, torch.tensor([0.0, 0.5])) == 1
    assert detection_auroc(known, known) == 0.5
    # Pairs (known, strange) with known higher: 1, 2 and 2 of 2, of 6.
    assert detection_auroc(known, torch.tensor([0.0, 1.5])) == pytest.approx(5 / 6)
