"""Masks for toroidal attention, and what they tell of where its queries stand among its keys.

Legend: B batch, H query heads, N queries, M keys that an attention is given, L of them that are alive.

The mask is the one thing that travels from where the cache is known to the attention, so it says both who sees whom
and where:

    None            all keys are alive; causal, or bidirectional, as the module says
    bool [B, L]     the same with padding; keys from L on are slots of a cache that nothing was written to
    [B, 1, N, L]    any pattern; True takes part, or a number that is added
    int32 [B, 1, N, M]    any pattern, of a cache whose length is a tensor on a device: positive takes part, and the
                    size less one is the query's slot

The queries are the last N of the L keys that are alive, in their order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    bidirectional_mask_function,
    causal_mask_function,
)

from stratcore.huggingface.settings import ATTRIBUTE, IMPLEMENTATION


def toroidal_mask(**request: Any) -> Tensor | None:
    """The mask that transformers asks for, in the least form that says all; registered with AttentionMaskInterface.

    Args:
        request: what transformers passes: config, batch_size, q_length and q_offset (cache_position in its first
            versions 5), kv_length, kv_offset, mask_function, attention_mask, bool [B, at most kv_length], and others.

    Returns:
        As the top of this file says. Where some layers keep the host's attention, the host's own mask wherever it
        ends at the last query's key.

    Raises:
        ValueError: no torus is attached; queries beyond their keys; or, on a lattice of several axes, where a slot's
            number counts: padding on the left, packed sequences, a pattern or a cache that does not begin at slot 0.
    """
    record = getattr(request.get("config"), ATTRIBUTE, None)
    if record is None:
        raise ValueError(
            f"attention {IMPLEMENTATION!r}: the model has no torus; call use_toroidal_attention(model, lattice=...)"
        )
    plain = _is_plain(request)
    if any(len(torus["lattice"]) > 1 for torus in record["layers"].values()):
        _check_slots_are_positions(request, plain)
    queries, first = _queries(request)
    keys, offset = request["kv_length"], request.get("kv_offset", 0)
    if isinstance(first, Tensor):
        return _placed(_visible("sdpa", request), first)
    live = first + queries
    if live > keys or (live < keys and request["mask_function"] is bidirectional_mask_function):
        raise ValueError(
            f"attention {IMPLEMENTATION!r}: expected queries that end with the keys, got slots {first} to {live} "
            f"of {keys}"
        )
    if record["mask"] != IMPLEMENTATION:
        if live == keys:
            return ALL_MASK_ATTENTION_FUNCTIONS[record["mask"]](**request)
        return _visible(record["mask"], request)[..., :live]
    if not plain or offset != 0:
        return _visible("sdpa", request)[..., :live]
    return _padding(request, live)


def _is_plain(request: dict[str, Any]) -> bool:
    """Whether the pattern is causal or bidirectional and nothing else, but for padding."""
    if request["mask_function"] in (causal_mask_function, bidirectional_mask_function):
        return True
    window = request.get("local_size")
    may_skip = request.get("allow_is_causal_skip") or request.get("allow_is_bidirectional_skip")
    return window is not None and bool(may_skip) and request["kv_length"] < window


def _queries(request: dict[str, Any]) -> tuple[int, int | Tensor]:
    """Their number, and the slot of the first among the keys; a tensor if only the device knows."""
    positions = request.get("cache_position")
    if positions is None:
        queries, first = request["q_length"], request.get("q_offset", 0)
    else:
        queries, first = positions.shape[0], positions[0]
    if isinstance(first, Tensor) and request["kv_length"] == queries:
        return queries, 0
    first = first - request.get("kv_offset", 0)
    if positions is not None and not torch.compiler.is_compiling():
        first = int(first)
    return queries, first


def _check_slots_are_positions(request: dict[str, Any], plain: bool) -> None:
    if request.get("local_size") is not None:
        return  # a layer with a window cannot have several axes, so this mask is for others
    problem = None
    if not plain:
        problem = (
            "a pattern such as that of packed sequences (where a model is compiled, pass attention_mask)"
        )
    elif request.get("kv_offset", 0) != 0:
        problem = "a cache that does not begin at slot 0"
    else:
        padding = request.get("attention_mask")
        if padding is not None and not bool(padding[:, 0].all()):
            problem = "padding on the left"
    if problem is not None:
        raise ValueError(
            f"attention {IMPLEMENTATION!r}: a lattice of several axes counts slots, so it cannot have {problem}"
        )


def _padding(request: dict[str, Any], live: int) -> Tensor | None:
    padding = request.get("attention_mask")
    if padding is None:
        if live == request["kv_length"]:
            return None
        device = request.get("device", getattr(request.get("cache_position"), "device", "cpu"))
        return torch.ones((request["batch_size"], live), dtype=torch.bool, device=device)
    return pad(padding[:, :live], (0, live - min(live, padding.shape[1])))


def _visible(name: str, request: dict[str, Any]) -> Tensor:
    """[B, 1, N, M] in the form of a host's implementation."""
    whole = {**request, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return ALL_MASK_ATTENTION_FUNCTIONS[name](**whole)


def _placed(visible: Tensor, first: Tensor) -> Tensor:
    slots = torch.arange(1, visible.shape[2] + 1, device=visible.device, dtype=torch.int32)[:, None]
    slots = slots + first.to(visible.device, torch.int32)
    return torch.where(visible, slots, -slots)


def visible_of(placed: Tensor) -> Tensor:
    """Who sees whom, bool [B, 1, N, M], of a mask that says it with slots."""
    return placed > 0


def first_slot(placed: Tensor) -> Tensor:
    """Slot of the first query, a scalar, of a mask that says it."""
    return placed[0, 0, 0, 0].abs() - 1
