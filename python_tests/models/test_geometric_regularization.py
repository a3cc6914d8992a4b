"""The losses that failed: values by hand, signs, pads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratcore.models import geometric_losses


def by_hand(rows: list[np.ndarray]) -> dict[str, float]:
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1).ravel() for x in rows]
    d = np.concatenate(distances)
    bends = [np.linalg.norm(x[2:] - 2 * x[1:-1] + x[:-2], axis=-1) for x in rows]
    eigenvalues = np.linalg.eigvalsh(np.cov(np.concatenate(rows).T))
    return {
        "strata": 1 - np.exp(-d / (2 * d.var(ddof=1))).mean(),
        "curvature": np.concatenate(bends).mean(),
        "manifold": eigenvalues[eigenvalues < 0.01].sum(),
    }


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_values_by_hand_without_pads(scale: float) -> None:
    x = scale * torch.randn(3, 7, 4, dtype=torch.float64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    mask[2, :2] = False
    rows = [row[keep].numpy() for row, keep in zip(x, mask, strict=True)]
    expected = by_hand(rows)
    x[~mask] = float("nan")
    losses = geometric_losses(x, mask)
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(expected, rel=1e-10, abs=1e-14)
    source = geometric_losses(x, mask, signs="source")
    assert float(source["strata"]) == pytest.approx(1 - expected["strata"], rel=1e-10)
    assert (expected["manifold"] > 0) == (scale == 0.1)


def test_fewer_tokens_than_channels_give_the_same_eigenvalues() -> None:
    x = 0.05 * torch.randn(1, 5, 9, dtype=torch.float64)
    expected = by_hand([x[0].numpy()])["manifold"]
    assert float(geometric_losses(x)["manifold"]) == pytest.approx(expected, rel=1e-9)


def test_signs_draw_together_or_drive_apart() -> None:
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    pulled = {}
    for signs in ("corrected", "source"):
        leaf = x.clone().requires_grad_()
        geometric_losses(leaf, signs=signs)["strata"].backward()
        moved = x - 1e-4 * leaf.grad / leaf.grad.norm()
        before, after = by_hand(list(x.numpy())), by_hand(list(moved.numpy()))
        pulled[signs] = after["strata"] - before["strata"]
    assert pulled["corrected"] < 0 < pulled["source"]
    assert pulled["corrected"] == pytest.approx(-pulled["source"], rel=1e-3)


def test_gradient_is_finite_where_tokens_coincide_and_eigenvalues_repeat() -> None:
    for x in (torch.zeros(2, 4, 3), torch.eye(4)[None] * 0.05, torch.randn(2, 1, 3)):
        leaf = x.clone().requires_grad_()
        sum(geometric_losses(leaf).values()).backward()
        assert leaf.grad.isfinite().all()


def test_gradient_of_the_eigenvalues_by_differences() -> None:
    x = (0.08 * torch.randn(1, 8, 3, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(8)[None] < 7
    assert torch.autograd.gradcheck(lambda x: geometric_losses(x, mask)["manifold"], x)
    assert torch.autograd.gradcheck(lambda x: geometric_losses(x, mask)["curvature"], x)


def test_pads_alone_give_zero_distance_and_bend() -> None:
    losses = geometric_losses(torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool))
    assert float(losses["curvature"]) == float(losses["manifold"]) == 0.0 and float(losses["strata"]) == 1.0


def test_unknown_signs_are_refused() -> None:
    with pytest.raises(ValueError, match="signs: expected 'corrected' or 'source', got 'both'"):
        geometric_losses(torch.randn(1, 2, 3), signs="both")
