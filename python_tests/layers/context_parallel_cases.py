"""Problems of context parallel attention, and what one rank measures on each of them against the op on one device.

Legend: B batch, H query heads, G key heads, N queries, M keys, E dimension of a head, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from python_tests.ops.toroidal_problem import normal, problem
from stratcore import ops
from stratcore.layers import ContextParallelAttention, context_parallel_attention

Results = dict[str, Any]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


class Case(NamedTuple):
    """Sizes of the whole sequence, parts of it that ranks hold (over and over), options, slopes an axis, padding."""

    sizes: tuple[int, int, int, int, int, int]  # B, H, G, N, M, E
    options: dict[str, Any]
    query_parts: tuple[int, ...] = (1,)
    key_parts: tuple[int, ...] = (1,)
    axes: int = 1
    padded: bool = False


CASES = {
    "ring of the whole length": Case((2, 4, 2, 600, 600, 16), {"lattice": 600}),
    "causal, uneven": Case(
        (1, 2, 2, 600, 600, 8), {"lattice": 600, "causal": True}, (1, 3, 2), (1, 3, 2), padded=True
    ),
    "groups, queries and keys apart": Case(
        (1, 4, 1, 210, 590, 12),
        {"lattice": 900, "causal": True, "causal_group": 7, "query_offset": 380, "metric": "chordal"},
        (2, 1),
        (1, 4, 1),
    ),
    "plane": Case(
        (2, 4, 2, 640, 640, 24), {"lattice": [16, 40], "block": [4, 8], "metric": "l2"}, padded=True
    ),
    "causal plane": Case(
        (1, 2, 1, 512, 512, 8), {"lattice": [16, 16], "metric": "linf", "causal": True}, (3, 2)
    ),
    "solid, slopes an axis": Case(
        (1, 2, 2, 480, 480, 6), {"lattice": [8, 6, 10], "block": [2, 3, 5], "metric": "chordal_sq"}, axes=3
    ),
    "one rank without keys, one without queries": Case(
        (1, 2, 1, 30, 40, 4), {"lattice": 50, "eps": 1e-15}, (0, 1), (1, 0)
    ),
    "no batch": Case((0, 2, 1, 30, 30, 4), {"lattice": 30, "eps": 0.1}),
}


def shards(tokens: int, parts: Sequence[int], ranks: int) -> list[slice]:
    """Contiguous shards in the ratio of `parts`."""
    weights = [parts[rank % len(parts)] for rank in range(ranks)]
    ends = [round(tokens * at / sum(weights)) for at in accumulate(weights, initial=0)]
    return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]


def padding(case: Case, device: str) -> Tensor | None:
    """The last third of the keys of batch element 0 is hidden, with the first key; all keys of element 1."""
    if not case.padded:
        return None
    mask = torch.ones(case.sizes[0], case.sizes[4], dtype=torch.bool, device=device)
    mask[0, case.sizes[4] * 2 // 3 :] = False
    mask[:, 0] = False
    mask[1:] = False
    return mask


def loss(result: Any, weights: Sequence[Tensor]) -> Tensor:
    """Of out and lse; rows without keys have no lse."""
    of_lse = torch.where(result.lse == -math.inf, 0.0, result.lse * weights[1])
    return (result.out * weights[0]).sum() + of_lse.sum()


class Whole(NamedTuple):
    """A problem on one device, with result and gradients of the op."""

    tensors: list[Tensor]
    mask: Tensor | None
    weights: list[Tensor]
    result: ops.ToroidalAttention
    grads: tuple[Tensor, ...]


def on_one_device(case: Case, dtype: torch.dtype, device: str) -> Whole:
    batch, heads, _, queries, _, dim = case.sizes
    tensors = problem(case.sizes, dtype, device, case.axes)
    mask = padding(case, device)
    weights = [
        normal(batch, heads, queries, *last, dtype=dtype, device=device, seed=5) for last in ((dim,), ())
    ]
    leaves = [t.clone().requires_grad_() for t in tensors]
    shaped = None if mask is None else mask[:, None, None]
    result = ops.toroidal_attention_lse(*leaves, mask=shaped, **case.options)
    return Whole(tensors, mask, weights, result, torch.autograd.grad(loss(result, weights), leaves))


def own_shard(whole: Whole, case: Case) -> tuple[list[Tensor], Tensor | None, slice, slice]:
    """Leaves of this rank, its mask, and what of the whole they are."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    rows = shards(case.sizes[3], case.query_parts, ranks)[rank]
    keys = shards(case.sizes[4], case.key_parts, ranks)[rank]
    q, k, v, slopes = whole.tensors
    leaves = [t.clone().requires_grad_() for t in (q[:, :, rows], k[:, :, keys], v[:, :, keys], slopes)]
    return leaves, None if whole.mask is None else whole.mask[:, keys], rows, keys


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, over the largest expected number where that is above 1; where that is -inf both must be."""
    if not expected.numel():
        return 0.0 if actual.shape == expected.shape else math.inf
    same = actual == expected
    finite = torch.where(expected.isfinite(), expected, 0.0)
    difference = torch.where(same, 0.0, (actual - expected).abs()).max()
    return float(difference / finite.abs().max().clamp(min=1.0))


def compare(case: Case, dtype: torch.dtype, device: str, method: str) -> Results:
    """Errors of one rank's rows, and of the gradients it gets."""
    whole = on_one_device(case, dtype, device)
    leaves, mask, rows, keys = own_shard(whole, case)
    result = context_parallel_attention(*leaves, key_mask=mask, method=method, **case.options)
    weights = [weight[:, :, rows] for weight in whole.weights]
    grads = list(torch.autograd.grad(loss(result, weights), leaves))
    dist.all_reduce(grads[3])
    expected = [t[:, :, rows] for t in (whole.result.out, whole.result.lse, whole.grads[0])]
    expected += [whole.grads[1][:, :, keys], whole.grads[2][:, :, keys], whole.grads[3]]
    named = zip(
        ("out", "lse", "q", "k", "v", "slopes"), (result.out, result.lse, *grads), expected, strict=True
    )
    errors = {name: error(a.detach().double(), e.detach().double()) for name, a, e in named}
    return {"errors": errors, **traffic_of(result)}


