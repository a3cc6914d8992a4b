"""Gradients of toroidal attention, of first and second order, and forward mode. Legend: toroidal_problem.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.toroidal_problem import (
    CASES,
    DTYPES,
    MASKS,
    METRICS,
    all_gradients,
    masks,
    normal,
    problem,
    run,
    weights_of,
)
from stratcore import ops
from stratcore.ops import reference

NAMES = ["q", "k", "v", "slopes"]
# without a root, whose derivative does not matter here, and with offsets that let no row go empty
SMALL: list[tuple[tuple[int, ...], int, dict[str, Any]]] = [
    ((1, 2, 1, 3, 4, 2), 1, {"lattice": [5], "causal": True, "causal_group": 2, "query_offset": 1}),
    ((2, 2, 2, 2, 5, 3), 2, {"lattice": [2, 3], "block": [1, 3], "key_offset": 2}),
    ((1, 1, 1, 3, 6, 2), 1, {"lattice": [2, 2, 2], "metric": "chordal", "scale": 0.7}),
]


def defined(*tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return reference.toroidal_attention(*tensors, **options)


# 3. gradcheck


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_gradcheck(device, case):
    """With respect to q, k, v and slopes, through out and lse, in both modes and twice."""
    sizes, axes, options = SMALL[case]
    tensors = [t.requires_grad_() for t in problem(sizes, device=device, axes=axes)]
    call = lambda *t: run(*t, **options)[:2]  # noqa: E731
    checks = {"check_undefined_grad": True, "nondet_tol": 0.0}
    torch.autograd.gradcheck(call, tensors, check_forward_ad=True, check_batched_grad=True, **checks)
    torch.autograd.gradgradcheck(call, tensors, **checks)


def test_gradcheck_with_masks(device):
    sizes = (1, 2, 2, 4, 5, 2)
    tensors = [t.requires_grad_() for t in problem(sizes, device=device)]
    for mask in masks((1, 2, 2, 8, 5, 2), device).values():
        mask = mask[:, :, :4] if mask.ndim == 4 and mask.shape[2] > 1 else mask
        call = lambda *t: ops.toroidal_attention(*t, lattice=5, mask=mask)  # noqa: B023, E731
        torch.autograd.gradcheck(call, tensors, check_forward_ad=True)
        torch.autograd.gradgradcheck(call, tensors)


# 4. backward matches the reference


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_backward_matches_reference(device, name, metric):
    for deterministic in (False, True) if device == "cuda" else (None,):
        check_backward(device, name, metric, deterministic)


def check_backward(device: str, name: str, metric: str, deterministic: bool | None) -> None:
    sizes, options = CASES[name]
    options = {"metric": metric, **options}
    count = len(options["lattice"]) if metric in ("l1", "chordal_sq") else 1
    weights = weights_of(sizes, device)
    for dtype in DTYPES:
        tensors = problem(sizes, dtype, device, count)
        wide = [t.double() for t in tensors]
        stored = [weights[0].to(dtype).double(), weights[1].float().double()]
        wanted = all_gradients(lambda *t: defined(*t, **options), wide, stored)
        eager = all_gradients(lambda *t: defined(*t, **options), tensors, stored)
        call = lambda *t: run(*t, deterministic=deterministic, **options)  # noqa: E731
        ours = all_gradients(call, tensors, stored)
        for which, *parts in zip(NAMES, ours, eager, wanted, strict=True):
            # a sum over all pairs, in which nearly everything cancels: by its own size
            if which == "slopes":
                scale = parts[2].abs().amax().clamp_min(1.0)
                tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 6e-2)
                torch.testing.assert_close(
                    parts[0].double() / scale, parts[2] / scale, rtol=0, atol=tolerance
                )
            else:
                assert_as_accurate(*parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MASKS)
def test_backward_with_masks(device, dtype, name):
    sizes = (2, 4, 2, 70, 75, 16)
    options = {"lattice": [75], "mask": masks(sizes, device)[name], "causal": True, "query_offset": 5}
    tensors, weights = problem(sizes, dtype, device), weights_of(sizes, device)
    stored = [weights[0].to(dtype).double(), weights[1].float().double()]
    wanted = all_gradients(lambda *t: defined(*t, **options), [t.double() for t in tensors], stored)
    eager = all_gradients(lambda *t: defined(*t, **options), tensors, stored)
    ours = all_gradients(lambda *t: run(*t, **options), tensors, stored)
    for parts in list(zip(ours, eager, wanted, strict=True))[:3]:
        assert_as_accurate(*parts)


def test_empty_rows_take_no_part(device):
    """Not even where the gradients of their results are not finite."""
    sizes = (1, 2, 2, 70, 80, 8)
    tensors = problem(sizes, torch.float32, device)
    mask = torch.ones(70, 80, dtype=torch.bool, device=device)
    mask[10] = mask[68] = False
    leaves = [t.requires_grad_() for t in tensors]
    out, lse, *_ = run(*leaves, lattice=80, mask=mask)
    grads = [normal(1, 2, 70, 8, dtype=torch.float32, device=device), torch.ones_like(lse)]
    clean = torch.autograd.grad((out, lse), leaves, grads, retain_graph=True)
    assert not clean[0][:, :, [10, 68]].any()
    grads[0][:, :, 10], grads[1][:, :, 68] = math.nan, math.inf
    dirty = torch.autograd.grad((out, lse), leaves, grads)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


@pytest.mark.parametrize("needed", [[0], [1], [2], [3], [0, 2]])
def test_unneeded_gradients_are_none(device, needed):
    tensors = problem((1, 2, 1, 5, 6, 4), device=device)
    for index in needed:
        tensors[index].requires_grad_()
    ops.toroidal_attention(*tensors, lattice=6).sum().backward()
    assert [i for i, t in enumerate(tensors) if t.grad is not None] == needed


def test_gradients_of_either_output(device):
    sizes = (1, 2, 1, 66, 70, 4)
    tensors, weights = problem(sizes, device=device), weights_of(sizes, device)
    wanted = all_gradients(lambda *t: defined(*t, lattice=[70]), tensors, weights)
    leaves = [t.requires_grad_() for t in tensors]
    out, lse, skipped, visible = run(*leaves, lattice=70)
    assert not skipped.requires_grad and not visible.requires_grad
    from_out = torch.autograd.grad(out, leaves, weights[0], retain_graph=True)
    from_lse = torch.autograd.grad(lse, leaves[:2] + leaves[3:], weights[1])
    from_lse = (*from_lse[:2], 0.0, from_lse[2])
    for a, b, total in zip(from_out, from_lse, wanted, strict=True):
        torch.testing.assert_close(a + b, total, rtol=1e-10, atol=1e-12)


def test_gradient_in_the_dtype_of_the_slopes(device):
    q, k, v, slopes = problem((1, 2, 1, 9, 9, 4), torch.float32, device)
    leaf = slopes[:, 0].bfloat16().requires_grad_()
    ops.toroidal_attention(q, k, v, leaf, lattice=9).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16 and leaf.grad.shape == (2,)


@pytest.mark.parametrize("metric", METRICS)
def test_second_order_matches_reference(device, metric):
    """Also through lse, whose cotangent the first backward takes."""
    sizes, options = (
        (1, 4, 2, 7, 9, 4),
        {"lattice": [3, 3], "metric": metric, "causal": True, "query_offset": 2},
    )
    tensors, weights = problem(sizes, device=device), weights_of(sizes, device)
    results = []
    for call in (run, defined):
        leaves = [t.clone().requires_grad_() for t in (*tensors, *weights)]
        out, lse = call(*leaves[:4], **options)[:2]
        grads = torch.autograd.grad((out, lse), leaves[:4], leaves[4:], create_graph=True)
        results.append(torch.autograd.grad(sum(g.sin().sum() for g in grads), leaves))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


def test_forward_mode_matches_reverse_mode(device):
    sizes, options = (1, 2, 1, 9, 12, 4), {"lattice": [12], "causal": True, "query_offset": 3}
    tensors, weights = problem(sizes, device=device), weights_of(sizes, device)
    tangents = [normal(*t.shape, device=device, seed=20 + i) for i, t in enumerate(tensors)]
    _, (out, lse) = torch.func.jvp(lambda *t: run(*t, **options)[:2], tuple(tensors), tuple(tangents))
    grads = all_gradients(lambda *t: run(*t, **options), tensors, weights)
    along = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close((out * weights[0]).sum() + (lse * weights[1]).sum(), along)


@pytest.mark.parametrize("slope", [-0.3, 0.0])
def test_negative_and_zero_slopes_have_gradients(device, slope):
    sizes = (1, 2, 2, 66, 66, 8)
    tensors, weights = problem(sizes, device=device), weights_of(sizes, device)
    tensors[3].fill_(slope)
    ours = all_gradients(lambda *t: run(*t, lattice=66, eps=0.01 if slope else 0.0), tensors, weights)
    wanted = all_gradients(lambda *t: defined(*t, lattice=[66]), tensors, weights)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)
