"""Values of toroidal attention: known ones, and those of its definition. Legend: toroidal_problem.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.toroidal_problem import (
    CASES,
    DTYPES,
    MASKS,
    METRICS,
    all_gradients,
    exact,
    masks,
    normal,
    problem,
    run,
    weights_of,
)
from stratcore import ops
from stratcore.ops import reference

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LOWEST = torch.finfo(torch.float32).min


# 1. known values


def scores_of(lattice: list[int], **options: object) -> Tensor:
    """Distances from all sites to site 0, read off the log-probabilities."""
    sites = math.prod(lattice)
    zeros = torch.zeros(1, 1, sites, 2, dtype=torch.float64)
    one_hot = torch.eye(sites, dtype=torch.float64)[None, None]
    parts = [
        run(zeros[:, :, :1], zeros, one_hot[..., s : s + 2], torch.ones(1), lattice=lattice, **options)
        for s in range(0, sites, 2)
    ]
    probabilities = torch.cat([part.out[0, 0, 0] for part in parts])
    return -(probabilities.log() + parts[0].lse[0, 0, 0])


@pytest.mark.parametrize(
    "lattice, metric, wanted",
    [
        ([8], "l1", [0, 1, 2, 3, 4, 3, 2, 1]),
        ([4, 4], "l1", [0, 1, 2, 1, 1, 2, 3, 2, 2, 3, 4, 3, 1, 2, 3, 2]),
        ([4, 4], "linf", [0, 1, 2, 1, 1, 1, 2, 1, 2, 2, 2, 2, 1, 1, 2, 1]),
        ([2, 2, 2], "l1", [0, 1, 1, 2, 1, 2, 2, 3]),
        ([4], "chordal", [0.0, 4 / math.pi * 0.5**0.5, 4 / math.pi, 4 / math.pi * 0.5**0.5]),
        ([4], "chordal_sq", [0.0, 8 / math.pi**2, 16 / math.pi**2, 8 / math.pi**2]),
        ([2, 4], "l2", [0.0, 1, 2, 1, 1, 2**0.5, 5**0.5, 2**0.5]),
    ],
)
def test_known_values(lattice, metric, wanted):
    torch.testing.assert_close(
        scores_of(lattice, metric=metric), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_reference_knows_the_odd_ring_too():
    assert reference.toroidal_distance([7], 1, 7)[0, 0].tolist() == [0, 1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_slopes_give_the_own_value(device, dtype):
    q, k, v, slopes = problem((1, 2, 2, 100, 100, 16), dtype, device)
    out = ops.toroidal_attention(q, k, v, slopes * 1e4, lattice=100)
    torch.testing.assert_close(out, v, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_error_is_at_most_twice_that_of_sdpa(device, dtype, causal):
    """Against float64, with the bias as mask, and with slopes of 0 without one."""
    sizes = (1, 3, 3, 130, 130, 64)
    q, k, v, slopes = problem(sizes, dtype, device)
    for factor in (0.0, 1.0):
        bias = -factor * slopes[..., None] * reference.toroidal_distance([130], 130, 130).to(device)
        bias = bias.masked_fill(torch.ones(130, 130, device=device).triu(1).bool() & causal, -math.inf)
        with sdpa_kernel(SDPBackend.MATH):
            eager = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(dtype)[None])
        oracle = exact((q, k, v, factor * slopes), lattice=[130], causal=causal)[0]
        ours = ops.toroidal_attention(q, k, v, factor * slopes, lattice=130, causal=causal)
        assert_as_accurate(ours, eager, oracle)


@pytest.mark.parametrize("causal", [False, True])
def test_float32_holds_over_many_tiles(device, causal):
    """As the one above, gradients too, where sums run over several tiles of queries and keys."""
    sizes = (1, 2, 1, 333, 450, 64)
    tensors, weights = problem(sizes, torch.float32, device), weights_of(sizes, device)
    options = {"lattice": [450], "causal": causal, "query_offset": 117}
    stored = [weight.float().double() for weight in weights]
    definition = reference.toroidal_attention
    eager = all_gradients(lambda *t: definition(*t, **options), tensors, stored)
    wanted = all_gradients(lambda *t: definition(*t, **options), [t.double() for t in tensors], stored)
    ours = all_gradients(lambda *t: run(*t, **options), tensors, stored)
    assert_as_accurate(
        run(*tensors, **options).out, definition(*tensors, **options)[0], exact(tensors, **options)[0]
    )
    for parts in list(zip(ours, eager, wanted, strict=True))[:3]:
        assert_as_accurate(*parts)


def test_float32_of_any_size(device):
    """Rows and columns of very different sizes keep their own bits."""
    sizes = (1, 2, 2, 96, 130, 24)
    q, k, v, slopes = problem(sizes, torch.float32, device)
    powers = lambda count, most, seed: 2.0 ** (most * normal(count, device=device, seed=seed).tanh()).round()  # noqa: E731
    keys, values = powers(130, 3, 12), powers(24, 90, 13)
    tensors = [(q * 2.0**-50).float(), (k * 2.0**48 * keys[:, None]).float(), (v * values).float(), slopes]
    ours, wanted = (f(*t, lattice=[130])[0] for f, t in ((run, tensors), (exact, [tensors])))
    eager = reference.toroidal_attention(*tensors, lattice=[130])[0]
    for column in range(24):
        assert_as_accurate(ours[..., column], eager[..., column], wanted[..., column])


# 2. matches the reference


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_matches_reference(device, name, metric):
    sizes, options = CASES[name]
    axes = len(options["lattice"])
    for dtype in DTYPES:
        for count in {1, axes if metric in ("l1", "chordal_sq") else 1}:
            tensors = problem(sizes, dtype, device, count)
            out, lse, *_ = run(*tensors, metric=metric, **options)
            wanted, wanted_lse = exact(tensors, metric=metric, **options)
            eager = reference.toroidal_attention(*tensors, metric=metric, **options)[0]
            assert_as_accurate(out, eager, wanted)
            tolerance = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(lse.double(), wanted_lse, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MASKS)
def test_masks(device, dtype, name):
    sizes = (2, 4, 2, 70, 75, 16)
    tensors, mask = problem(sizes, dtype, device), masks(sizes, device)[name]
    for options in ({}, {"causal": True, "query_offset": 5}):
        options = {"lattice": [75], "mask": mask, **options}
        out, lse, *_ = run(*tensors, **options)
        wanted, wanted_lse = exact(tensors, **options)
        assert_as_accurate(out, reference.toroidal_attention(*tensors, **options)[0], wanted)
        empty = wanted_lse == -math.inf
        assert bool((lse[empty] == -math.inf).all()) and not out[empty].any()
        assert bool(empty.any()) == (name not in ("padding", "added padding"))
        torch.testing.assert_close(lse[~empty].double(), wanted_lse[~empty], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masks_of_other_dtypes_add_the_same(device, dtype):
    tensors = problem((1, 2, 2, 9, 10, 4), dtype, device)
    added = normal(9, 10, device=device, seed=9).bfloat16()
    results = [run(*tensors, lattice=10, mask=added.to(t)) for t in (torch.float32, torch.bfloat16, dtype)]
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r, strict=True))


def test_the_lowest_number_as_mask_averages(device):
    """As in softmax: it absorbs every score, so it is no way to hide a whole row."""
    q, k, v, slopes = problem((1, 1, 1, 3, 5, 4), torch.float32, device)
    mask = torch.full((3, 5), LOWEST, device=device)
    out = ops.toroidal_attention(q, k, v, slopes, lattice=5, mask=mask)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


@pytest.mark.parametrize("keys", [0, 3])
@pytest.mark.parametrize("batch, queries", [(0, 4), (2, 0), (2, 4)])
def test_empty_inputs(device, batch, queries, keys):
    sizes = (batch, 2, 1, queries, keys, 4)
    tensors, weights = problem(sizes, torch.float32, device), weights_of(sizes, device)
    out, lse, skipped, visible = run(*tensors, lattice=7)
    assert out.shape == (batch, 2, queries, 4) and lse.shape == (batch, 2, queries)
    assert skipped.tolist() == [[0, 0]] * batch and bool((visible == int(queries * keys > 0)).all())
    if keys == 0:
        assert not out.any() and bool((lse == -math.inf).all())
    grads = all_gradients(lambda *t: run(*t, lattice=7), tensors, weights)
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert all(bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads) == (batch * queries * keys > 0)


@pytest.mark.parametrize("shared", [1, 4, 8])
def test_shared_keys_are_repeated_keys(device, shared):
    sizes = (2, 8, shared, 33, 70, 16)
    q, k, v, slopes = problem(sizes, torch.float32, device)
    wide = [t.repeat_interleave(8 // shared, 1) for t in (k, v)]
    for a, b in zip(run(q, k, v, slopes, lattice=70), run(q, *wide, slopes, lattice=70), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_any_strides(device):
    """Transposed projections, a slice with an offset, expanded keys, a last axis that is not contiguous."""
    sizes = (2, 4, 2, 66, 70, 16)
    q, k, v, slopes = problem(sizes, torch.float32, device)
    wanted = ops.toroidal_attention(q, k, v, slopes, lattice=70)
    rows = lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)  # noqa: E731
    transposed = ops.toroidal_attention(rows(q), rows(k), rows(v), slopes, lattice=70)
    assert torch.equal(transposed, wanted)
    assert transposed.stride() == rows(q).stride() and wanted.is_contiguous()
    fused = torch.cat([rows(t).transpose(1, 2).flatten(2) for t in (q, q, q)], 2)[..., 64:128]
    inside = fused.unflatten(2, (4, 16)).transpose(1, 2)
    assert torch.equal(ops.toroidal_attention(inside, k, v, slopes, lattice=70), wanted)
    odd = [t.mT.contiguous().mT for t in (q, k, v)]
    assert torch.equal(ops.toroidal_attention(*odd, slopes.expand(4, 1), lattice=70), wanted)
    first = [t[:1].expand(2, -1, -1, -1) for t in (k, v)]
    assert torch.equal(
        ops.toroidal_attention(q, *first, slopes, lattice=70),
        ops.toroidal_attention(q, *(t.contiguous() for t in first), slopes, lattice=70),
    )


def test_nan_stays_in_its_batch_head_and_row(device):
    q, k, v, slopes = problem((2, 2, 2, 70, 70, 8), torch.float32, device)
    clean = run(q, k, v, slopes, lattice=70)
    q[0, 1, 5, 3] = math.nan
    k[1, 0, 66, 2] = math.nan
    dirty = run(q, k, v, slopes, lattice=70)
    rows = torch.zeros(2, 2, 70, dtype=torch.bool, device=device)
    rows[0, 1, 5] = rows[1, 0] = True
    assert bool(dirty.out[rows].isnan().all()) and bool(dirty.lse[rows].isnan().all())
    assert torch.equal(dirty.out[~rows], clean.out[~rows]) and torch.equal(dirty.lse[~rows], clean.lse[~rows])


# what it is for


@pytest.mark.parametrize("lattice, shift", [([65], 1), ([65], 40), ([8, 12], 12), ([8, 12], 60)])
def test_turning_the_torus_turns_the_result(device, lattice, shift):
    sites = math.prod(lattice)
    tensors = problem((1, 2, 2, sites, sites, 16), device=device)
    wanted = ops.toroidal_attention(*tensors, lattice=lattice).roll(shift, 2)
    turned = ops.toroidal_attention(*(t.roll(shift, 2) for t in tensors[:3]), tensors[3], lattice=lattice)
    torch.testing.assert_close(turned, wanted, rtol=0, atol=1e-12)
    offset = {"query_offset": shift, "key_offset": shift}
    same = ops.toroidal_attention(*tensors, lattice=lattice, **offset)
    torch.testing.assert_close(same, wanted.roll(-shift, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lattice", [[48], [200], [8, 6]])
def test_decoding_equals_the_full_forward(device, lattice):
    """One query at a time against the keys so far, also where the sequence goes around the ring."""
    q, k, v, slopes = problem((2, 4, 2, 100, 100, 32), torch.float32, device)
    full = run(q, k, v, slopes, lattice=lattice, causal=True)
    for at in range(0, 100, 9):
        step = run(
            q[:, :, at : at + 1],
            k[:, :, : at + 1],
            v[:, :, : at + 1],
            slopes,
            lattice=lattice,
            causal=True,
            query_offset=at,
        )
        torch.testing.assert_close(step.out, full.out[:, :, at : at + 1], **CLOSE)
        torch.testing.assert_close(step.lse, full.lse[:, :, at : at + 1], **CLOSE)


def leak_cases() -> list[dict[str, object]]:
    cases = []
    for metric in METRICS:
        for group in (1, 3):
            for offset in (0, 37):
                for mask in (None, "bool"):
                    cases.append({"metric": metric, "causal_group": group, "offset": offset, "mask": mask})
    return cases


@pytest.mark.parametrize("case", range(40))
def test_nothing_leaks_from_the_future(device, case):
    """Other future keys and values change no bit, and get no gradient."""
    options = leak_cases()[case]
    offset, group = options.pop("offset"), options["causal_group"]
    sizes = (1, 2, 1, 80, 130, 8)
    tensors, cut = problem(sizes, torch.float32, device), 60
    mask = normal(80, 130, device=device, seed=8) > -1 if options.pop("mask") else None
    options |= {"lattice": [50], "causal": True, "query_offset": offset, "mask": mask}
    first = ((cut + offset) // group + 1) * group  # key of the first group after the queries [0, cut]
    future = [t.clone() for t in tensors]
    for t in future[1:3]:
        t[:, :, first:] = 1e3 * normal(*t[:, :, first:].shape, dtype=t.dtype, device=device, seed=11)
    past, other = run(*tensors, **options), run(*future, **options)
    assert torch.equal(past.out[:, :, : cut + 1], other.out[:, :, : cut + 1])
    assert torch.equal(past.lse[:, :, : cut + 1], other.lse[:, :, : cut + 1])
    weights = weights_of(sizes, device)
    for weight in weights:
        weight[:, :, cut + 1 :] = 0
    _, grad_k, grad_v, _ = all_gradients(lambda *t: run(*t, **options), tensors, weights)
    assert not grad_k[:, :, first:].any() and not grad_v[:, :, first:].any()
    assert bool(grad_k[:, :, first - 1].any()) or mask is not None


def test_leak_cases_are_forty():
    assert len({str(case) for case in leak_cases()}) == 40
