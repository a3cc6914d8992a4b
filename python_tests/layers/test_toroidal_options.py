from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from stratcore import ops
from stratcore.layers import ToroidalAttentionOptions, normalized_slopes
from stratcore.layers.toroidal_options import METRICS, METRICS_PER_AXIS


def options(**changes: Any) -> ToroidalAttentionOptions:
    return ToroidalAttentionOptions(**{"dim": 24, "num_heads": 4, "lattice": (8,), "head_dim": 12, **changes})


def test_derived_sizes():
    plain = ToroidalAttentionOptions(dim=24, num_heads=4, lattice=(8,))
    assert (plain.key_heads, plain.channels, plain.slice_dim, plain.group, plain.axes) == (4, 6, 6, 1, (8,))
    factored = options(num_key_heads=2, depth=3)
    assert (factored.key_heads, factored.channels, factored.slice_dim) == (2, 12, 4)
    assert (factored.group, factored.axes) == (1, (8,))
    coupled = options(depth=3, depth_attention="coupled")
    assert (coupled.group, coupled.axes) == (3, (8, 3))
    single = options(depth_attention="coupled")
    assert (single.group, single.axes) == (1, (8,))


def test_normalized_slopes_are_a_fixed_share_of_a_turn():
    assert normalized_slopes(0.5, (8, 4)) == (0.0625, 0.125)
    slopes = torch.tensor([normalized_slopes(0.1, (2048, 4))])
    assert torch.equal(slopes, torch.tensor([[0.1 / 2048, 0.1 / 4]]))
    # at most strength / 2 an axis: half a turn of both takes .1 off, as the source documents' lambda of .1 does
    assert math.isclose(slopes[0, 0].item() * 1024 + slopes[0, 1].item() * 2, 0.1, rel_tol=1e-6)


def test_metrics_are_those_of_the_op():
    q = torch.randn(1, 1, 2, 4)
    for metric in METRICS:
        ops.toroidal_attention(q, q, q, torch.ones(1), lattice=(2, 2), metric=metric)
        if metric in METRICS_PER_AXIS:
            ops.toroidal_attention(q, q, q, torch.ones(1, 2), lattice=(2, 2), metric=metric)
        else:
            with pytest.raises(ValueError, match="slopes"):
                ops.toroidal_attention(q, q, q, torch.ones(1, 2), lattice=(2, 2), metric=metric)
    with pytest.raises(ValueError, match=f"expected metric to be one of {', '.join(METRICS)}, got 'l3'"):
        ops.toroidal_attention(q, q, q, torch.ones(1), lattice=(2, 2), metric="l3")


def test_frozen_and_replaceable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        options().dim = 3  # type: ignore[misc]
    assert dataclasses.replace(options(), causal=True).causal
    with pytest.raises(ValueError, match="metric"):
        dataclasses.replace(options(), metric="l0")


@pytest.mark.parametrize(
    "changes",
    [
        {"lattice": (1,)},
        {"lattice": (2**24,)},
        {"lattice": (4, 2), "depth": 3, "depth_attention": "coupled", "rotary": False},
        {"lattice": (4, 2, 6), "block": (2, 1, 3)},
        {"slopes": 0.0},
        {"slopes": -1.0},
        {"slopes": (1, 2.0), "lattice": (4, 4)},
        {"slopes": (1.0,), "metric": "l2"},
        {"slopes": 0.5, "metric": "linf", "lattice": (4, 4), "learn_slopes": True},
        {"window": 0},
        {"head_dim": 1, "rotary": False},
        {"fusion": "mean"},
    ],
)
def test_accepts(changes):
    options(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"num_heads": 0}, "num_heads: expected at least 1, got 0"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
        ({"head_dim": None, "dim": 26}, "dim: expected a multiple of num_heads = 4 .* got 26"),
        ({"num_key_heads": 3}, "num_key_heads: expected a divisor of num_heads = 4, got 3"),
        ({"num_key_heads": 0}, "num_key_heads: expected a divisor of num_heads = 4, got 0"),
        ({"depth": 5}, "head_dim: expected a multiple of depth = 5, got 12 channels a head"),
        ({"head_dim": 0}, "head_dim: expected a multiple of depth = 1, got 0"),
        ({"head_dim": 257}, "head_dim: expected at most 256 channels a slice, got 257"),
        ({"lattice": ()}, r"lattice: expected periods .* got \(\)"),
        ({"lattice": (4, 0)}, r"lattice: expected periods .* got \(4, 0\)"),
        ({"lattice": (2**24 + 1,)}, "lattice: expected periods"),
        ({"lattice": (2, 2, 2, 2)}, "on 1 to 3 axes"),
        (
            {"lattice": (2, 2, 2), "depth": 2, "depth_attention": "coupled"},
            r"coupled depth included, got \(2, 2, 2, 2\)",
        ),
        ({"block": (3,)}, r"block: expected sizes that divide lattice = \(8,\), got \(3,\)"),
        ({"block": (2, 2)}, "block: expected sizes that divide"),
        ({"block": (0,)}, "block: expected sizes that divide"),
        ({"metric": "cosine"}, "metric: expected one of l1, l2, linf, chordal, chordal_sq, got 'cosine'"),
        ({"slopes": "geometric"}, "slopes: expected 'alibi', a number or one an axis, got 'geometric'"),
        ({"slopes": (1.0, 2.0)}, r"slopes: expected one for each axis of \(8,\), got \(1.0, 2.0\)"),
        (
            {"slopes": (1.0, 2.0), "lattice": (4, 4), "metric": "l2"},
            "slopes: expected a single one with metric 'l2'.*l1 and chordal_sq take one an axis",
        ),
        ({"slopes": math.nan}, "slopes: expected finite numbers, got nan"),
        ({"slopes": 0.0, "learn_slopes": True}, "slopes: expected positive numbers to learn from, got 0.0"),
        ({"window": -1}, "window: expected at least 0, on a lattice of one axis, got -1"),
        ({"window": 2, "lattice": (4, 4)}, r"on a lattice of one axis, got 2 on \(4, 4\)"),
        (
            {"head_dim": 3, "lattice": (4, 4)},
            "rotary: expected at least 4 channels a slice, two an axis, got 3",
        ),
        (
            {"depth": 4, "depth_attention": "coupled"},
            "rotary: expected at least 4 channels a slice, two an axis, got 3",
        ),
        ({"depth_attention": "stacked"}, "depth_attention: expected 'factored' or 'coupled', got 'stacked'"),
        ({"fusion": "sum"}, "fusion: expected one of low_rank, attention, mean or None, got 'sum'"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"eps": -0.1}, r"eps: expected a number in \[0, 1\), got -0.1"),
    ],
)
def test_rejects(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


@pytest.mark.parametrize("name", ["lattice", "block"])
def test_rejects_a_bare_number(name):
    with pytest.raises(TypeError, match=f"{name}: expected a tuple of whole numbers, got 8"):
        options(**{name: 8})
