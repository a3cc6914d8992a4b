"""Legend: D slices, E channels of a slice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import gradcheck

from stratcore.layers import DepthFusion

MODES = ["low_rank", "attention", "mean"]
STARTS_AS_IDENTITY = MODES[:2]


def randomized(depth: int, dim: int, mode: str) -> DepthFusion:
    fusion = DepthFusion(depth, dim, mode).double()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    return fusion


# ---- values


@pytest.mark.parametrize("depth", [1, 2, 5, 8])
def test_low_rank_is_one_plus_u_vt(depth):
    fusion = randomized(depth, 3, "low_rank")
    x = torch.randn(2, 4, depth, 3).double()
    omega = torch.eye(depth).double() + fusion.u @ fusion.v.mT
    torch.testing.assert_close(fusion(x), torch.einsum("kl,bnke->bnle", omega, x))


def test_attention_blends_what_slices_see_in_each_other():
    fusion, x = randomized(3, 4, "attention"), torch.randn(5, 3, 4).double()
    for row, wanted in zip(x, fusion(x), strict=True):
        q, k = row @ fusion.query.weight.mT, row @ fusion.key.weight.mT
        weights = torch.stack(
            [torch.softmax(torch.stack([q[a] @ k[b] for b in range(3)]) / 2, 0) for a in range(3)]
        )
        torch.testing.assert_close(wanted, (1 - fusion.gate) * row + fusion.gate * (weights @ row))


def test_mean_repeats_the_average():
    x = torch.randn(2, 3, 4)
    assert torch.equal(DepthFusion(3, 4, "mean")(x), x.mean(1, keepdim=True).repeat(1, 3, 1))


@pytest.mark.parametrize(
    ("mode", "depth", "count"),
    [("low_rank", 2, 4), ("low_rank", 8, 32), ("attention", 8, 2 * 16 + 1), ("mean", 8, 0)],
)
def test_parameter_counts(mode, depth, count):
    assert sum(p.numel() for p in DepthFusion(depth, 4, mode).parameters()) == count


# ---- the start


@pytest.mark.parametrize("mode", STARTS_AS_IDENTITY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_start_is_the_identity_bitwise(mode, dtype):
    fusion, x = DepthFusion(4, 6, mode).to(dtype), torch.randn(3, 5, 4, 6).to(dtype)
    assert torch.equal(fusion(x), x)


@pytest.mark.parametrize("mode", STARTS_AS_IDENTITY)
def test_the_start_is_the_identity_bitwise_under_autocast(mode):
    x = torch.randn(3, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DepthFusion(4, 6, mode)(x), x)


@pytest.mark.parametrize(
    ("mode", "moving", "waiting"),
    [("low_rank", ["v"], ["u"]), ("attention", ["gate"], ["query.weight", "key.weight"])],
)
def test_one_zero_learns_at_once_and_what_is_behind_it_a_step_later(mode, moving, waiting):
    torch.manual_seed(1)
    fusion = DepthFusion(4, 6, mode)
    start = copy.deepcopy(fusion.state_dict())
    x, target = torch.randn(8, 4, 6), torch.randn(8, 4, 6)
    optimizer = torch.optim.SGD(fusion.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (fusion(x) - target).square().mean().backward()
        largest = {name: p.grad.abs().max().item() for name, p in fusion.named_parameters()}
        assert all(largest[name] > 1e-3 for name in moving), largest
        assert all((largest[name] > 0) == (step == 1) for name in waiting), largest
        optimizer.step()
    assert all(not torch.equal(start[name], value) for name, value in fusion.state_dict().items())


def test_u_starts_with_orthonormal_columns():
    u = DepthFusion(16, 4, "low_rank").u
    torch.testing.assert_close(u.mT @ u, torch.eye(4))


# ---- gradients and errors


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    fusion = randomized(3, 2, mode)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in fusion.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(fusion, dict(zip(names, values, strict=True)), x)

    assert gradcheck(call, (x, *fusion.parameters()))


def test_reset_parameters_goes_back_to_the_identity():
    x = torch.randn(2, 4, 6).double()
    for mode in STARTS_AS_IDENTITY:
        fusion = randomized(4, 6, mode)
        fusion.reset_parameters()
        assert torch.equal(fusion(x), x)


def test_rejects_an_unknown_mode():
    with pytest.raises(ValueError, match="fusion: expected one of low_rank, attention, mean, got 'sum'"):
        DepthFusion(2, 4, "sum")