def traffic_of(result: ContextParallelAttention) -> Results:
    return dict(vars(result.traffic))


def frugal(
    change: Callable[[list[Tensor]], Any],
    device: str,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    method: str = "ring",
    **options: Any,
) -> Results:
    """What a rank of a sequence of 512 tokens a rank sends with eps, and what its rows lose.

    Queries and keys are half as long as normal ones, slopes are 2; `change` may alter q, k, v and slopes, and give a
    mask of keys. With these a piece of 128 keys matters to no row that is a piece away.
    """
    tokens = 512 * dist.get_world_size()
    case = Case((1, 2, 1, tokens, tokens, 16), {"lattice": tokens, **options})
    tensors = problem(case.sizes, dtype, device)
    for t in tensors[:2]:
        t *= 0.5
    tensors[3].fill_(2.0)
    mask = change(tensors)
    shaped = None if mask is None else mask[:, None, None]
    whole = [t.clone().requires_grad_() for t in tensors]
    dense = ops.toroidal_attention_lse(*whole, mask=shaped, **case.options)
    (dense.out.square().sum() + dense.lse.sum()).backward()
    leaves, mask, rows, keys = own_shard(Whole(tensors, mask, [], dense, ()), case)
    result = context_parallel_attention(*leaves, key_mask=mask, eps=eps, method=method, **case.options)
    (result.out.square().sum() + result.lse.sum()).backward()
    dist.all_reduce(leaves[3].grad)
    lse, out = dense.lse.detach()[:, :, rows], dense.out.detach()[:, :, rows]
    lost = torch.where(lse == result.lse, 0.0, -torch.expm1(result.lse.detach() - lse))
    difference = (result.out.detach() - out).abs().max() / tensors[2].abs().max()
    parts = (rows, keys, keys, slice(None))
    own = [t.grad if t.ndim == 2 else t.grad[:, :, part] for t, part in zip(whole, parts, strict=True)]
    errors = [error(a.grad.double(), e.double()) for a, e in zip(leaves, own, strict=True)]
    found = {"lost": float(lost.max()), "difference": float(difference), "gradients": max(errors)}
    return {**found, **traffic_of(result)}


