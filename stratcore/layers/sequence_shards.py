"""A sequence that is cut into contiguous shards, one on each rank of a process group. Legend: N tokens in all."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class SequenceShards:
    """Which tokens a rank holds, and how it comes by the keys of the others.

    Args:
        length: N; shards differ by one token at most.
        group: the ranks; None: the default group.
        method: 'ring' or 'all_gather', see `context_parallel_attention`.

    Raises:
        ValueError: fewer tokens than ranks.
    """

    length: int
    group: dist.ProcessGroup | None = None
    method: str = "ring"

    def __post_init__(self) -> None:
        if self.length < self.ranks:
            raise ValueError(
                f"length: expected at least a token for each of {self.ranks} ranks, got {self.length}"
            )

    @property
    def ranks(self) -> int:
        """1 without a process group."""
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This one's number in the group."""
        return dist.get_rank(self.group) if dist.is_available() and dist.is_initialized() else 0

    @property
    def own(self) -> range:
        """Numbers of the tokens that this rank holds."""
        return range(self.rank * self.length // self.ranks, (self.rank + 1) * self.length // self.ranks)
