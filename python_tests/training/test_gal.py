from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stratcore.layers.sphere import rotation_power
from stratcore.training.gal import (
    GALAlignment,
    GALOptions,
    class_centers,
    gal_loss,
    match_anchors,
    turn_anchors,
)

DIM = 12


def plane_turn(angle: float, first: int = 0, second: int = 1) -> Tensor:
    turn = torch.eye(DIM, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    turn[first, first], turn[first, second], turn[second, first], turn[second, second] = c, s, -s, c
    return turn


def test_hungarian_matching_is_injective_and_best() -> None:
    anchors = torch.eye(DIM, dtype=torch.float64)[:4]
    centers = normalize(torch.stack([anchors[0] + 0.3 * anchors[1], anchors[0] + 0.1 * anchors[2]]), dim=-1)
    assert match_anchors(centers, anchors, "nearest").tolist() == [0, 0]
    assert match_anchors(centers, anchors).tolist() == [1, 0]  # .287 + .995 against .958 + .0995
    with pytest.raises(ValueError, match="expected at most 4 centers, one an anchor, got 5"):
        match_anchors(torch.randn(5, DIM, dtype=torch.float64), anchors)


def test_the_minimal_turn_leaves_alone_what_no_pair_asks_for() -> None:
    """Two anchors turned by 0.4 in a plane; the rest of space must stay. The published rule turns it at random."""
    anchors = torch.eye(DIM, dtype=torch.float64)
    centers = anchors[:2] @ plane_turn(0.4)
    matched = torch.tensor([0, 1])
    turned = turn_anchors(anchors, centers, matched, 0.25)
    torch.testing.assert_close(turned[2:], anchors[2:], atol=1e-9, rtol=0)
    torch.testing.assert_close(turned[:2], anchors[:2] @ plane_turn(0.1), atol=1e-9, rtol=0)
    torch.testing.assert_close(turned @ turned.mT, torch.eye(DIM, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64)).Q
    reference = turn_anchors(anchors @ basis, centers @ basis, matched, 0.25, "reference")
    assert float((reference[2:] - (anchors @ basis)[2:]).norm(dim=-1).mean()) > 0.1


def test_anchors_arrive_at_the_centers() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = normalize(torch.randn(20, DIM, dtype=torch.float64, generator=generator), dim=-1)
    skew = torch.randn(DIM, DIM, dtype=torch.float64, generator=generator)
    centers = (anchors @ rotation_power(torch.matrix_exp(0.05 * (skew - skew.mT)), 1.0))[:5]
    for _ in range(30):
        matched = match_anchors(centers, anchors)
        anchors = turn_anchors(anchors, centers, matched, 0.3)
    torch.testing.assert_close(anchors[matched], centers, atol=1e-3, rtol=0)


def test_class_centers_leave_out_places_without_a_row() -> None:
    rows = torch.tensor([[1.0, 0], [3.0, 0], [9.0, 9], [0, 2.0]])
    found = class_centers(rows, torch.tensor([2, 2, -1, 0]), 4)
    assert found.tolist() == [[0, 2], [2, 0]]


def test_alignment_acts_at_its_interval_and_resumes() -> None:
    options = GALOptions(capacity=32, interval=3, rate=0.5)
    anchors = normalize(torch.randn(6, 4), dim=-1)
    rows, labels = normalize(torch.randn(16, 4), dim=-1), torch.arange(16) % 3
    own = GALAlignment(options, 4, 3, torch.device("cpu"))
    moved = anchors.clone()
    own.after_step(3, moved)
    assert torch.equal(moved, anchors)  # an empty buffer turns nothing
    own.note(rows, labels)
    own.after_step(4, moved)
    assert torch.equal(moved, anchors)
    other = GALAlignment(options, 4, 3, torch.device("cpu"))
    other.load_state_dict(own.state_dict())
    again = anchors.clone()
    own.after_step(6, moved)
    other.after_step(6, again)
    assert not torch.equal(moved, anchors) and torch.equal(moved, again)


# ---- loss


def test_gal_loss_of_turned_and_of_other_rows() -> None:
    options = GALOptions(num_simplices=200)
    expert = normalize(torch.randn(40, DIM, dtype=torch.float64), dim=-1)
    turned = expert @ plane_turn(1.0)
    means = (turned.mean(0) - expert.mean(0)).square().sum()
    torch.testing.assert_close(gal_loss(turned, expert, options), 0.1 * means)
    assert float(gal_loss(expert, expert, options)) == 0.0
    shrunk = replace(options, center=0.0, volume=0.0)
    torch.manual_seed(1)
    found = gal_loss(0.5 * expert, expert, shrunk)
    torch.manual_seed(1)
    index = torch.rand(200, 40).topk(5, -1).indices
    distances = torch.stack([torch.pdist(expert[row]).square() for row in index])
    torch.testing.assert_close(found, (0.75 * distances).square().mean())
    # log V of an order of 4 falls by 4 log 2
    volume = gal_loss(0.5 * expert, expert, replace(options, center=0.0)) - found
    assert float(volume) == pytest.approx(0.1 * (4 * 0.6931) ** 2, rel=0.02)


def test_gal_loss_teaches_the_shape_and_not_the_expert() -> None:
    expert = normalize(torch.randn(30, 6), dim=-1).requires_grad_()
    x = torch.randn(30, 6, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        gal_loss(normalize(x, dim=-1), expert, GALOptions(num_simplices=64)).backward()
        optimizer.step()
    assert expert.grad is None
    gram = normalize(x, dim=-1).detach()
    wanted = expert.detach() @ expert.detach().mT
    assert float((gram @ gram.mT - wanted).abs().mean()) < 0.05
    same = torch.ones(6, 6, requires_grad=True)
    gal_loss(same, expert[:6], GALOptions()).backward()
    assert same.grad.isfinite().all()  # degenerate simplices


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matching": "x"}, "gal.matching: expected one of hungarian, nearest, got 'x'"),
        ({"rotation": "x"}, "gal.rotation: expected one of minimal, reference, got 'x'"),
        ({"interval": 0}, "gal.interval: expected a number >= 1, got 0"),
        ({"rate": 2.0}, "gal.rate, volume and center"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(GALOptions(), **changes)
    with pytest.raises(ValueError, match="gal_loss: expected at least 5 rows, got 4"):
        gal_loss(torch.ones(4, 3), torch.ones(4, 3), GALOptions())
