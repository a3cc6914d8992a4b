"""Legend: B sequences, N tokens, D channels, S strata, R size of a table's rows."""

from __future__ import annotations

import pytest
import torch

from python_tests.layers.stratified_cases import moved
from stratcore.layers import StratifiedEmbedding, StratifiedEmbeddingOptions

pytestmark = pytest.mark.usefixtures("single_thread")


def embedding(**options):
    options = {"vocab_size": 9, "dim": 6, "table_dim": 4} | options
    return moved(StratifiedEmbedding(StratifiedEmbeddingOptions(**options))).double()


@pytest.mark.parametrize("selector", ["sequence", "token"])
@pytest.mark.parametrize("integer", [torch.int64, torch.int32])
def test_formula(selector, integer):
    block, x = embedding(selector=selector), torch.randn(2, 5, 6).double()
    tokens = torch.randint(9, (2, 5)).to(integer)
    read = block.norm(x)
    read = read if selector == "token" else read.mean(1, keepdim=True).expand_as(read)
    weights = block.router(read).weights
    wanted = x.clone()
    for b in range(2):
        for n in range(5):
            rows = block.tables.weight[tokens[b, n].long()].view(3, 4)  # table s at [s]
            wanted[b, n] += block.combiner.weight @ sum(weights[b, n, s] * rows[s] for s in range(3))
    torch.testing.assert_close(block(x, tokens).hidden, wanted)


def test_tables_learn_at_the_tokens_that_occur():
    block, x = embedding(), torch.randn(1, 3, 6).double()
    block(x, torch.tensor([[2, 5, 2]])).hidden.square().sum().backward()
    assert block.tables.weight.grad.any(-1).nonzero().flatten().tolist() == [2, 5]


def test_parameter_count():
    count = sum(p.numel() for p in embedding().parameters())
    assert count == 9 * 3 * 4 + 12 + (6 * 3 + 3 + 3 * 3 + 3) + 4 * 6


def test_rejects_tokens_that_do_not_fit():
    block, x = embedding(), torch.randn(2, 3, 6).double()
    with pytest.raises(ValueError, match=r"tokens: expected shape \[2, 3\] of int64 or int32, got \[3, 2\]"):
        block(x, torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens: .* got \[2, 3\] of torch.float32"):
        block(x, torch.zeros(2, 3))
    with pytest.raises(IndexError):
        block(x, torch.full((2, 3), 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: expected at least 1, got 0"),
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"table_dim": 0}, "table_dim: expected at least 1 or None, got 0"),
        ({"selector": "batch"}, "selector: expected one of sequence, token, got 'batch'"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(ValueError, match=message):
        embedding(**options)
