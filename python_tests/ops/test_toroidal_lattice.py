"""The order of tokens on a torus, against site arithmetic, and the slopes of ALiBi."""

from __future__ import annotations

import math

import pytest
import torch

from stratcore import ops
from stratcore.ops import reference
from stratcore.ops._toroidal_attention_replay import coordinates

ORDERS = [
    ([7], None),
    ([8], [2]),
    ([4, 6], None),
    ([4, 6], [2, 3]),
    ([8, 12], [4, 3]),
    ([4, 6, 10], [2, 3, 5]),
    ([4, 6, 10], [4, 1, 2]),
]


@pytest.mark.parametrize("lattice, block", ORDERS)
def test_order_and_inverse(lattice, block):
    """order[t] is the row-major site of token t, by the coordinates that the kernel and the reference compute."""
    order, inverse = ops.lattice_order(lattice, block)
    sites = math.prod(lattice)
    assert order.dtype == inverse.dtype == torch.int64
    assert torch.equal(order[inverse], torch.arange(sites)) and torch.equal(
        inverse[order], torch.arange(sites)
    )
    for places in (
        coordinates(torch.arange(sites), lattice, block or lattice),
        reference.lattice_sites(lattice, block).unbind(-1),
    ):
        site = torch.zeros(sites, dtype=torch.int64)
        for period, coordinate in zip(lattice, places, strict=True):
            site = site * period + coordinate
        assert torch.equal(site, order)
    if block is None or len(lattice) == 1:
        assert torch.equal(order, torch.arange(sites))


def test_known_order():
    order, _ = ops.lattice_order([2, 4], [2, 2])
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_block_order_changes_no_result():
    """The same tokens on the same torus, numbered in two ways."""
    q, k, v = torch.randn(3, 1, 2, 96, 8, dtype=torch.float64)
    slopes = ops.alibi_slopes(2)
    order, inverse = ops.lattice_order([8, 12], [4, 3])
    wanted = ops.toroidal_attention(q, k, v, slopes, lattice=[8, 12])
    blocked = [t[..., order, :] for t in (q, k, v)]
    result = ops.toroidal_attention(*blocked, slopes, lattice=[8, 12], block=[4, 3])[..., inverse, :]
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-13)


def test_alibi_slopes():
    assert ops.alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    twelve = ops.alibi_slopes(12)
    assert twelve.dtype == torch.float32 and twelve.shape == (12,) and twelve[-1] == 2.0**-8
    torch.testing.assert_close(twelve[1:] / twelve[:-1], torch.full((11,), 2.0 ** (-8 / 12)))


def test_rejects():
    for lattice, block, message in (
        ([], None, "expected lattice of 1 to 3 periods"),
        ([4, 0], None, "expected lattice of 1 to 3 periods"),
        ([2**25], None, "expected lattice of 1 to 3 periods"),
        ([4, 6], [2, 4], r"expected block of sizes that divide lattice \[4, 6\], got \[2, 4\]"),
        ([4, 6], [2], "expected block of sizes"),
    ):
        with pytest.raises(ValueError, match=f"lattice_order: {message}"):
            ops.lattice_order(lattice, block)
    with pytest.raises(TypeError, match=r"expected lattice of whole numbers, got \[4.5\]"):
        ops.lattice_order([4.5])
    with pytest.raises(ValueError, match="alibi_slopes: expected heads >= 1, got 0"):
        ops.alibi_slopes(0)
