"""Legend: N tokens, E head size."""

from __future__ import annotations

import math

import pytest
import torch

from stratcore import ops
from stratcore.layers import ToroidalRotary
from stratcore.layers.toroidal_rotary import integer_frequencies, lattice_coordinates

LATTICES = [((7,), None), ((4, 3), None), ((4, 6), (2, 3)), ((2, 3, 2), None), ((4, 2, 6), (2, 1, 3))]


# ---- frequencies


@pytest.mark.parametrize(
    ("period", "count", "wanted"),
    [
        (2048, 6, [1, 4, 16, 64, 256, 1024]),
        (64, 8, [1, 2, 3, 4, 7, 12, 20, 32]),
        (7, 3, [1, 2, 3]),
        (8, 1, [1]),
        (8, 6, [1, 2, 3, 4, 1, 2]),
        (2, 3, [1, 1, 1]),
        (1, 2, [0, 0]),
        (5, 0, []),
    ],
)
def test_frequencies(period, count, wanted):
    assert integer_frequencies(period, count) == wanted


@pytest.mark.parametrize("period", [16, 101, 1000, 2**24])
def test_frequencies_differ_and_span_the_ring(period):
    for count in range(2, min(130, period // 2)):
        found = integer_frequencies(period, count)
        assert sorted(set(found)) == found and found[0] == 1 and found[-1] == period // 2


# ---- coordinates


@pytest.mark.parametrize(("lattice", "block"), LATTICES)
def test_coordinates_are_those_of_the_op(lattice, block):
    sites = math.prod(lattice)
    order, _ = ops.lattice_order(lattice, block)
    wanted = torch.unravel_index(order, lattice)
    found = lattice_coordinates(torch.arange(2 * sites), lattice, block)
    assert len(found) == len(lattice)
    for axis, coordinate in enumerate(found):
        assert torch.equal(coordinate, wanted[axis].repeat(2))


# ---- the embedding


@pytest.mark.parametrize(("lattice", "block"), LATTICES)
@pytest.mark.parametrize("dim", [6, 9, 16])
def test_products_depend_on_the_difference_modulo_the_periods(lattice, block, dim):
    rotary, sites = ToroidalRotary(dim, lattice, block), math.prod(lattice)
    q, k = (torch.randn(dim).double().expand(1, 1, sites, dim) for _ in range(2))
    turned_q, turned_k = rotary(q, k)
    products = (turned_q @ turned_k.mT)[0, 0]
    coordinates = torch.stack(lattice_coordinates(torch.arange(sites), lattice, block), -1)
    difference = (coordinates[:, None] - coordinates).remainder(torch.tensor(lattice))
    site = sum(difference[..., a] * math.prod(lattice[a + 1 :]) for a in range(len(lattice)))
    for apart in range(sites):
        among = products[site == apart]
        assert len(among) == sites and among.max() - among.min() < 1e-12 * dim


def test_angles_are_whole_turns_a_period():
    rotary = ToroidalRotary(6, (8,))
    assert rotary.frequencies.tolist() == [1, 2, 4]
    angles = rotary.angles(9)
    torch.testing.assert_close(
        angles[:8], 2 * math.pi * (torch.arange(8.0).double()[:, None] * rotary.frequencies % 8) / 8
    )
    assert torch.equal(angles[8], angles[0])


def test_pairs_are_dealt_to_the_axes():
    rotary = ToroidalRotary(11, (8, 4))
    assert rotary.pairs_per_axis == [2, 3] and rotary.frequencies.tolist() == [1, 4, 1, 2, 1]
    angles = rotary.angles(32)
    along_second = angles[:4]  # the first axis stands at 0
    assert torch.equal(along_second[:, :2], torch.zeros(4, 2).double()) and along_second[1, 2:].min() > 0


def test_positions_far_away_are_exact():
    rotary = ToroidalRotary(8, (12,))
    x = torch.randn(1, 2, 12, 8)
    near, far = rotary(x, x), rotary(x, x, offset=12 * 10**15)
    assert torch.equal(near[0], far[0]) and torch.equal(near[1], far[1])


def test_lengths_stay_and_the_odd_channel_too():
    rotary, x = ToroidalRotary(7, (5,)), torch.randn(2, 3, 5, 7).double()
    turned, _ = rotary(x, x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 6], x[..., 6]) and torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.allclose(turned[..., :6], x[..., :6])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept_and_rounded_once(dtype):
    rotary, x = ToroidalRotary(8, (100,)), torch.randn(1, 1, 100, 8).double()
    turned, _ = rotary(x.to(dtype), x.to(dtype))
    exact, _ = rotary(x.to(dtype).double(), x)
    assert turned.dtype == dtype
    error = ((turned.double() - exact).abs().max() / exact.abs().max()).item()
    assert error <= {torch.float64: 0, torch.float32: 2e-7, torch.bfloat16: 2**-8}[dtype]


def test_frequencies_survive_a_change_of_dtype_and_are_saved():
    rotary = ToroidalRotary(16, (4096,)).bfloat16()
    assert rotary.frequencies.dtype == torch.int64 and rotary.frequencies[-1] == 2048
    with torch.device("meta"):
        empty = ToroidalRotary(16, (4096,))
    empty.to_empty(device="cpu").load_state_dict(rotary.state_dict())
    assert torch.equal(empty.frequencies, rotary.frequencies)
    empty.frequencies.zero_()
    empty.reset_parameters()
    assert torch.equal(empty.frequencies, rotary.frequencies)


def test_rejects_too_few_channels():
    with pytest.raises(ValueError, match="head_dim: expected at least 6 channels to turn on 3 axes, got 5"):
        ToroidalRotary(5, (4, 4, 4))
