"""Tiles of scores that eps leaves out: never more probability than it says, also where the inputs are against it.

Legend: toroidal_problem.py.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.ops.toroidal_problem import METRICS, all_gradients, normal, problem, run, weights_of
from stratcore import ops

EPS = [2.0**-17, 1e-3, 0.3]
RING = (1, 2, 1, 1024, 1024, 16)


def ring(
    slope: float, dtype: torch.dtype = torch.float32, device: str = "cpu", scale: float = 1.0
) -> list[Tensor]:
    q, k, v, slopes = problem(RING, dtype, device)
    return [q * scale, k * scale, v, torch.full_like(slopes, slope)]


def assert_within_bound(tensors: list[Tensor], eps: float, **options: Any) -> float:
    """Compares with eps 0; returns the share of tiles that were left out."""
    dense, sparse = run(*tensors, **options), run(*tensors, eps=eps, **options)
    slack = 1e-12 if tensors[0].dtype == torch.float64 else 1e-5
    assert not dense.skipped_tiles.any()
    largest = float(tensors[2].abs().max())
    difference = float((sparse.out.double() - dense.out.double()).abs().max())
    assert difference <= (2 * eps / (1 - eps) + slack) * largest
    lost = torch.where(dense.lse == sparse.lse, 0.0, dense.lse - sparse.lse)
    allowance = slack * float(dense.lse.masked_fill(dense.lse.isinf(), 0.0).abs().max() + 1)
    assert -allowance <= float(lost.min()) and float(lost.max()) <= -math.log1p(-eps) + allowance
    assert bool((sparse.skipped_tiles <= sparse.visible_tiles).all())
    return float(sparse.skipped_tiles.sum() / sparse.visible_tiles.sum())


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("options", [{"lattice": [1024]}, {"lattice": [64, 16], "block": [8, 8]}], ids=str)
def test_random_inputs(device, metric, options, eps):
    slope = 1.0 if metric == "chordal_sq" else 5.0
    tensors = ring(slope, device=device, scale=0.5)
    assert assert_within_bound(tensors, eps, metric=metric, **options) > 0.3
    causal = {"causal": True, "causal_group": 7}
    assert assert_within_bound(tensors, eps, metric=metric, **causal, **options) > 0.2


def test_three_axes_and_slopes_of_their_own(device):
    q, k, v, _ = ring(0.0, device=device, scale=0.5)
    slopes = torch.tensor([[5.0, 0.0, 5.0], [0.0, 5.0, 5.0]], device=device)
    options = {"lattice": [16, 8, 8], "block": [4, 4, 4]}
    assert assert_within_bound([q, k, v, slopes], 1e-3, **options) > 0.1


@pytest.mark.parametrize("eps", [2.0**-17, 1e-3, 0.1, 0.5])
@pytest.mark.parametrize("slope", [0.05, 0.2])
def test_where_the_bound_is_nearly_attained(device, slope, eps):
    """Every query and key is one vector, so that every score is its bound: what is lost is of the order of eps."""
    tensors = ring(slope, torch.float64, device)
    for t in tensors[:2]:
        t[:] = 2.0
    assert assert_within_bound(tensors, eps, lattice=1024) > 0.2
    dense, sparse = run(*tensors, lattice=1024), run(*tensors, lattice=1024, eps=eps)
    lost = 1 - torch.exp(sparse.lse - dense.lse)
    assert 0 < float(lost.max()) <= eps


@pytest.mark.parametrize("eps", [0.05, 1e-3])
@pytest.mark.parametrize("near", [64, 1])
def test_many_tiles_at_one_distance_share_eps(device, near, eps):
    """One tile on the row of the queries, with so many visible keys, and 64 on the other row."""
    q, k, v = (torch.ones(1, 1, n, 4, device=device) for n in (64, 4160, 4160))
    mask = torch.arange(4160, device=device) >= 64 - near
    options = {"lattice": [2, 4096], "key_offset": 4096 - 64, "scale": 0.5, "mask": mask}
    # first each of the 64 has as much as all together may lose, then a share of it
    for share, skipped in ((eps, 0), (eps / 65, 64)):
        slopes = torch.tensor([[0.02 - math.log(share * near / 64), 0.0]], device=device)
        dense, sparse = run(q, k, v, slopes, **options), run(q, k, v, slopes, eps=eps, **options)
        lost = float((1 - torch.exp(sparse.lse - dense.lse)).max())
        assert lost <= eps * 1.001
        if device == "cpu":
            assert sparse.skipped_tiles.item() == skipped and (lost > 0.8 * eps) == (skipped > 0)


@pytest.mark.parametrize("far", [300, 512, 723])
@pytest.mark.parametrize("strength", [1.0, 8.0, 40.0, 400.0])
def test_a_far_key_of_huge_norm_is_seen(device, far, strength):
    """It outweighs the distance for the queries along it; a rule that looks at distance alone would lose it."""
    tensors = ring(1.0, device=device, scale=0.3)
    q, k, v, _ = tensors
    q[:, :, ::3] = q[:, :, :1]
    k[:, :, far] = strength * q[:, 0, 0] / q[:, 0, 0].norm()
    k[:, :, far] *= strength
    v[:, :, far] = 100.0
    for options in ({}, {"causal": True, "query_offset": 0}):
        assert_within_bound(tensors, 1e-3, lattice=1024, **options)
    if strength == 400.0:  # it takes all the attention of the queries along it
        out = ops.toroidal_attention(*tensors, lattice=1024, eps=1e-3)
        assert torch.equal(out[0, 0, ::3], torch.full_like(out[0, 0, ::3], 100.0))
        assert not run(*tensors, lattice=1024, eps=1e-3).skipped_tiles[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_counts_tiles(device, dtype):
    """Slopes of 100: only tiles that hold a query's own key matter: on the CPU 64 x 64, on a GPU up to 192 x 128."""
    tokens = 1024 if device == "cpu" else 4096
    q, k, v, slopes = problem((1, 2, 1, tokens, tokens, 16), dtype, device)
    tensors = [q, k, v, torch.full_like(slopes, 100.0)]
    result = run(*tensors, lattice=tokens, eps=1e-3)
    share = (result.skipped_tiles / result.visible_tiles).cpu()
    assert bool((share > 0.7).all())
    if device == "cpu":
        assert result.skipped_tiles.tolist() == [[16 * 15] * 2] and result.visible_tiles.tolist() == [
            [256] * 2
        ]
        causal = run(*tensors, lattice=1024, eps=1e-3, causal=True)
        assert causal.skipped_tiles.tolist() == [[120] * 2] and causal.visible_tiles.tolist() == [[136] * 2]
    assert result.skipped_tiles.dtype == result.visible_tiles.dtype == torch.int32