def unchanged(tensors: list[Tensor]) -> None:
    """Random queries and keys."""


def all_alike(tensors: list[Tensor]) -> None:
    """Every score is its bound."""
    for t in tensors[:2]:
        t.fill_(1.0)


def far_key(tensors: list[Tensor]) -> None:
    """Key 700 outweighs the distance for query 200, which is like it."""
    q, k, _, _ = tensors
    k[0, 0, 700] = 4000.0 * q[0, 0, 200] / q[0, 0, 200].norm()


def one_wide_head(tensors: list[Tensor]) -> None:
    tensors[3][1] = 1e-3


def rising(tensors: list[Tensor]) -> None:
    tensors[3][1] = -1e-3


def steep(tensors: list[Tensor]) -> None:
    tensors[3].fill_(100.0)


def hidden_border(tensors: list[Tensor]) -> Tensor:
    """The last 128 keys of rank 0."""
    mask = torch.ones(1, tensors[1].shape[2], dtype=torch.bool, device=tensors[1].device)
    mask[:, 384:512] = False
    return mask


def hidden_shard(tensors: list[Tensor]) -> Tensor:
    """All keys of rank 0: its rows know nothing of their sums."""
    mask = torch.ones(1, tensors[1].shape[2], dtype=torch.bool, device=tensors[1].device)
    mask[:, :512] = False
    return mask


def not_a_number(tensors: list[Tensor]) -> None:
    """A key in the middle of rank 1's shard."""
    tensors[1][0, 0, 768, 3] = math.nan


# change of the problem, and options beside lattice [512 R] and eps 1e-6
FRUGAL: dict[str, tuple[Callable[[list[Tensor]], Any], dict[str, Any]]] = {
    "around the ring": (unchanged, {}),
    "around the ring, all at once": (unchanged, {"method": "all_gather"}),
    "open": (unchanged, {"lattice": 1 << 20}),
    "causal": (unchanged, {"causal": True}),
    "all alike": (all_alike, {"eps": 0.02}),
    "all blocks": (unchanged, {"eps": 0.0}),
    "a far key": (far_key, {"lattice": 1 << 20}),
    "one wide head": (one_wide_head, {}),
    "rising": (rising, {}),
    "steep": (steep, {}),
    "hidden border": (hidden_border, {"lattice": 1 << 20}),
    "hidden shard": (hidden_shard, {"lattice": 1 << 20}),
    "not a number": (not_a_number, {"lattice": 1 << 20}),
    "float32": (unchanged, {"dtype": torch.float32}),
    "bfloat16": (unchanged, {"dtype": torch.bfloat16}),
}


