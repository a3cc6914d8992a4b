"""Bias, activation, weights and sums over choices, on the CPU by their definition, on a GPU by their kernels.

Legend: T tokens, K choices of a token, R = K T rows sorted by expert, E experts, D channels.
"""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import gelu, relu

from stratcore.layers import _expert_epilogues as epilogues
from stratcore.layers._expert_assignment import assign
from stratcore.layers._expert_epilogues import add_bias_and_activate, add_bias_and_mix

pytestmark = pytest.mark.usefixtures("single_thread")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
every_device = pytest.mark.parametrize("device", DEVICES)
LIMITS = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-2}
EXPERTS = 4


def problem(device, dtype, tokens=70, choices=2, columns=24, capacity_factor=None, masked=False):
    """Rows sorted by expert, those left out NaN, as a grouped product may leave them."""
    generator = torch.Generator().manual_seed(tokens)
    # The last expert gets nobody.
    order = torch.rand(tokens, EXPERTS - 1, generator=generator).argsort(-1)
    mask = (torch.rand(tokens, generator=generator) > 0.3).to(device) if masked else None
    selected = order[:, :choices].to(device)
    to = assign(selected, EXPERTS, mask, capacity_factor)
    y = torch.randn(tokens * choices, columns, generator=generator).to(device, dtype)
    y[to.expert_R == EXPERTS] = torch.nan
    bias = torch.randn(EXPERTS, columns, generator=generator).to(device, dtype)
    weights = torch.rand(tokens, choices, generator=generator).to(device)
    weights = weights.to(torch.promote_types(dtype, torch.float32))
    return to, [t.requires_grad_() for t in (y, bias, weights)]


def activated(y, bias, to, activation):
    """Rows of the definition, with a table look-up."""
    kept = to.expert_R.cpu() < EXPERTS
    shifted = y + bias[to.expert_R.cpu().clamp_max(EXPERTS - 1)]
    return {"relu": relu, "gelu": gelu}[activation](shifted) * kept[:, None]


def mixed(y, bias, weights, to):
    """Rows added onto their tokens."""
    tokens, kept = weights.shape[0], to.expert_R.cpu() < EXPERTS
    source, expert = to.order_R.cpu()[kept], to.expert_R.cpu()[kept]
    shares = weights[source % tokens, source // tokens, None] * (y[kept] + bias[expert])
    return y.new_zeros(tokens, y.shape[1]).index_add(0, source % tokens, shares)


def assert_like(found, wanted, left_out, limit):
    """Results and gradients of all inputs; that of rows left out is 0."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.cpu() - other).abs().max() <= limit * other.abs().max()
    assert (found[1][left_out] == 0).all()


def gradients(result, inputs):
    cotangent = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return [result, *torch.autograd.grad(result, inputs, cotangent)]


@every_device
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("capacity_factor", "masked"), [(None, False), (0.7, True)])
@pytest.mark.parametrize(("tokens", "choices", "columns"), [(7, 1, 8), (70, 2, 24), (600, 3, 300)])
def test_both_are_their_formulas(device, dtype, capacity_factor, masked, tokens, choices, columns):
    to, inputs = problem(device, dtype, tokens, choices, columns, capacity_factor, masked)
    left_out = to.expert_R == EXPERTS
    assert (capacity_factor is None) == (not left_out.any())
    host = [t.detach().cpu().double() for t in inputs]
    host[0] = host[0].masked_fill(left_out.cpu()[:, None], 0.0)
    host = [t.requires_grad_() for t in host]
    for activation in ("relu", "gelu"):
        found = gradients(add_bias_and_activate(*inputs[:2], to, activation), inputs[:2])
        wanted = gradients(activated(*host[:2], to, activation), host[:2])
        assert (found[0][left_out] == 0).all()
        assert_like(found, wanted, left_out, LIMITS[dtype])
    found = gradients(add_bias_and_mix(*inputs, to), inputs)
    assert_like(found, gradients(mixed(*host, to), host), left_out, LIMITS[dtype])


@every_device
@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_first_and_second_derivatives(device, capacity_factor):
    to, (y, bias, weights) = problem(device, torch.float64, 5, 2, 3, capacity_factor)
    y = y.detach().nan_to_num(0.5).requires_grad_()
    for activation in ("relu", "gelu"):

        def activate(y, bias, activation=activation):
            return add_bias_and_activate(y, bias, to, activation)

        assert gradcheck(activate, (y, bias))
        assert gradgradcheck(lambda y, bias: activate(y, bias).square(), (y, bias))  # noqa: B023
    assert gradcheck(lambda *inputs: add_bias_and_mix(*inputs, to), (y, bias, weights))
    assert gradgradcheck(lambda *inputs: add_bias_and_mix(*inputs, to), (y, bias, weights))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", LIMITS)
def test_cuda_kernels_run_and_repeat_bitwise(dtype, monkeypatch):
    """Longer segments than one part has rows; the definition is made to fail, so that only kernels can answer."""
    pytest.importorskip("triton")
    monkeypatch.setattr(epilogues, "add_bias", None)
    to, inputs = problem("cuda", dtype, 5_000, 2, 520, 0.9, masked=True)
    runs = []
    for _ in range(2):
        hidden = gradients(add_bias_and_activate(*inputs[:2], to, "gelu"), inputs[:2])
        runs.append([*hidden, *gradients(add_bias_and_mix(*inputs, to), inputs)])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_where_kernels_cannot_run_the_definition_does():
    """No kernel runs on a CPU, with Triton or without."""
    epilogues._kernels_run.cache_clear()
    with pytest.warns(UserWarning, match="layers with experts run without their kernels on cpu, slower: "):
        assert not epilogues._kernels_run(torch.device("cpu"))
    assert not epilogues._kernels_run(torch.device("cpu"))  # said once
    epilogues._kernels_run.cache_clear()
