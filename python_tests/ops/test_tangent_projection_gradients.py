"""Gradients of sphere_normalize, true and surrogate. Letters: tangent_projection_cases.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.accuracy import assert_as_accurate
from python_tests.ops.tangent_projection_cases import (
    DTYPES,
    SURROGATES,
    define_gradient,
    gradient,
    normal,
    problem,
)
from stratcore import ops

# gradcheck


@pytest.mark.parametrize("tangential", [0.0, 1.0])
def test_gradcheck_where_it_is_a_gradient(device, tangential):
    x = normal(4, 5, device=device).requires_grad_()
    anchors = normal(3, 5, device=device)
    checks = {"check_batched_grad": True, "check_undefined_grad": True, "nondet_tol": 0.0}

    def run(x: Tensor) -> Tensor:
        result = ops.sphere_normalize_nearest(x, anchors, tangential=tangential, jacobian="normalize")
        return result.y

    assert torch.autograd.gradcheck(run, x, check_forward_ad=True, **checks)
    assert torch.autograd.gradgradcheck(run, x, **checks)
    below = (1e-3 * x.detach()).requires_grad_()
    run_below = lambda x: ops.sphere_normalize(x, tangential=0.0, jacobian="normalize", eps=1.0)  # noqa: E731
    assert torch.autograd.gradcheck(run_below, below, check_forward_ad=True, **checks)


# backward matches the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SURROGATES, ids=lambda o: f"{o['separation_sign']}-{o['jacobian']}")
@pytest.mark.parametrize("rows, dim, anchors", [(33, 64, 17), (5, 7, 1), (4, 1030, 70), (19, 2, 2)])
def test_backward_matches_reference(device, dtype, options, rows, dim, anchors):
    x, directions, grad = problem(rows, dim, anchors, dtype, device)
    nearest = ops.sphere_normalize_nearest(x, directions).nearest
    exact = define_gradient(x.double(), directions.double(), grad.double(), nearest, **options)
    eager = define_gradient(x, directions, grad, nearest, **options)
    assert_as_accurate(gradient(x, directions, grad, **options), eager, exact)


@pytest.mark.parametrize("options", SURROGATES, ids=lambda o: f"{o['separation_sign']}-{o['jacobian']}")
def test_second_order_matches_reference(device, options):
    """The derivative of the surrogate with respect to dL/dy and x, also of rows below eps."""
    x, anchors, grad = problem(6, 7, 4, device=device)
    x[2] *= 1e-3
    options = options | {"eps": 0.1}
    nearest = ops.sphere_normalize_nearest(x, anchors).nearest
    seconds = []
    for run in (gradients_of_op, lambda *a, **o: define_gradient(*a, nearest, **o)):
        leaves = [t.clone().requires_grad_() for t in (x, grad)]
        run(leaves[0], anchors, leaves[1], **options).square().sum().backward()
        seconds += [t.grad for t in leaves]
    torch.testing.assert_close(seconds[:2], seconds[2:], rtol=1e-10, atol=1e-10)


def gradients_of_op(x: Tensor, anchors: Tensor, grad: Tensor, **options: Any) -> Tensor:
    y = ops.sphere_normalize(x, anchors, **options)
    return torch.autograd.grad(y, x, grad, create_graph=True)[0]


def test_anchors_have_no_gradient(device):
    x, anchors, grad = problem(6, 7, 4, device=device)
    anchors.requires_grad_()
    assert not ops.sphere_normalize_nearest(x, anchors, separation=0.1).y.requires_grad
    ops.sphere_normalize_nearest(x.requires_grad_(), anchors, separation=0.1).y.backward(grad)
    assert anchors.grad is None and x.grad is not None
    assert not ops.sphere_normalize(x.detach(), anchors, separation=0.1).requires_grad


def test_anchors_are_those_of_the_forward(device):
    x, anchors, grad = problem(6, 7, 4, device=device)
    leaf = x.clone().requires_grad_()
    y = ops.sphere_normalize(leaf, anchors, separation=0.1)
    anchors.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(grad)
    y = ops.sphere_normalize(leaf, anchors)  # without separation they are not read
    anchors.mul_(-1)
    y.backward(grad)
    assert torch.equal(leaf.grad, gradient(x, None, grad))
