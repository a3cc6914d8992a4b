from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stratcore.training.health import SCANNED, embedding_health, gradient_health, precision_gap


def test_figures_of_a_known_embedding() -> None:
    """Ten tight classes on the axes of 16 dimensions, an anchor on each of the first five."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 10
    x = normalize(torch.eye(16)[labels] + 0.01 * torch.randn(400, 16), dim=-1)
    found = embedding_health(x, labels, torch.eye(16)[:5])
    assert set(found) == set(SCANNED)
    assert found["nearest_neighbor_accuracy"] == 1.0 and found["norm_mean"] == pytest.approx(1.0)
    assert found["self_similarity"] == pytest.approx(0.1, abs=0.02)  # a pair is of one class once in ten
    assert found["same_different_gap"] == pytest.approx(1.0, abs=0.02)
    assert found["effective_dim"] == pytest.approx(9, abs=0.5) and found["anchor_dead_share"] == 0.0
    without = embedding_health(x, labels, None)
    assert not any(name.startswith("anchor") for name in without)


class Halves(nn.Module):
    """Two linear maps; the second is multiplied by a small number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(8, 8), nn.Linear(8, 8), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.scale * self.second(x)


def test_bf16_against_float32() -> None:
    model, x = Halves(1.0), torch.randn(50, 8)

    def read() -> tuple[Tensor, Tensor]:
        y = model(x)
        return y, normalize(y.float(), dim=-1)

    found = precision_gap(read, "cpu")
    assert 1e-4 < found["bf16_logits"] < 0.02 and 0.999 < found["bf16_cosine"] < 1.0
    assert 0 <= found["bf16_flips"] <= 0.1
    assert model(x).requires_grad


def test_a_starved_part_is_found_and_no_gradient_is_left() -> None:
    x = torch.randn(50, 8)
    fed, starved = Halves(1.0), Halves(1e-5)
    assert gradient_health(fed, lambda: fed(x).square().sum())["starved_parts"] == 0.0
    with torch.no_grad():  # as in an evaluation
        found = gradient_health(starved, lambda: starved(x).square().sum())
    assert found["starved_parts"] == 1.0 and found["gradient/second"] == found["least_gradient"] < 1e-4
    assert found["gradient/first"] == pytest.approx(math.sqrt(2), rel=1e-3)
    assert all(p.grad is None for p in starved.parameters())
    unused = gradient_health(starved, lambda: starved.first(x).sum())
    assert unused["gradient/second"] == 0.0
