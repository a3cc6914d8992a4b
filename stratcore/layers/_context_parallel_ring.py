"""What ranks say to each other: facts that must agree, small gathers, and blocks that go straight to who needs them.

Legend: R ranks, C pieces of a shard, B batch, G key heads, M keys of a shard, E dimension of a head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from stratcore.layers._context_parallel_shards import Keys, Needs, Run, Shards

OP = "context_parallel_attention"
Group: TypeAlias = "dist.ProcessGroup | None"
Block = list[Tensor]  # keys and values [2, B, G, M, E] and, if there is one, their mask [B, M]


@dataclass
class ContextParallelTraffic:
    """What this rank sent to others in one call; the call's backward fills in the last number.

    Args:
        keys_sent: how many of its keys went to each rank, in the order of ranks.
        blocks_sent: how many blocks of consecutive keys they were.
        bytes_sent: bytes of those keys, their values and masks.
        backward_bytes_sent: bytes of the backward: gradients, and with 'ring' the same blocks again.
    """

    keys_sent: list[int]
    blocks_sent: int = 0
    bytes_sent: int = 0
    backward_bytes_sent: int = 0


class Gathering(NamedTuple):
    """Tensors of one shape from all ranks, [R, ...], on their way."""

    work: dist.Work
    everyone: Tensor

    def wait(self) -> Tensor:
        """The tensors, once the current stream (for the CPU: this thread) may read them."""
        self.work.wait()
        return self.everyone


def gather(group: Group, own: Tensor) -> Gathering:
    """Starts to gather from all ranks."""
    everyone = own.new_empty((dist.get_world_size(group), *own.shape))
    return Gathering(dist.all_gather(list(everyone.unbind()), own, group=group, async_op=True), everyone)


def agree(
    group: Group,
    device: torch.device,
    facts: Mapping[str, float],
    choices: Mapping[str, Sequence[object]],
    refusal: Exception | None,
) -> list[list[float]]:
    """Holds all ranks to the same facts; waits for the device.

    Args:
        group: whose ranks.
        device: where the group can gather.
        facts: this rank's numbers by name.
        choices: what the values of some facts stand for.
        refusal: why this rank's arguments are refused, if they are; its facts then do not count.

    Returns:
        Facts of each rank, in the order of `facts`; those whose names begin with "own" may differ.

    Raises:
        ValueError: on all ranks, where facts differ, or where another rank refused its arguments.
    """
    own = torch.tensor([float(refusal is not None), *facts.values()], dtype=torch.float64)
    of_ranks = gather(group, own.to(device)).wait().tolist()
    if refusal is not None:
        raise refusal
    for rank, (refused, *_) in enumerate(of_ranks):
        if refused:
            raise ValueError(f"{OP}: rank {rank} refused its arguments, its own message says why")
    for rank, (_, *values) in enumerate(of_ranks):
        for name, first, other in zip(facts, of_ranks[0][1:], values, strict=True):
            if first != other and not name.startswith("own"):
                got = [choices[name][int(x)] if name in choices else f"{x:.17g}" for x in (first, other)]
                raise ValueError(
                    f"{OP}: expected the same {name} on all ranks, got {got[0]} on rank 0, {got[1]} on rank {rank}"
                )
    return [values for _, *values in of_ranks]


class Step(NamedTuple):
    """In step t a rank sends to the t-th rank after it and receives from the t-th before it."""

    owner: int
    inbound: list[Run]  # of the owner's keys
    receiver: int
    outbound: list[Keys]  # of this rank's keys


def steps_of(shards: Shards, needs: Needs) -> list[Step]:
    """All steps but that of the own shard; every rank goes through all of them, also through empty ones."""
    steps = []
    for step in range(1, shards.size):
        owner, receiver = (shards.rank - step) % shards.size, (shards.rank + step) % shards.size
        steps.append(Step(owner, shards.inbound(needs, owner), receiver, shards.outbound(needs, receiver)))
    return steps


class Delivery(NamedTuple):
    """Blocks on their way, with all that the transfers read and write."""

    works: list[dist.Work]
    sent: list[Tensor]
    received: list[Block]

    @property
    def bytes_sent(self) -> int:
        """To the one rank that it goes to."""
        return sum(part.numel() * part.element_size() for part in self.sent)

    def wait(self) -> list[Block]:
        """What came in, once the current stream (for the CPU: this thread) may read it."""
        for work in self.works:
            work.wait()
        return self.received


def exchange(
    group: Group, receiver: int, blocks: Sequence[Block], sender: int, buffers: list[Block]
) -> Delivery:
    """Starts to send blocks to one rank and to receive others from another; both know all sizes."""
    sent = [part.contiguous() for block in blocks for part in block if part.numel()]
    received = [part for block in buffers for part in block if part.numel()]
    transfers = [dist.P2POp(dist.isend, part, group=group, group_peer=receiver) for part in sent]
    transfers += [dist.P2POp(dist.irecv, part, group=group, group_peer=sender) for part in received]
    return Delivery(dist.batch_isend_irecv(transfers) if transfers else [], sent, buffers)


class KeyStream:
    """Blocks of keys, step by step, with `ahead` steps under way while those of one are at work."""

    def __init__(self, group: Group, steps: Sequence[Step], own: Block, ahead: int) -> None:
        self.group, self.own = group, own
        self.traffic = ContextParallelTraffic([0] * (len(steps) + 1))
        self._to_post = deque(steps)
        self._under_way: deque[Delivery] = deque()
        for _ in range(ahead):
            self._post()

    def __iter__(self) -> Iterator[list[Block]]:
        while self._under_way:
            blocks = self._under_way.popleft().wait()
            self._post()
            yield blocks

    def _post(self) -> None:
        if not self._to_post:
            return
        step = self._to_post.popleft()
        blocks = [[keys_of(part, keys) for part in self.own] for keys in step.outbound]
        buffers = [[_like(part, run.keys) for part in self.own] for run in step.inbound]
        delivery = exchange(self.group, step.receiver, blocks, step.owner, buffers)
        self._under_way.append(delivery)
        self.traffic.keys_sent[step.receiver] = sum(keys.end - keys.first for keys in step.outbound)
        self.traffic.blocks_sent += len(step.outbound)
        self.traffic.bytes_sent += delivery.bytes_sent


def return_gradients(group: Group, step: Step, blocks: Sequence[Block], own: Block) -> Delivery:
    """Starts to send gradients of the keys and values of a step to their owner, and to receive those of `own`."""
    return exchange(
        group, step.owner, blocks, step.receiver, [[_like(own[0], keys)] for keys in step.outbound]
    )


def keys_of(part: Tensor, keys: Keys) -> Tensor:
    """Of keys, values or gradients [..., M, E], or of a mask [B, M]."""
    return part[:, keys.first : keys.end] if part.ndim == 2 else part[..., keys.first : keys.end, :]


def _like(part: Tensor, keys: Keys) -> Tensor:
    """Room for such keys of a shard of any length."""
    length = keys.end - keys.first
    return part.new_empty(
        (len(part), length) if part.ndim == 2 else (*part.shape[:-2], length, part.shape[-1])
    )
