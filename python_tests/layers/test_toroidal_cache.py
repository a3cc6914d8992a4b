"""Legend: rows are numbered, so a key says which token it is of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratcore.layers import ToroidalKVCache

CHUNKS = [[1] * 30, [3, 1, 1, 9, 2, 14], [30], [4, 4, 4, 4, 4, 10], [1, 0, 5, 24]]


def rows(start: int, count: int) -> tuple[Tensor, Tensor]:
    """Keys and values [2, 3, count, 4] of numbers that all differ."""
    number = torch.arange(start, start + count, dtype=torch.float64)[:, None]
    k = number + torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 1, 4) / 100
    return k, -k


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("group", [1, 2])
def test_a_capacity_keeps_everything(chunks, group):
    cache = ToroidalKVCache(capacity=30, group=group)
    for chunk in chunks:
        before = cache.length
        k, v = cache.append(*rows(before * group, chunk * group))
        assert cache.length == before + chunk
        wanted_k, wanted_v = rows(0, cache.length * group)
        assert torch.equal(k, wanted_k) and torch.equal(v, wanted_v)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("window", [0, 1, 4, 7, 40])
@pytest.mark.parametrize("group", [1, 3])
def test_a_window_keeps_exactly_what_queries_look_at(chunks, window, group):
    cache = ToroidalKVCache(window=window, group=group)
    for chunk in chunks:
        before = cache.length
        k, v = cache.append(*rows(before * group, chunk * group))
        start = max(0, before - window) * group
        wanted_k, wanted_v = rows(start, cache.length * group - start)
        assert torch.equal(k, wanted_k) and torch.equal(v, wanted_v)
    assert cache.length == 30


def test_the_ring_is_allocated_once_and_tokens_are_read_in_place():
    cache = ToroidalKVCache(window=4)
    storage = set()
    for token in range(40):
        k, _ = cache.append(*rows(token, 1))
        storage.add(k.untyped_storage().data_ptr())
        assert k.untyped_storage().nbytes() == 2 * 3 * 10 * 4 * 8
    assert len(storage) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "cache: expected a capacity or a window, got None and None"),
        ({"capacity": 4, "window": 2}, "cache: expected a capacity or a window, got 4 and 2"),
        ({"capacity": 0}, "capacity: expected at least 1 token, got 0"),
        ({"window": -1}, "window: expected at least 0 tokens, got -1"),
    ],
)
def test_rejects_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToroidalKVCache(**arguments)


def test_a_rejected_call_leaves_the_cache_as_it_was():
    cache = ToroidalKVCache(capacity=4)
    cache.append(*rows(0, 3))
    with pytest.raises(ValueError, match="cache: expected at most 4 tokens, got 5 in all"):
        cache.append(*rows(3, 2))
    other = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"expected torch.float64 keys of shape \[2, 3, \*, 4\], got torch.float64"
    ):
        cache.append(other, other)
    narrow, _ = rows(3, 1)
    with pytest.raises(ValueError, match="got torch.float32"):
        cache.append(narrow.float(), narrow.float())
    with pytest.raises(ValueError, match=r"cache: expected a call under torch.no_grad\(\)"):
        cache.append(narrow.requires_grad_(), narrow)
    assert cache.length == 3
    k, _ = cache.append(*rows(3, 1))
    assert torch.equal(k, rows(0, 4)[0])