def nearly_attained(device: str, share: float) -> Results:
    """Rank 0 has one piece of keys, the others eight in all, a step away; every score is its bound.

    Each of the eight has 0.99 / share of the ninth of eps that is due to it.
    """
    eps, pieces = 0.05, 9
    rank, ranks = dist.get_rank(), dist.get_world_size()
    parts = [1, *[8 // (ranks - 1)] * (ranks - 2), 8 - 8 // (ranks - 1) * (ranks - 2)]
    rows = shards(128 * pieces, parts, ranks)[rank]
    case = Case((1, 1, 1, 128 * pieces, 128 * pieces, 4), {"lattice": [2, 4096], "query_offset": 4096 - 128})
    case.options.update(key_offset=4096 - 128)
    q, k, v, _ = problem(case.sizes, torch.float64, device)
    q, k = torch.full_like(q, 0.5), torch.full_like(k, 0.5)
    slopes = torch.tensor([[-math.log(0.99 / share * eps / pieces), 0.0]], dtype=torch.float64, device=device)
    dense = ops.toroidal_attention_lse(q, k, v, slopes, **case.options)
    own = [t[:, :, rows] for t in (q, k, v)]
    result = context_parallel_attention(*own, slopes, eps=eps, **case.options)
    lost = -torch.expm1(result.lse - dense.lse[:, :, rows])
    return {"lost": float(lost.max()) / eps, **traffic_of(result)}


def refusals(device: str) -> Results:
    """What every rank is told when ranks, or only the last one, go wrong; the last call is right again."""
    last = dist.get_rank() == dist.get_world_size() - 1
    q, k, v, slopes = problem((1, 2, 1, 8, 8, 4), torch.float32, device)
    other = problem((1, 2, 1, 8, 8, 6), torch.float32, device)
    alone = dist.new_group([0])
    calls: dict[str, Callable[[], Any]] = {
        "dim": lambda: attend(*(other if last else (q, k, v, slopes))),
        "batch": lambda: attend(
            *(t.repeat(2, 1, 1, 1) if last and t.ndim == 4 else t for t in (q, k, v, slopes))
        ),
        "dtype": lambda: attend(*(t.double() if last else t for t in (q, k, v, slopes))),
        "metric": lambda: attend(q, k, v, slopes, metric="l2" if last else "l1"),
        "method": lambda: attend(q, k, v, slopes, method="all_gather" if last else "ring"),
        "period": lambda: attend(q, k, v, slopes, lattice=[4, 3] if last else [4, 4]),
        "scale": lambda: attend(q, k, v, slopes, scale=0.25 if last else 0.5),
        "mask": lambda: attend(
            q, k, v, slopes, key_mask=torch.ones_like(k[:, 0, :, 0]).bool() if last else None
        ),
        "gradients": lambda: attend(q, k.clone().requires_grad_(last), v, slopes),
        "own type": lambda: attend(q, k.double() if last else k, v, slopes),
        "own mask": lambda: attend(q, k, v, slopes, key_mask=torch.ones(1, 8 - last, device=device).bool()),
        "own method": lambda: attend(q, k, v, slopes, method="star"),
        "outside": lambda: attend(q, k, v, slopes, group=alone),
        "right": lambda: attend(q, k, v, slopes),
    }
    return {name: message_of(call) for name, call in calls.items()}


def attend(*tensors: Tensor, **options: Any) -> ContextParallelAttention:
    return context_parallel_attention(*tensors, **{"lattice": 16, **options})


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def partial_gradients(device: str) -> Results:
    """Only some tensors with a gradient, a loss of lse alone, and a loss that one rank's result is not in."""
    whole = problem((1, 2, 1, 300, 300, 8), torch.float64, device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    rows = shards(300, (1,), ranks)[rank]
    q, k, v = (t[:, :, rows].clone() for t in whole[:3])
    found: Results = {}
    for method in ("ring", "all_gather"):
        queries = q.clone().requires_grad_()
        result = attend(queries, k, v, whole[3], lattice=300, method=method)
        result.lse.sum().backward()
        dense = whole[0].clone().requires_grad_()
        ops.toroidal_attention_lse(dense, *whole[1:], lattice=300).lse.sum().backward()
        found[f"{method} queries"] = error(queries.grad, dense.grad[:, :, rows])
        found[f"{method} bytes"] = result.traffic.backward_bytes_sent

        values = v.clone().requires_grad_()
        (attend(q, k, values, whole[3], lattice=300, method=method).out.sum() * float(rank == 0)).backward()
        dense = whole[2].clone().requires_grad_()
        out = ops.toroidal_attention(*whole[:2], dense, whole[3], lattice=300)
        out[:, :, shards(300, (1,), ranks)[0]].sum().backward()
        found[f"{method} values"] = error(values.grad, dense.grad[:, :, rows])
    return found
