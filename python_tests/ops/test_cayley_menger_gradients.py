"""Gradients of the Cayley-Menger op, of any order. Letters: cayley_menger_cases.py."""

from __future__ import annotations

import pytest
import torch

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.cayley_menger_cases import (
    DTYPES,
    OUTPUTS,
    SHAPES,
    Case,
    baseline,
    gradient,
    loss,
    vertices,
)
from stratcore import ops
from stratcore.ops.reference import cayley_menger as reference

# gradcheck

CHECK = {"nondet_tol": 0.0, "check_forward_ad": True, "check_batched_grad": True}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("k, dim, rows", [(1, 1, 0), (2, 3, 0), (3, 3, 7), (4, 5, 0), (4, 6, 8)])
def test_gradcheck(device, name, k, dim, rows):
    points, indices = Case(3, k, dim, rows).inputs(device=device)
    leaf = points.requires_grad_()

    def run(t):
        return getattr(ops.simplex_measures(t, indices, outputs=(name,), deterministic=True), name)

    assert torch.autograd.gradcheck(run, leaf, **CHECK)
    assert torch.autograd.gradgradcheck(run, leaf, nondet_tol=0.0 if device == "cpu" else 1e-12)


@pytest.mark.parametrize("k", [6, 8])
def test_gradcheck_of_high_orders(device, k):
    points, _ = Case(1, k, k + 1).inputs(device=device)

    def run(t):
        measures = ops.simplex_measures(t, outputs=("volume", "log_volume", "squared_volume"))
        return measures.volume * 10, measures.log_volume, measures.squared_volume * 100

    assert torch.autograd.gradcheck(run, points.requires_grad_(), nondet_tol=0.0)
    if k == 6:
        assert torch.autograd.gradgradcheck(run, points, nondet_tol=0.0 if device == "cpu" else 1e-12)


# backward matches the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simplices, k, dim", SHAPES[1:])
def test_backward_matches_reference(device, dtype, simplices, k, dim):
    for rows in (0, 40):
        points, indices = Case(simplices, k, dim, rows).inputs(dtype, device)
        exact = gradient(lambda t: reference.simplex_measures(vertices(t, indices)), points.double())  # noqa: B023
        eager = gradient(lambda t: baseline(vertices(t, indices), t.dtype), points)  # noqa: B023
        for deterministic in (False, True):
            result = gradient(
                lambda t: ops.simplex_measures(t, indices, deterministic=deterministic),  # noqa: B023
                points,
            )
            assert_as_accurate(result, eager, exact)


@pytest.mark.parametrize("rows", [0, 9])
def test_second_order_matches_reference(device, rows):
    points, indices = Case(6, 3, 5, rows).inputs(device=device)
    seconds = []
    for run in (
        lambda t: ops.simplex_measures(t, indices),
        lambda t: reference.simplex_measures(vertices(t, indices)),
    ):
        leaf = points.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(run(leaf)), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    torch.testing.assert_close(*seconds, rtol=1e-9, atol=1e-9)


def test_only_wanted_gradients_flow(device):
    points, _ = Case().inputs(device=device)
    leaf = points.requires_grad_()
    measures = ops.simplex_measures(leaf)
    whole = [torch.autograd.grad(m.sum(), leaf, retain_graph=True)[0] for m in measures]
    for name, wanted in zip(OUTPUTS, whole, strict=True):
        alone = getattr(ops.simplex_measures(leaf, outputs=(name,)), name)
        assert torch.equal(torch.autograd.grad(alone.sum(), leaf)[0], wanted)
    assert not ops.simplex_volume(points.detach()).requires_grad


def test_repeated_rows_add_their_gradients(device):
    """One vertex in every simplex, and a simplex that names a row twice (degenerate, but with distances)."""
    table = torch.randn(6, 4, dtype=torch.float64, device=device)
    indices = torch.tensor([[0, 1, 2], [0, 3, 4], [0, 0, 5], [5, 1, 5]], device=device)
    for deterministic in (False, True):
        ours = gradient(
            lambda t: ops.simplex_measures(
                t,
                indices,
                outputs=("squared_distances",),
                deterministic=deterministic,  # noqa: B023
            )[4:],
            table,
        )
        exact = gradient(lambda t: (reference.squared_distances(t[indices]),), table)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)
