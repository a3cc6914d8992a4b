"""Legend: E experts, B rows, D input size, Q query size, R rank."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stratcore.layers import QueryKeyGate, expert_weights

pytestmark = pytest.mark.usefixtures("single_thread")
LEVELS = (8, 12, 16)


def two_lines(count: int = 100, dim: int = 6, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Two strata through one center, every point with its mirror image: x and -x of both."""
    generator = torch.Generator().manual_seed(4)
    along = 0.5 + torch.rand(2 * count, 1, generator=generator)
    axes = torch.eye(dim)[:2].repeat_interleave(count, 0)
    half = along * axes + noise * torch.randn(2 * count, dim, generator=generator)
    label = torch.arange(2).repeat_interleave(count)
    return torch.cat([half, -half]), torch.cat([label, label])


def fitted(energy_rank: int, x_BD: Tensor, label_B: Tensor, experts: int = 2) -> QueryKeyGate:
    torch.manual_seed(0)
    gate = QueryKeyGate(x_BD.shape[1], experts, query_dim=16, energy_rank=energy_rank)
    gate.fit(x_BD, label_B, torch.zeros(experts, x_BD.shape[1]))
    return gate


def test_logits_are_those_of_the_formula():
    gate = QueryKeyGate(5, 3, query_dim=4, energy_rank=2).double()
    with torch.no_grad():
        gate.energies.normal_()
        gate.centers.normal_()
    x = torch.randn(7, 5, dtype=torch.float64)
    logits = gate(x)
    for b in range(7):
        query = gate.query.weight @ x[b] + gate.query.bias
        for e in range(3):
            energy = sum(
                gate.energies[e, r] * (gate.directions[e, r] @ (x[b] - gate.centers[e])) ** 2
                for r in range(2)
            )
            torch.testing.assert_close(logits[b, e], query @ gate.keys[e] / math.sqrt(4) + energy)


def test_the_energy_is_even_around_its_center():
    gate = QueryKeyGate(5, 3, query_dim=4, energy_rank=2).double()
    with torch.no_grad():
        gate.energies.normal_()
        gate.centers.normal_()
        gate.query.weight.zero_()
    offset = torch.randn(5, dtype=torch.float64)
    for e in range(3):
        ahead, behind = gate((gate.centers[e] + torch.stack([offset, -offset])).detach())[:, e]
        torch.testing.assert_close(ahead, behind)


def test_no_affine_gate_owns_x_and_minus_x_of_two_strata():
    x, label = two_lines()
    chosen = fitted(0, x, label)(x).argmax(-1)
    right = (chosen == label).view(2, 2, -1)  # sign, stratum, point
    both_signs = right.all(0).double().mean(-1)
    assert both_signs.min() == 0.0, both_signs
    assert right.double().mean() <= 0.6


def test_the_energy_gate_owns_them():
    x, label = two_lines()
    assert (fitted(2, x, label)(x).argmax(-1) == label).double().mean() > 0.98


def test_an_affine_gate_separates_strata_by_where_they_lie():
    x = torch.cat([torch.randn(100, 6) + 4, torch.randn(100, 6) - 4])
    label = torch.arange(2).repeat_interleave(100)
    assert (fitted(0, x, label)(x).argmax(-1) == label).all()


def test_fit_is_deterministic_starts_at_the_centers_and_leaves_no_gradient():
    x, label = two_lines(30)
    first, second = fitted(2, x, label), fitted(2, x, label)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None
    gate = QueryKeyGate(6, 2, energy_rank=2)
    centers = torch.randn(2, 6)
    with torch.no_grad():
        gate.fit(x, label, centers, steps=0)
    assert torch.equal(gate.centers, centers)


def test_every_parameter_of_a_fresh_gate_gets_a_gradient():
    gate = QueryKeyGate(6, 3, energy_rank=4)
    x, label = two_lines(30)
    torch.nn.functional.cross_entropy(gate(x), label).backward()
    without = [name for name, p in gate.named_parameters() if not (p.grad.isfinite().all() and p.grad.any())]
    assert without == []


# ---- mixture weights

LOGITS = torch.tensor([[0.70, 0.20, 0.10], [0.30, 0.25, 0.45], [0.10, 0.30, 0.60], [0.05, 0.05, 0.90]]).log()


def test_soft_weights_are_the_softmax():
    torch.testing.assert_close(expert_weights(LOGITS, "soft", LEVELS), LOGITS.exp())


def test_straight_through_takes_the_most_probable():
    weights = expert_weights(LOGITS, "straight_through", LEVELS)
    assert weights.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("levels", "threshold", "chosen"),
    [
        (LEVELS, 0.5, [0, 0, 1, 2]),  # .30 and .25 of .45 are eligible, .10 of .60 is not, .30 of .60 just is
        ((16, 12, 8), 0.5, [0, 2, 2, 2]),
        ((12, 8, 16), 0.5, [0, 1, 1, 2]),
        (LEVELS, 1.0, [0, 2, 2, 2]),
        (LEVELS, 0.0, [0, 0, 0, 0]),
        ((8, 8, 8), 0.2, [0, 0, 1, 2]),  # a tie goes to the lower index
    ],
)
def test_threshold_takes_the_lowest_sparsity_among_the_eligible(levels, threshold, chosen):
    weights = expert_weights(LOGITS.double(), "threshold", levels, threshold - 1e-6 if threshold else 0.0)
    assert weights.argmax(-1).tolist() == chosen


@pytest.mark.parametrize("selection", ["soft", "straight_through", "threshold"])
def test_weights_sum_to_one(selection):
    logits = 4 * torch.randn(500, 7)
    weights = expert_weights(logits, selection, tuple(range(8, 36, 4)))
    torch.testing.assert_close(weights.sum(-1), torch.ones(500))
    if selection != "soft":
        assert set(weights.unique().tolist()) == {0.0, 1.0}, "a hard choice is exactly one-hot"


@pytest.mark.parametrize("selection", ["straight_through", "threshold"])
def test_hard_choices_have_the_gradient_of_the_softmax(selection):
    values = torch.randn(4, 3)
    gradients = []
    for rule in ("soft", selection):
        logits = LOGITS.clone().requires_grad_()
        (expert_weights(logits, rule, LEVELS) * values).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0.05


def test_an_unknown_selection_is_one_clear_line():
    with pytest.raises(
        ValueError, match="selection: expected one of soft, straight_through, threshold, got 'top'"
    ):
        expert_weights(LOGITS, "top", LEVELS)
