"""Legend: B sequences, N tokens, D channels, S strata, H heads, G all heads, E head size."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import layer_norm, one_hot

from python_tests.layers.stratified_cases import moved
from stratcore.layers import (
    RouterOptions,
    StratifiedAttention,
    StratifiedAttentionOptions,
    log_gate_attention,
)

pytestmark = pytest.mark.usefixtures("single_thread")
PROJECTIONS = ["separate", "shared"]


def naive(block, x, mask, gate, logits_of_keys):
    """Attention of every head in plain steps; `logits_of_keys` [B, N, S] go to the scores."""
    options, normed = block.options, layer_norm(x, x.shape[-1:], block.norm.weight, block.norm.bias)
    dim, heads, strata = options.dim, options.num_heads, options.router.num_strata
    size, q_k_v = dim // heads, (normed @ block.qkv.weight.mT + block.qkv.bias).chunk(3, -1)
    total = torch.zeros_like(x)
    for s in range(strata):
        group = range(heads) if options.projections == "separate" else range(heads // strata)
        for head in group:
            index = s * len(group) + head
            q, k, v = (part[..., index * size : (index + 1) * size] for part in q_k_v)
            scores = q @ k.mT / math.sqrt(size) + logits_of_keys[:, None, :, s]
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, :], -torch.inf)
            read = scores.softmax(-1).nan_to_num() @ v * gate[..., s, None]
            place = head if options.projections == "separate" else index
            total[..., place * size : (place + 1) * size] += read
    branch = total @ block.output.weight.mT
    return x + branch if mask is None else x + branch * mask[..., None]


def block_of(projections, mode="softmax", strata=3, top_k=1):
    router = RouterOptions(num_strata=strata, mode=mode, top_k=top_k)
    options = StratifiedAttentionOptions(dim=12, num_heads=6, router=router, projections=projections)
    return moved(StratifiedAttention(options)).double()


@pytest.mark.parametrize("projections", PROJECTIONS)
@pytest.mark.parametrize(("mode", "top_k"), [("softmax", 1), ("top_k", 2)])
def test_formula(projections, mode, top_k):
    block, x = block_of(projections, mode, top_k=top_k), torch.randn(2, 7, 12).double()
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    output = block(x, mask)
    gate = output.routing["strata"].weights
    wanted = naive(block, x, mask, gate, (gate + 1e-9).log())
    torch.testing.assert_close(output.hidden, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("projections", PROJECTIONS)
def test_hard_limit_is_block_diagonal(projections):
    block, x = block_of(projections, "straight_through", strata=2), torch.randn(3, 16, 12).double()
    output = block(x)
    own = output.routing["strata"].weights
    assert (own.sum((0, 1)) > 5).all() and torch.equal(own, own.round())
    wanted = naive(block, x, None, own, torch.where(own > 0, 0.0, -torch.inf))
    assert (output.hidden - x).abs().max() > 0.1
    assert (output.hidden - wanted).abs().max() <= 1e-6
    sorted_by_stratum = own.argmax(-1).argsort(dim=-1, stable=True)[..., None].expand_as(x)
    again = block(x.gather(1, sorted_by_stratum)).hidden
    torch.testing.assert_close(again, output.hidden.gather(1, sorted_by_stratum))


def test_a_sharp_soft_router_comes_to_the_hard_limit():
    hard, soft = (block_of("separate", mode, strata=2) for mode in ("straight_through", "softmax"))
    soft.load_state_dict(hard.state_dict())
    with torch.no_grad():
        for block in (hard, soft):
            block.router.network[2].weight *= 3e4
            block.router.network[2].bias *= 3e4
    x = torch.randn(2, 10, 12).double()
    torch.testing.assert_close(soft(x).hidden, hard(x).hidden, rtol=0, atol=1e-6)


def test_one_stratum_is_plain_attention():
    block, x = block_of("separate", strata=1), torch.randn(2, 5, 12).double()
    normed = layer_norm(x, (12,), block.norm.weight, block.norm.bias)
    q, k, v = block.qkv(normed).unflatten(-1, (3, 6, 2)).permute(2, 0, 3, 1, 4)
    read = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(block(x).hidden, x + block.output(read), rtol=0, atol=1e-8)


def test_causal_tokens_do_not_see_later_ones():
    options = StratifiedAttentionOptions(dim=8, num_heads=2, causal=True)
    block, x = moved(StratifiedAttention(options)), torch.randn(1, 6, 8)
    wanted, changed = block(x).hidden, x.clone()
    changed[:, 4:] += 1
    found = block(changed).hidden
    assert torch.equal(found[:, :4], wanted[:, :4]) and not torch.equal(found[:, 4:], wanted[:, 4:])


def test_the_router_learns_from_keys_alone():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    gate = one_hot(torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]), 2)[None, ..., 1].double()
    gate.requires_grad_()
    log_gate_attention(q.double(), k.double(), v.double(), gate).square().sum().backward()
    assert gate.grad.isfinite().all() and (gate.grad.abs() > 1e-6).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_sixteen_bits_keep_the_gate(dtype, rounding):
    """Two keys that differ in their gate alone: one rounding of log g would shift the shares by up to 2 %."""
    gate = torch.stack([torch.full((40,), -12.0), torch.linspace(-13, -11, 40)], -1)[:, None].exp()
    q, k = torch.zeros(2, 40, 1, 2, 8, dtype=dtype)
    v = torch.eye(2, 8, dtype=dtype).expand_as(q)
    found = log_gate_attention(q, k, v, gate)[:, 0, 0, :2]
    assert found.dtype == dtype
    assert (found.float() - gate[:, 0] / gate[:, 0].sum(-1, keepdim=True)).abs().max() < 2 * rounding


def test_keys_of_gate_zero_keep_no_weight_that_matters():
    q, k = torch.randn(2, 1, 1, 20, 4)
    v = torch.zeros(1, 1, 20, 4)
    v[..., 10:, :] = 1
    gate = (torch.arange(20) < 10).float()[None, None]
    assert log_gate_attention(q, k, v, gate).abs().max() < 1e-6


def test_a_query_without_a_real_key_reads_something_finite():
    q, k, v = torch.randn(3, 2, 1, 4, 4)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        read = log_gate_attention(q.to(dtype), k.to(dtype), v.to(dtype), torch.zeros(2, 1, 4), mask)
        assert read.isfinite().all()


@pytest.mark.parametrize(("projections", "sets"), [("separate", 3), ("shared", 1)])
def test_parameter_counts(projections, sets):
    options = StratifiedAttentionOptions(dim=12, num_heads=6, projections=projections)
    router = 12 * 6 + 6 + 6 * 3 + 3
    count = 24 + router + 3 * sets * (144 + 12) + 144
    assert sum(p.numel() for p in StratifiedAttention(options).parameters()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "num_heads: expected a divisor of dim = 12, got 5"),
        ({"num_heads": 0}, "num_heads: expected a divisor of dim = 12, got 0"),
        (
            {"num_heads": 4, "projections": "shared"},
            "num_heads: expected a multiple of num_strata = 3 with shared projections, got 4",
        ),
        ({"projections": "tied"}, "projections: expected one of separate, shared, got 'tied'"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        StratifiedAttentionOptions(**{"dim": 12, "num_heads": 6} | options)