def test_slopes_of_each_head_decide(device):
    q, k, v, _ = ring(0.0, device=device)
    slopes = torch.tensor([100.0, -100.0], device=device)
    result = run(q, k, v, slopes, lattice=1024, eps=0.1)
    assert result.skipped_tiles[0, 0] > 0 and result.skipped_tiles[0, 1] == 0
    one_axis = torch.tensor([[100.0, -1e-6], [100.0, 0.0]], device=device)
    result = run(q, k, v, one_axis, lattice=[64, 16], eps=0.1)
    assert result.skipped_tiles[0, 0] == 0 and result.skipped_tiles[0, 1] > 0


@pytest.mark.parametrize("slope", [math.nan, -math.inf])
def test_slopes_that_are_not_numbers_leave_nothing_out(device, slope):
    q, k, v, slopes = ring(slope, device=device)
    assert not run(q, k, v, slopes, lattice=1024, eps=0.1).skipped_tiles.any()


def test_masks(device):
    """One that is added could lift any key, so nothing is left out; one that hides the near keys changes the sums."""
    tensors = ring(5.0, device=device)
    added = torch.zeros(1024, device=device)
    added[512] = 1e4
    assert not run(*tensors, lattice=1024, eps=0.1, mask=added).skipped_tiles.any()
    assert assert_within_bound(tensors, 0.1, lattice=1024, mask=added) == 0
    near = torch.arange(1024, device=device)
    apart = (near[:, None] - near).abs()
    hidden_near = torch.minimum(apart, 1024 - apart) >= 200
    assert_within_bound(tensors, 1e-3, lattice=1024, mask=hidden_near)
    some = normal(1024, 1024, device=device, seed=3) > 0
    assert assert_within_bound(tensors, 1e-3, lattice=1024, mask=some) > 0.3
    rows_empty = some.clone()
    rows_empty[5] = rows_empty[700] = False
    assert_within_bound(tensors, 1e-3, lattice=1024, mask=rows_empty)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_leaves_nothing_out(device, value):
    """A NaN reaches every row that sees it, wherever it stands; other heads and batches go on."""
    q, k, v, slopes = problem((2, 2, 2, 512, 512, 8), torch.float32, device)
    k[0, 1, 400, 2] = value
    result = run(q, k, v, slopes * 0 + 100.0, lattice=512, eps=0.1)
    assert (result.skipped_tiles > 0).tolist() == [[True, False], [True, True]]
    assert result.out[0, 1].isnan().any() and bool(result.out[1].isfinite().all())


def test_gradients_are_those_of_the_rest(device):
    """What is lost of them is of the order of eps too, for out and for lse."""
    sizes = (1, 2, 1, 512, 512, 8)
    tensors, weights = problem(sizes, torch.float64, device), weights_of(sizes, device)
    tensors[3].fill_(0.5)
    dense = all_gradients(lambda *t: run(*t, lattice=512), tensors, weights)
    for eps in (1e-9, 1e-4):
        sparse = all_gradients(lambda *t: run(*t, lattice=512, eps=eps), tensors, weights)  # noqa: B023
        for a, b in zip(sparse, dense, strict=True):
            assert float((a - b).norm() / b.norm()) < 100 * eps
    assert run(*tensors, lattice=512, eps=1e-4).skipped_tiles.any()
