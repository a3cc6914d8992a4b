"""Legend: B sequences, N tokens, D channels, S strata, E experts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import layer_norm

from python_tests.layers.stratified_cases import moved
from stratcore.layers import StratifiedMoE, StratifiedMoEOptions, load_balance_loss, router_z_loss

pytestmark = pytest.mark.usefixtures("single_thread")


def moe(dtype=torch.float64, **options):
    return moved(StratifiedMoE(StratifiedMoEOptions(**{"dim": 8, "hidden_dim": 16} | options))).to(dtype)


@pytest.mark.parametrize("how", ["sparse", "dense"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_formula(how, top_k):
    block, x = moe(top_k=top_k, dispatch=how), torch.randn(3, 5, 8).double()
    normed = layer_norm(x, (8,), block.norm.weight, block.norm.bias)
    strata = block.strata(normed).probabilities
    logits = normed @ block.gate.weight.mT + strata @ block.affinity
    p = logits.softmax(-1)
    kept = p >= p.sort(dim=-1, descending=True).values[..., top_k - 1 : top_k]
    weights = p * kept / (1 if top_k == 1 else (p * kept).sum(-1, keepdim=True))
    wanted = x
    for e in range(4):
        hidden = (normed @ block.experts.in_weight[e].mT + block.experts.in_bias[e]).relu()
        expert = hidden @ block.experts.out_weight[e] + block.experts.out_bias[e]
        wanted = wanted + weights[..., e, None] * expert
    output = block(x)
    torch.testing.assert_close(output.routing["experts"].logits, logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.hidden, wanted, rtol=0, atol=1e-12)


def test_sparse_with_all_experts_equals_dense():
    sparse, dense = moe(torch.float32, top_k=4), moe(torch.float32, top_k=4, dispatch="dense")
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(4, 9, 8)
    assert (sparse(x).hidden - dense(x).hidden).abs().max() <= 1e-6
    assert (sparse(x).hidden - x).abs().max() > 0.1


def test_the_stratum_shifts_the_choice_of_experts():
    block, x = moe(top_k=1, num_strata=2), torch.randn(2, 30, 8).double()
    with torch.no_grad():
        block.affinity.copy_(torch.tensor([[50.0, 50.0, -50.0, -50.0], [-50.0, -50.0, 50.0, 50.0]]))
        block.strata.network[2].weight *= 100
    output = block(x)
    stratum = output.routing["strata"].selected[..., 0]
    assert 5 < stratum.sum() < 55
    assert torch.equal(output.routing["experts"].selected[..., 0] // 2, stratum)


def test_the_stratum_detector_learns_from_the_hidden_state_alone():
    block, x = moe(), torch.randn(2, 5, 8).double()
    block(x).hidden.square().sum().backward()
    assert all(p.grad.abs().max() > 1e-6 for p in [block.affinity, *block.strata.parameters()])


def test_losses_are_sums_over_both_routers():
    block, x = moe(), torch.randn(2, 5, 8).double()
    output = block(x)
    experts, strata = output.routing["experts"], output.routing["strata"]
    torch.testing.assert_close(output.losses["z"], router_z_loss(experts) + router_z_loss(strata))
    torch.testing.assert_close(
        output.losses["balance"], load_balance_loss(experts) + load_balance_loss(strata)
    )


def test_what_overflows_is_left_to_the_residual_bitwise():
    block, x = moe(top_k=1, capacity_factor=0.2), torch.randn(2, 20, 8).double()
    output = block(x)
    untouched = (output.hidden == x).all(-1)
    assert 32 <= untouched.sum() < 40  # two tokens an expert at most
    assert output.statistics["overflow"].item() == pytest.approx(untouched.sum().item() / 40)


def test_noise_is_for_training_alone():
    block, x = moe(noise=2.0), torch.randn(2, 20, 8).double()
    assert not torch.equal(block(x).hidden, block(x).hidden)
    block.eval()
    assert torch.equal(block(x).hidden, block(x).hidden)


def test_parameter_count():
    options = StratifiedMoEOptions(dim=768)
    experts = 4 * (2 * 768 * 64 + 64 + 768)
    detector = 768 * 384 + 384 + 384 * 3 + 3
    count = experts + detector + 2 * 768 + 4 * 768 + 12
    assert sum(p.numel() for p in StratifiedMoE(options).parameters()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, r"top_k: expected a number in \[1, 4\], got 5"),
        ({"top_k": 0}, r"top_k: expected a number in \[1, 4\], got 0"),
        ({"num_experts": 0}, "number of strata or experts: expected at least 1, got 0"),
        ({"num_strata": 0}, "number of strata or experts: expected at least 1, got 0"),
        ({"capacity_factor": -1.0}, "capacity_factor: expected a positive number or None, got -1.0"),
        (
            {"capacity_factor": 1.0, "dispatch": "dense"},
            "capacity_factor: expected None with dispatch 'dense'",
        ),
        ({"noise": -0.1}, "noise: expected at least 0, got -0.1"),
        ({"hidden_dim": 0}, "hidden_dim: expected at least 1, got 0"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        moe(**options)
