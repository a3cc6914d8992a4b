from __future__ import annotations

import pytest

from stratcore.layers import SequenceShards


def test_shards_are_contiguous_and_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceShards, "ranks", 3)
    owned = []
    for rank in range(3):
        monkeypatch.setattr(SequenceShards, "rank", rank)
        owned += SequenceShards(length=8).own
    assert owned == list(range(8))
    with pytest.raises(ValueError, match="length: expected at least a token for each of 3 ranks, got 2"):
        SequenceShards(length=2)


def test_without_a_group_one_rank_holds_all() -> None:
    shards = SequenceShards(length=5)
    assert (shards.ranks, shards.rank, shards.own) == (1, 0, range(5))
