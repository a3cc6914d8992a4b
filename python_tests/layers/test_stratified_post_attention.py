"""Legend: B sequences, N tokens, D channels, S strata."""

from __future__ import annotations

import copy

import pytest
import torch

from stratcore.layers import StratifiedPostAttention, TokenRouting

pytestmark = pytest.mark.usefixtures("single_thread")
DIM = 8


def with_double_zero() -> StratifiedPostAttention:
    """The form of the source documents: the last maps of the strata start at 0 as well."""
    block = StratifiedPostAttention(DIM)
    with torch.no_grad():
        block.paths.out_weight.zero_()
        block.paths.out_bias.zero_()
    return block


def train(block: StratifiedPostAttention, steps: int) -> tuple[list[float], dict[str, bool]]:
    """Losses, and which weights moved."""
    torch.manual_seed(1)
    x, target = torch.randn(16, 4, DIM), torch.randn(16, 4, DIM)
    start = copy.deepcopy(block.state_dict())
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (block(x).hidden - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {key: not torch.equal(start[key], value) for key, value in block.state_dict().items()}


def test_two_zeros_have_no_gradient_and_never_learn():
    block = with_double_zero()
    block(torch.randn(3, 5, DIM)).hidden.square().sum().backward()
    assert all(not parameter.grad.any() for parameter in block.parameters())
    losses, moved = train(block, 200)
    assert not any(moved.values()) and losses[0] == losses[-1]


def test_one_zero_has_a_gradient_and_learns():
    block = StratifiedPostAttention(DIM)
    block(torch.randn(3, 5, DIM)).hidden.square().sum().backward()
    assert block.combiner.weight.grad.abs().max() > 1e-2
    losses, moved = train(block, 200)
    assert all(moved.values()) and losses[-1] < 0.5 * losses[0]


def test_formula():
    block = StratifiedPostAttention(DIM, num_strata=4, top_k=2, hidden_dim=5, scale=0.01).double()
    torch.nn.init.normal_(block.combiner.weight)
    h = torch.randn(2, 3, DIM).double()
    p = (h @ block.router.network.weight.mT + block.router.network.bias).softmax(-1)
    values, kept = p.topk(2)
    weights = torch.zeros_like(p).scatter(-1, kept, values / values.sum(-1, keepdim=True))
    normed, mixed = block.norm(h), torch.zeros_like(h)
    for s in range(4):
        hidden = (normed @ block.paths.in_weight[s].mT + block.paths.in_bias[s]).relu()
        mixed += weights[..., s, None] * (hidden @ block.paths.out_weight[s] + block.paths.out_bias[s])
    torch.testing.assert_close(block(h).hidden, h + 0.01 * mixed @ block.combiner.weight.mT)


def test_it_is_a_token_routing():
    block = StratifiedPostAttention(DIM)
    assert isinstance(block, TokenRouting) and block.options.route_on == "input"
    assert block.options.resolved_dispatch == "sparse"


def test_rejects_too_many_choices():
    with pytest.raises(ValueError, match=r"top_k: expected a number in \[1, 3\], got 4"):
        StratifiedPostAttention(DIM, top_k=4)
