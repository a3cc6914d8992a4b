"""Legend: H heads, A axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stratcore import ops
from stratcore.huggingface import ToroidalBias, Torus
from stratcore.huggingface.bias import initial_slopes

RING = Torus(lattice=8)
PLANE = Torus(lattice=(4, 4), per_axis=True)


def test_shapes_to_start_from() -> None:
    assert initial_slopes(0.25, 3, RING).tolist() == [0.25] * 3
    assert initial_slopes([1, 2, 3], 3, RING).tolist() == [1, 2, 3]
    torch.testing.assert_close(initial_slopes("alibi", 8, RING), ops.alibi_slopes(8))
    assert initial_slopes(0.5, 2, PLANE).tolist() == [[0.5, 0.5]] * 2
    assert initial_slopes(torch.tensor([1.0, 2.0]), 2, PLANE).tolist() == [[1, 1], [2, 2]]
    assert initial_slopes([[1.0, 2.0], [3.0, 4.0]], 2, PLANE).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("slopes", "torus", "message"),
    [
        ("alibis", RING, "numbers or 'alibi', got 'alibis'"),
        ([1.0, 2.0], RING, r"one number or shape \[3\], got \[2\]"),
        ([[1.0, 2.0]] * 3, RING, r"shape \[3\], got \[3, 2\]"),
        ([1.0] * 4, PLANE, r"shape \[3, 2\], got \[4\]"),
        (float("nan"), RING, "finite"),
        (0.0, Torus(lattice=8, parameterization="softplus"), "'linear' may start at 0"),
    ],
)
def test_refused_starts(slopes: Any, torus: Torus, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initial_slopes(slopes, 3, torus)


@pytest.mark.parametrize("parameterization", ["linear", "softplus", "fixed"])
def test_starts_where_it_is_told(parameterization: str) -> None:
    start = torch.tensor([1e-6, 0.004, 1.0, 60.0])
    bias = ToroidalBias(Torus(lattice=8, parameterization=parameterization), start)
    torch.testing.assert_close(bias(), start, rtol=2e-6, atol=0)
    assert [name for name, _ in bias.named_parameters()] == (
        [] if parameterization == "fixed" else ["raw_slopes"]
    )
    assert list(bias.state_dict()) == ["raw_slopes"]


def test_softplus_stays_positive() -> None:
    bias = ToroidalBias(Torus(lattice=8, parameterization="softplus"), torch.tensor([0.5, 0.5]))
    with torch.no_grad():
        bias.raw_slopes.copy_(torch.tensor([-20.0, 3.0]))
    slopes = bias()
    assert bool((slopes > 0).all())
    (gradient,) = torch.autograd.grad(slopes.sum(), bias.raw_slopes)
    torch.testing.assert_close(gradient, torch.sigmoid(torch.tensor([-20.0, 3.0])))


def test_slopes_of_a_half_precision_host_are_float32() -> None:
    bias = ToroidalBias(RING, torch.tensor([0.5])).to(torch.bfloat16)
    assert bias().dtype == torch.float32


def test_says_what_it_is() -> None:
    assert "lattice=(8,)" in repr(ToroidalBias(RING, torch.zeros(3))) and "heads=3" in repr(
        ToroidalBias(RING, torch.zeros(3))
    )
