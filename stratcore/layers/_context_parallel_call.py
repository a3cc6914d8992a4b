"""One call of context parallel attention on one rank: what the ranks agree on, the forward and the backward.

Legend: R ranks, C pieces of a shard, B batch, H query heads, G key heads, N queries and M keys of this rank,
E dimension of a head, S slopes a head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from stratcore.layers._context_parallel_needs import key_statistics, needed_pieces
from stratcore.layers._context_parallel_ring import (
    OP,
    Block,
    ContextParallelTraffic,
    Delivery,
    Gathering,
    Group,
    KeyStream,
    Step,
    agree,
    gather,
    keys_of,
    return_gradients,
    steps_of,
)
from stratcore.layers._context_parallel_shards import Keys, Needs, Run, Shards, shares
from stratcore.ops._autograd import unrecorded
from stratcore.ops._checks import FLOATING, check_choice
from stratcore.ops._toroidal_attention_call import METRICS, Options, arguments

METHODS = ("ring", "all_gather")
CHOICES = {"dtype": FLOATING, "method": METHODS, "metric": METRICS}
FACTS = (
    *("batch", "heads", "key heads", "dim", "dtype", "slopes a head", "key_mask"),
    *("q.requires_grad", "k.requires_grad", "v.requires_grad", "slopes.requires_grad"),
    *("method", "metric", "scale", "causal", "causal_group", "query_offset", "key_offset", "eps"),
    *("axes", *(f"{name}[{axis}]" for name in ("lattice", "block") for axis in range(3))),
    *("own queries", "own keys"),
)

_op = torch.ops.stratcore.toroidal_attention.default
_backward_op = torch.ops.stratcore.toroidal_attention_backward.default


class Inputs(NamedTuple):
    """In the layout of the op: slopes [H, S]. Mask of keys: [B, M]."""

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    mask: Tensor | None

    def block(self) -> Block:
        """A copy of what other ranks may need."""
        kv = torch.stack([self.k.detach(), self.v.detach()])
        return [kv] if self.mask is None else [kv, self.mask]


def check_padding(k: Tensor, key_mask: Tensor | None) -> None:
    """Raises unless the mask tells keys apart."""
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool:
        raise TypeError(f"{OP}: expected key_mask of dtype bool, got {key_mask.dtype}")
    expected = [k.shape[0], k.shape[2]] if k.ndim == 4 else ["B", "M"]
    if list(key_mask.shape) != expected or key_mask.device != k.device:
        got = f"{list(key_mask.shape)} on {key_mask.device}"
        raise ValueError(f"{OP}: expected key_mask of shape {expected} on the device of k, got {got}")


def agreed_call(
    group: Group,
    method: str,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    options: dict[str, Any],
) -> tuple[Call, Inputs]:
    """Checks the arguments on all ranks at once, so that either all raise or none."""
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"{OP}: expected a group that this process belongs to")
    devices = dict(entry.split(":") for entry in dist.get_backend_config(group).split(","))
    place = tensors[0].device
    facts, refusal = dict.fromkeys(FACTS, 0.0), None
    try:
        check_choice(OP, "method", method, METHODS)
        if place.type not in devices:
            raise ValueError(f"{OP}: expected q on {' or '.join(devices)}, as the group is, got {place}")
        inputs, agreed = _checked(tensors, options)
        facts = dict(zip(FACTS, _facts(inputs, agreed, method), strict=True))
    except Exception as error:  # whatever it is, the other ranks must not wait for this one
        refusal = error
    if place.type not in devices:
        place = torch.device(next(iter(devices)))
    of_ranks = agree(group, place, facts, CHOICES, refusal)
    queries, keys = (tuple(int(values[at]) for values in of_ranks) for at in (-2, -1))
    return Call(group, Shards(rank, queries, keys, agreed), method, inputs), inputs


def _wanted(inputs: Inputs) -> list[bool]:
    """Which of q, k, v and slopes have a gradient."""
    return [torch.is_grad_enabled() and t.requires_grad for t in inputs[:4]]


def _checked(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None], options: dict[str, Any]
) -> tuple[Inputs, Options]:
    q, k, v, slopes, key_mask = tensors
    q, k, v, slopes, _, *rest = arguments(q, k, v, slopes, None, tuple(options.values()))
    check_padding(k, key_mask)
    given = Options(*rest)
    given = given._replace(lattice=tuple(given.lattice), block=tuple(given.block))
    return Inputs(q, k, v, slopes, key_mask), given


def _facts(inputs: Inputs, options: Options, method: str) -> list[float]:
    """Of one rank, in the order of FACTS."""
    q, k, v, slopes, mask = inputs
    sizes = [q.shape[0], q.shape[1], k.shape[1], q.shape[3], FLOATING.index(q.dtype), slopes.shape[1]]
    chosen = [METHODS.index(method), METRICS.index(options.metric), options.scale, options.causal]
    numbers = [options.causal_group, options.query_offset, options.key_offset, options.eps]
    periods = [*options.lattice, 0, 0][:3] + [*options.block, 0, 0][:3]
    own = [q.shape[2], k.shape[2]]
    everything = (
        *sizes,
        mask is not None,
        *_wanted(inputs),
        *chosen,
        *numbers,
        len(options.lattice),
        *periods,
        *own,
    )
    return [float(fact) for fact in everything]


class Call:
    """One call on one rank: its shards, whom it sends what, and the op on one block of keys."""

    def __init__(self, group: Group, shards: Shards, method: str, inputs: Inputs) -> None:
        self.group, self.shards, self.method = group, shards, method
        self.keeps_blocks = method == "all_gather" and any(_wanted(inputs))
        self.masked = inputs.mask is not None
        self.steps: list[Step] = []
        self.traffic = ContextParallelTraffic([0] * shards.size)
        self.own_run = Run(Keys(0, inputs.k.shape[2]), 0, inputs.q.shape[2], shares(shards)[1])

    def statistics(self, inputs: Inputs) -> Gathering:
        """Starts to gather what bounds the scores of all keys."""
        return gather(self.group, key_statistics(inputs.k, inputs.mask))

    def needs(self, inputs: Inputs, lse: Tensor, statistics: Gathering) -> Needs:
        """Who needs what; waits for the device."""
        everyone = statistics.wait()
        rows = needed_pieces(inputs.q, lse, inputs.slopes, everyone, self.shards, masked=self.masked)
        keys = gather(self.group, rows.any(0).view(torch.uint8)).wait()
        both = torch.cat([rows.view(torch.uint8).flatten(), keys.flatten()]).cpu().bool()  # one wait
        return Needs(both[: rows.numel()].view(rows.shape), both[rows.numel() :].view(keys.shape))

    def stream(self, block: Block, needs: Needs | None = None) -> KeyStream:
        """Starts to send and receive blocks of keys: as `needs` says, or as before."""
        if needs is not None:
            self.steps = steps_of(self.shards, needs)
        return KeyStream(self.group, self.steps, block, 1 if self.method == "ring" else len(self.steps))

    def attend(self, inputs: Inputs, run: Run, owner: int) -> tuple[Tensor, Tensor, Tensor]:
        """Result, lse and tiles of the rows of a run over its keys, which `inputs` holds."""
        q = inputs.q[run.rows]
        options = self.shards.placed(run, owner)
        return unrecorded(_op, q, inputs.k, inputs.v, inputs.slopes, _mask(q, inputs.mask), *options)

    def gradients(self, saved: Saved, inputs: Inputs, run: Run, owner: int) -> tuple[Tensor, ...]:
        """Of q in the rows of a run, of its keys and values, which `inputs` holds, and of slopes."""
        q, out, lse, grad_out = (t[run.rows] for t in (inputs.q, saved.out, saved.lse, saved.grad_out))
        grad_lse = None if saved.grad_lse is None else saved.grad_lse[run.rows]
        tensors = (q, inputs.k, inputs.v, inputs.slopes, _mask(q, inputs.mask), out, lse)
        return unrecorded(_backward_op, grad_out, grad_lse, *tensors, *self.shards.placed(run, owner))


class Saved(NamedTuple):
    """Result and log-sums over the keys of all ranks, and their gradients."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None


