"""JumpReLU: values, its pseudo-derivative against the definition and against an expectation, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stratcore import ops
from stratcore.ops import reference


def test_known_values(device):
    x = torch.tensor([[0.5, 1.0, 1.5], [-2.0, 3.0, 0.0]], device=device)
    values, active = ops.jump_relu(x, torch.tensor([0.4, 1.0, 1.0], device=device))
    assert values.tolist() == [[0.5, 0.0, 1.5], [0.0, 3.0, 0.0]]
    assert active.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_matches_the_definition_and_its_gradient(device, dtype, rtol):
    generator = torch.Generator().manual_seed(3)
    x, grad_values = (torch.randn(12, 5, generator=generator, dtype=dtype) for _ in range(2))
    grad_active = torch.randn(12, generator=generator, dtype=dtype)
    theta = torch.tensor([0.1, 0.5, 1.0, 0.3, 0.2], dtype=dtype)
    x, theta, grad_values, grad_active = (t.to(device) for t in (x, theta, grad_values, grad_active))
    leaves = x.clone().requires_grad_(), theta.clone().requires_grad_()
    values, active = ops.jump_relu(*leaves, bandwidth=0.7)
    exact = [t.double() for t in (x, theta, grad_values, grad_active)]
    for result, wanted in zip((values, active), reference.jump_relu(*exact[:2]), strict=True):
        assert torch.equal(result.double(), wanted)
    grads = torch.autograd.grad((values, active), leaves, (grad_values, grad_active))
    for result, wanted in zip(grads, reference.jump_relu_gradients(*exact, 0.7), strict=True):
        torch.testing.assert_close(result.double(), wanted, rtol=rtol, atol=rtol)
    assert int((grads[1] != 0).sum()) == 5


def test_the_pseudo_derivative_estimates_that_of_the_expectation(device):
    """x normal: E H(x - theta) = Phi(-theta), its derivative -phi(theta); of E x H(x - theta), -theta phi(theta)."""
    x = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    theta = torch.tensor([0.8], dtype=torch.float64, device=device, requires_grad=True)
    density = math.exp(-0.32) / math.sqrt(2 * math.pi)
    values, active = ops.jump_relu(x, theta, bandwidth=0.2)
    for result, wanted in ((active.mean(), -density), (values.mean(), -0.8 * density)):
        (grad,) = torch.autograd.grad(result, theta, retain_graph=True)
        assert float(grad) == pytest.approx(wanted, rel=0.02)  # 1.3 % of noise at three sigma, .1 % of bias


def test_exact_gradient_of_x_of_both_orders(device):
    x = torch.tensor([[0.3, -1.0], [2.0, 1.2]], dtype=torch.float64, device=device, requires_grad=True)
    theta = torch.tensor([0.5, 1.0], dtype=torch.float64, device=device)

    def values(x: Tensor) -> Tensor:
        return ops.jump_relu(x, theta).values.square()

    assert torch.autograd.gradcheck(values, x) and torch.autograd.gradgradcheck(values, x)


def test_compile_and_vmap(device):
    torch._dynamo.reset()
    x = torch.randn(3, 4, 5, device=device)
    theta = torch.full((5,), 0.3, device=device)

    def loss(theta: Tensor, x: Tensor) -> Tensor:
        values, active = ops.jump_relu(x, theta, bandwidth=0.5)
        return values.square().sum() + active.sum()

    grad = torch.func.grad(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = theta.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf, x[0]), leaf)[0], grad(theta, x[0]))
    each = torch.func.vmap(grad, in_dims=(None, 0))(theta, x)
    torch.testing.assert_close(each[2], grad(theta, x[2]))


def test_nan_stays(device):
    values, active = ops.jump_relu(
        torch.tensor([[torch.nan, 0.1]], device=device), torch.ones(2, device=device)
    )
    assert values[0].isnan().tolist() == [True, False] and active.tolist() == [1.0]


def test_rejects():
    x, theta = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(
        ValueError, match=r"jump_relu: expected theta of shape \[M\] for x \[..., M\], got \[2\]"
    ):
        ops.jump_relu(x, theta[:2])
    with pytest.raises(ValueError, match=r"jump_relu: expected bandwidth > 0, got 0"):
        ops.jump_relu(x, theta, bandwidth=0)
    with pytest.raises(TypeError, match="jump_relu: expected theta of dtype torch.float32 as x"):
        ops.jump_relu(x, theta.double())
    with pytest.raises(TypeError, match="jump_relu: expected x of dtype float64, float32"):
        ops.jump_relu(x.int(), theta)
