"""Closed forms. Legend: B rows, E experts."""

from __future__ import annotations

import math

import pytest
import torch

from stratcore.training import losses


def drawn(rows: int = 50, experts: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    cost = 10 * torch.randn(rows, experts, generator=generator, dtype=torch.float64)
    return cost, 2 * torch.randn(rows, experts, generator=generator, dtype=torch.float64)


# ---- costs


def test_expected_cost_is_the_weighted_sum():
    cost, weights = torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[0.5, 0.25, 0.25], [0, 1, 0]])
    assert losses.expected_cost(cost, weights).tolist() == [1.75, 5.0]


def test_mixture_cost_is_at_most_the_expected_cost():
    cost, logits = drawn()
    mixture, expected = losses.mixture_cost(cost, logits), losses.expected_cost(cost, logits.softmax(-1))
    assert (mixture < expected).all()
    constant = torch.full_like(cost, 3.0)
    torch.testing.assert_close(losses.mixture_cost(constant, logits), constant[:, 0])
    assert (losses.mixture_cost(cost, logits) >= cost.min(-1).values).all()


def test_mixture_cost_in_numbers():
    cost = torch.tensor([[math.log(2), math.log(4)]], dtype=torch.float64)
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert losses.mixture_cost(cost, even).item() == pytest.approx(math.log(8 / 3), abs=1e-14)
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    assert losses.mixture_cost(cost, logits).item() == pytest.approx(math.log(16 / 7), abs=1e-14)


def test_the_gradient_of_the_mixture_cost_is_the_posterior():
    cost, logits = (t.requires_grad_() for t in drawn())
    losses.mixture_cost(cost, logits).sum().backward()
    prior = logits.detach().softmax(-1)
    posterior = (logits.detach() - cost.detach()).softmax(-1)
    torch.testing.assert_close(cost.grad, posterior)
    torch.testing.assert_close(logits.grad, prior - posterior)


def test_large_costs_keep_their_posterior():
    """Outliers cost a million nats; what decides between two experts is their difference."""
    cost = torch.tensor([[1e6, 2e6], [1e6, 1e6 + 1], [1e30, 1e30]], requires_grad=True)
    value = losses.mixture_cost(cost, torch.tensor([[-50.0, 50.0], [0.0, 0.0], [0.0, 0.0]]))
    value.sum().backward()
    torch.testing.assert_close(value, torch.tensor([1e6 + 100, 1e6, 1e30]))
    posterior = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(cost.grad, torch.tensor([[1, 0], [posterior, 1 - posterior], [0.5, 0.5]]))


# ---- load balance


@pytest.mark.parametrize("experts", [1, 2, 7])
def test_load_balance_from_even_to_one_expert(experts):
    even = torch.eye(experts, dtype=torch.float64).repeat(3, 1)
    assert losses.load_balance(even).item() == pytest.approx(0.0, abs=1e-14)
    one = torch.zeros(5, experts, dtype=torch.float64)
    one[:, -1] = 1
    assert losses.load_balance(one).item() == pytest.approx(experts - 1, abs=1e-14)
    assert losses.load_balance(drawn(experts=experts)[1].softmax(-1)) >= -1e-12


def test_load_balance_pushes_the_load_to_the_even_one():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]], requires_grad=True)
    losses.load_balance(probabilities).backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([[1.8, 0.9, 0.3]]).expand(2, 3))


# ---- contrastive


def test_contrastive_margin_in_numbers():
    """Pairs: same label at distance 5: 25; others at .6 and at 4.4 with margin 1: .16 and 0."""
    points = torch.tensor([[0.0], [5.0], [0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert losses.contrastive_margin(points, labels).item() == pytest.approx((25 + 0.16) / 3, abs=1e-12)
    wide = losses.contrastive_margin(points, labels, margin=5.0).item()
    assert wide == pytest.approx((25 + 4.4**2 + 0.6**2) / 3, abs=1e-12)


def test_contrastive_margin_is_the_mean_over_pairs():
    points, labels = drawn(12, 5)[0] / 20, torch.arange(12) % 3
    total = 0.0
    for i in range(12):
        for j in range(12):
            if i != j:
                d = float((points[i] - points[j]).norm())
                total += d**2 if labels[i] == labels[j] else max(0.0, 1 - d) ** 2
    assert losses.contrastive_margin(points, labels).item() == pytest.approx(total / (12 * 11), rel=1e-12)


def test_contrastive_gradient_at_equal_rows_is_zero_and_finite_elsewhere():
    points = torch.zeros(3, 4, requires_grad=True)
    loss = losses.contrastive_margin(points, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-5) and points.grad.tolist() == [[0.0] * 4] * 3
    near = torch.tensor([[0.0, 0], [0, 0], [0.3, 0]], requires_grad=True)
    losses.contrastive_margin(near, torch.tensor([0, 1, 2])).backward()
    # pair (i, 2): d/dx_2 of (1 - .3)^2 is -2 * .7, twice over ordered pairs, of 6 ordered pairs
    torch.testing.assert_close(near.grad[2], torch.tensor([-2 * 0.7 * 4 / 6, 0.0]))
    assert near.grad.isfinite().all()


def test_contrastive_gradcheck_and_single_row():
    points = (drawn(6, 3)[0] / 15).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda p: losses.contrastive_margin(p, labels, 2.0), (points,))
    assert losses.contrastive_margin(torch.ones(1, 3), torch.tensor([0])).item() == 0.0


# ---- coherence


def test_coherence_of_orthonormal_and_of_equal_atoms():
    orthonormal = torch.linalg.qr(torch.randn(2, 8, 8, dtype=torch.float64)).Q
    assert losses.coherence(orthonormal).item() == pytest.approx(0.0, abs=1e-14)
    assert losses.coherence(orthonormal[:, :, :1].expand(2, 8, 5)).item() == pytest.approx(1.0, abs=1e-12)
    assert losses.coherence(orthonormal[:, :, :1]).item() == pytest.approx(0.0, abs=1e-12)


def test_coherence_is_the_mean_squared_cosine_over_pairs_and_experts():
    atoms = torch.nn.functional.normalize(torch.randn(3, 5, 4, dtype=torch.float64), dim=1)
    total = sum(
        float(atoms[e, :, i] @ atoms[e, :, j]) ** 2
        for e in range(3)
        for i in range(4)
        for j in range(4)
        if i != j
    )
    assert losses.coherence(atoms).item() == pytest.approx(total / (3 * 4 * 3), rel=1e-12)
