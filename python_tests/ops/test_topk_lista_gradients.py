"""Gradients of topk_lista and topk_ste, straight-through and masked."""

from __future__ import annotations

import pytest
import torch

from python_tests.ops.topk_lista_cases import BACKWARDS, FORMS, Case, leaves
from stratcore import ops

# gradcheck


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_masked(device, form, per_step):
    """The masked backward is the exact gradient while the selection stays."""
    case = Case(form, rows=3, dim=4, atoms=6, k=(2, 3), num_steps=2, per_step=per_step)
    inputs = leaves(case.inputs(device=device))
    assert torch.autograd.gradcheck(lambda *t: case.run(list(t), "masked"), inputs, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(lambda *t: case.run(list(t), "masked"), inputs, nondet_tol=0.0)


def test_gradcheck_sparse_values(device):
    case = Case(rows=3, dim=4, atoms=6, k=(2, 3), num_steps=2)
    inputs = leaves(case.inputs(device=device))

    def values(x, *parameters):
        return ops.topk_lista_sparse(
            x[0], *parameters, case.k, num_steps=2, backward="masked", every_step=True
        ).values

    assert torch.autograd.gradcheck(values, inputs, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(values, inputs, nondet_tol=0.0)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_gradcheck_topk_masked(device, k):
    x = torch.randn(4, 6, dtype=torch.float64, device=device, requires_grad=True)
    check = {"check_forward_ad": True, "check_batched_grad": True, "nondet_tol": 0.0}
    assert torch.autograd.gradcheck(lambda t: ops.topk_ste(t, k, backward="masked"), x, **check)
    assert torch.autograd.gradgradcheck(lambda t: ops.topk_ste(t, k, backward="masked"), x)


# backward matches the reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_step, input_per_expert", [(False, False), (True, True)])
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_backward_matches_reference(device, form, backward, per_step, input_per_expert, dtype):
    case = Case(form, per_step=per_step, input_per_expert=input_per_expert)
    inputs = case.inputs(device=device)
    weights = torch.randn(3, 5, 11, dtype=torch.float64, device=device)
    exact = leaves(inputs)
    (case.define(exact, backward)[-1] * weights).sum().backward()
    ours = leaves([t.to(dtype) for t in inputs])
    (case.run(ours, backward) * weights.to(dtype)).sum().backward()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for result, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(result.grad.double(), wanted.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("form", FORMS)
def test_second_order_matches_reference(device, form, backward):
    case = Case(form, per_step=True)
    weights = torch.randn(3, 5, 11, dtype=torch.float64, device=device)
    seconds = []
    for run in (lambda t: case.run(t, backward), lambda t: case.define(t, backward)[-1]):
        inputs = leaves(case.inputs(device=device))
        grads = torch.autograd.grad((run(inputs) * weights).square().sum(), inputs, create_graph=True)
        sum(g.square().sum() for g in grads).backward()
        seconds.append([t.grad for t in inputs])
    for result, wanted in zip(*seconds, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_only_wanted_gradients_are_computed(device):
    case = Case()
    inputs = case.inputs(device=device)
    inputs[2].requires_grad_()
    code = case.run(inputs)
    (grad,) = torch.autograd.grad(code.sum(), [inputs[2]])
    assert grad.shape == inputs[2].shape and all(t.grad is None for t in inputs)


@pytest.mark.parametrize("backward", BACKWARDS)
def test_topk_backward(device, backward):
    x = torch.tensor([[1.0, -3.0, 2.0]], device=device, requires_grad=True)
    ops.topk_ste(x, 1, backward=backward).backward(torch.tensor([[5.0, 6.0, 7.0]], device=device))
    assert x.grad.tolist() == [[5.0, 6.0, 7.0] if backward == "straight_through" else [0.0, 6.0, 0.0]]
