"""Selections of sparse autoencoders: thresholds of inference, learned thresholds."""

from __future__ import annotations

import pytest
import torch

from stratcore.layers import BatchTopK, JumpReLU


def test_batch_topk_follows_the_least_kept_magnitude():
    layer = BatchTopK(1, momentum=0.75)
    first = torch.tensor([[4.0, -3.0], [1.0, 2.0]])
    assert layer(first).tolist() == [[4.0, -3.0], [0.0, 0.0]]
    assert float(layer.threshold) == 3.0
    layer(first / 3)
    assert float(layer.threshold) == pytest.approx(0.75 * 3 + 0.25 * 1)
    layer(torch.zeros(2, 2))
    layer(torch.zeros(0, 2))
    assert float(layer.threshold) == pytest.approx(2.5)


def test_batch_topk_codes_each_row_alone_at_inference():
    layer = BatchTopK(1)
    x = torch.tensor([[4.0, -3.0], [1.0, 2.0]])
    layer(x)
    layer.eval()
    assert layer(x).tolist() == [[4.0, -3.0], [0.0, 0.0]]
    assert layer(x[1:]).tolist() == [[0.0, 0.0]]
    assert float(layer.threshold) == 3.0
    restored = BatchTopK(1).eval()
    restored.load_state_dict(layer.state_dict())
    assert torch.equal(restored(x), layer(x))


def test_jump_relu_learns_the_number_of_active_entries():
    """A penalty of (mean L0 - 2)^2 moves the thresholds to where 2 of 8 normal entries pass: Phi^-1(.75) = .674."""
    generator = torch.Generator().manual_seed(0)
    layer = JumpReLU(8, threshold=0.1, bandwidth=0.3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (layer(torch.randn(512, 8, generator=generator)).active.mean() - 2).square().backward()
        optimizer.step()
    assert layer.log_threshold.exp().mean().item() == pytest.approx(0.674, abs=0.05)


def test_rejects():
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\), got 1"):
        BatchTopK(3, momentum=1)
    with pytest.raises(ValueError, match="threshold: expected a positive number, got 0"):
        JumpReLU(3, threshold=0)