def _mask(q: Tensor, key_mask: Tensor | None) -> Tensor | None:
    return None if key_mask is None else key_mask[:, None, None].expand(*q.shape[:3], -1)


def _with_keys(inputs: Inputs, block: Block) -> Inputs:
    """The queries with keys of another rank."""
    kv, *mask = block
    return Inputs(inputs.q, kv[0], kv[1], inputs.slopes, mask[0] if mask else None)


def _forward(call: Call, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Result, lse and tiles over all ranks' keys, and the blocks that came in, if they are kept."""
    rank, own = call.shards.rank, inputs.block()
    if call.shards.options.eps == 0:
        stream = call.stream(own, call.shards.everything())
        out, lse, tiles = call.attend(inputs, call.own_run, rank)
    else:
        statistics = call.statistics(inputs)
        out, lse, tiles = call.attend(inputs, call.own_run, rank)
        stream = call.stream(own, call.needs(inputs, lse, statistics))
    out, kept = out.to(lse.dtype), []
    for step, blocks in zip(call.steps, stream, strict=True):
        for run, block in zip(step.inbound, blocks, strict=True):
            part, part_lse, part_tiles = call.attend(_with_keys(inputs, block), run, step.owner)
            _merge_into(out[run.rows], lse[run.rows], part, part_lse)
            tiles.add_(part_tiles)
        if call.keeps_blocks:
            kept += [part for block in blocks for part in block]
    call.traffic = stream.traffic
    return out.to(inputs.q.dtype), lse, tiles, kept


def _merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`merge_attention` in place and without a gradient: out + sigmoid(part_lse - lse) (part - out)."""
    share = torch.sub(part_lse, lse).sigmoid_().nan_to_num_(0.0)  # a row without keys in either: -inf - -inf
    out.lerp_(part.to(out.dtype), share[..., None])
    torch.logaddexp(lse, part_lse, out=lse)


def _backward(
    call: Call, saved: Saved, inputs: Inputs, own: Block, arriving: Iterator[list[Block]], returns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and slopes; those of other ranks' keys travel back while the next are computed."""
    grad_q, grad_k, grad_v, grad_slopes = call.gradients(saved, inputs, call.own_run, call.shards.rank)
    grad_q, grad_kv = grad_q.to(saved.lse.dtype), torch.stack([grad_k, grad_v]).to(saved.lse.dtype)
    under_way: deque[tuple[Step, Delivery]] = deque()
    for step, blocks in zip(call.steps, arriving, strict=True):
        results: list[Block] = []
        for run, block in zip(step.inbound, blocks, strict=True):
            of_q, *of_keys, of_slopes = call.gradients(saved, _with_keys(inputs, block), run, step.owner)
            grad_q[run.rows].add_(of_q)
            grad_slopes.add_(of_slopes)
            results.append([torch.stack(of_keys)])
        if returns:
            under_way.append((step, return_gradients(call.group, step, results, own)))
            call.traffic.backward_bytes_sent += under_way[-1][1].bytes_sent
        while len(under_way) > 1:
            _take_in(*under_way.popleft(), grad_kv)
    for step, delivery in under_way:
        _take_in(step, delivery, grad_kv)
    return grad_q, grad_kv[0], grad_kv[1], grad_slopes


def _take_in(step: Step, delivery: Delivery, grad_kv: Tensor) -> None:
    for keys, (part,) in zip(step.outbound, delivery.wait(), strict=True):
        keys_of(grad_kv, keys).add_(part)


class ContextParallel(torch.autograd.Function):
    """The call as one node of the graph of each rank."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Takes Inputs and Call."""
        *tensors, call = args
        inputs = Inputs(*tensors)
        out, lse, tiles, kept = _forward(call, inputs)
        ctx.mark_non_differentiable(tiles)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, out, lse, *kept)
        ctx.call = call
        return out, lse, tiles

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        """Of q, k, v and slopes."""
        call, (*tensors, out, lse), kept = ctx.call, ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        inputs = Inputs(*tensors)
        own = inputs.block()
        saved = Saved(out, lse, torch.zeros_like(out) if grad_out is None else grad_out, grad_lse)
        stream = call.stream(own) if call.method == "ring" else None
        arriving = _steps_again(call.steps, kept, len(own)) if stream is None else iter(stream)
        grads = _backward(call, saved, inputs, own, arriving, any(ctx.needs_input_grad[1:3]))
        if stream is not None:
            call.traffic.backward_bytes_sent += stream.traffic.bytes_sent
        wanted = zip(grads, inputs[:4], ctx.needs_input_grad[:4], strict=True)
        return *(grad.to(like.dtype) if need else None for grad, like, need in wanted), None, None


def _steps_again(steps: Sequence[Step], kept: Sequence[Tensor], parts: int) -> Iterator[list[Block]]:
    """The blocks that were kept, step by step."""
    tensors = iter(kept)
    for step in steps:
        yield [[next(tensors) for _ in range(parts)] for _ in step.inbound]
