"""Toroidal attention as an attention implementation of transformers.

Legend: B batch, H query heads, G key heads, N queries, M keys that are given, L of them alive, E dimension of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from stratcore import ops
from stratcore.huggingface.masks import first_slot, toroidal_mask, visible_of
from stratcore.huggingface.settings import ATTRIBUTE, IMPLEMENTATION

# Attributes of an attention module: a ToroidalBias, or the host's own attention where a layer keeps that.
BIAS, HOST = "toroidal_bias", "toroidal_host"

# What an attention may be asked for, and this one cannot do.
_REFUSED = {
    "softcap": "a cap on the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "another bias of positions",
    "head_mask": "a mask of heads",
    "indices": "keys chosen by an index",
    "block_indices": "keys chosen by an index",
    "cache": "a paged cache",
    "output_attentions": "weights as an output, which are never in memory",
}


def register_toroidal_attention() -> None:
    """Make 'toroidal' an attention implementation of transformers, with its masks; again and again if wished.

    `use_toroidal_attention` does it. Importing stratcore does not.

    Raises:
        ValueError: the name is taken.
    """
    registries: tuple[tuple[Any, Callable], ...] = (
        (AttentionInterface, toroidal_attention_forward),
        (AttentionMaskInterface, toroidal_mask),
    )
    for interface, function in registries:
        registered = interface().get(IMPLEMENTATION)
        if registered is not None and registered is not function:
            raise ValueError(f"{interface.__name__}: {IMPLEMENTATION!r} is registered by another package")
    for interface, function in registries:
        interface.register(IMPLEMENTATION, function)


def toroidal_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a module that carries a `ToroidalBias`; the host's own for one that kept it.

    Args:
        module: the attention.
        query: [B, H, N, E].
        key: [B, G, M, E], G a divisor of H.
        value: as `key`.
        attention_mask: as `toroidal_mask` gives it; or [B or 1, H or 1, N, M] from the caller, bool or added. Then
            the last query stands at the last key. What adds the least finite number, or less, hides.
        scaling: of the products.
        dropout: of the weights; must be 0.
        options: whatever else the host passes: `is_causal` is heeded, what would change the result is refused.

    Returns:
        [B, N, H, E], and None in place of the weights. A row without visible keys is 0.

    Raises:
        ValueError: no torus is attached, or something is asked for that this attention cannot do.
    """
    bias = getattr(module, BIAS, None)
    if bias is None:
        inputs = (query, key, value, attention_mask)
        return _host_attention(module, *inputs, scaling=scaling, dropout=dropout, **options)
    _check_request(module, scaling, dropout, attention_mask, options)
    torus = bias.torus
    key, value, mask = _alive(key, value, attention_mask, several_axes=torus.axes > 1)
    queries, keys = query.shape[2], key.shape[2]
    if queries > keys:
        raise ValueError(f"{_name(module)}: expected a key for each query, got {queries} and {keys}")
    causal = False
    if mask is None or mask.ndim == 2:
        asked = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if asked is None else asked
        mask = None if mask is None else mask[:, None, None, :]
    out = ops.toroidal_attention(
        query,
        key,
        value,
        bias(),
        lattice=torus.lattice,
        block=torus.block,
        metric=torus.metric,
        causal=causal,
        mask=mask,
        scale=scaling,
        query_offset=torus.first_position + keys - queries,
        key_offset=torus.first_position,
        eps=torus.eps,
    )
    return out.transpose(1, 2).contiguous(), None


def _name(module: nn.Module) -> str:
    return f"attention {IMPLEMENTATION!r} of {type(module).__name__}"


def refuse_weights(model: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
    """Forward pre-hook of a host: some keep output_attentions from their attention, and would give None for weights.

    Raises:
        ValueError: weights are asked for, of a model that dispatches to this attention.
    """
    config: Any = model.config
    if options.get("output_attentions") and config._attn_implementation == IMPLEMENTATION:
        _refuse(model, "output_attentions")


def _refuse(module: nn.Module, name: str) -> NoReturn:
    raise ValueError(f"{_name(module)}: cannot have {_REFUSED[name]} ({name})")


def _check_request(
    module: nn.Module, scaling: Any, dropout: float, mask: Tensor | None, options: dict[str, Any]
) -> None:
    for name in _REFUSED:
        if options.get(name) is not None and options[name] is not False:
            _refuse(module, name)
    if options.get("cu_seq_lens_q") is not None and (mask is None or mask.ndim == 2):
        raise ValueError(
            f"{_name(module)}: cannot have sequences packed by cu_seq_lens alone; pass their position_ids"
        )
    if dropout > 0:
        raise ValueError(
            f"{_name(module)}: cannot drop weights, got dropout {dropout} in training; set the host's to 0 "
            "(attention_dropout, attention_probs_dropout_prob or attn_pdrop=0 in from_pretrained)"
        )
    if isinstance(scaling, Tensor):
        raise ValueError(f"{_name(module)}: expected a number as scaling, got a tensor")


def _alive(
    key: Tensor, value: Tensor, mask: Tensor | None, several_axes: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and mask cut so that the queries are the last of them."""
    if mask is None:
        return key, value, None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] > key.shape[2]:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention {IMPLEMENTATION!r}: expected a mask of 2 or 4 dimensions for {key.shape[2]} keys, got {got}"
        )
    if mask.ndim == 2:
        mask = mask.bool()
    elif mask.dtype == torch.int32:
        if not several_axes:
            return _last_slots(key, value, mask)
        mask = visible_of(mask)[..., : _live_slots(mask)]
    elif mask.dtype.is_floating_point:
        mask = mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)
    live = mask.shape[-1]
    return key[:, :, :live], value[:, :, :live], mask


def _live_slots(placed: Tensor) -> int:
    """The number that a device knows, for lattices on which positions count, not their differences alone."""
    if torch.compiler.is_compiling():
        raise ValueError(
            f"attention {IMPLEMENTATION!r}: cannot compile a lattice of several axes with a static cache that is not "
            "empty; pass disable_compile=True, or use a dynamic cache"
        )
    return int(first_slot(placed)) + placed.shape[2]


def _last_slots(key: Tensor, value: Tensor, placed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M slots that end at the last query's, for a ring, where a shift of all changes nothing.

    Slots before the first are hidden. Nothing waits for the device, so it can be compiled and captured.
    """
    queries, keys = placed.shape[2:]
    slots = torch.arange(queries - keys, queries, device=placed.device) + first_slot(placed)
    index = slots.clamp_min(0)
    visible = visible_of(placed).index_select(3, index) & (slots >= 0)
    return key.index_select(2, index), value.index_select(2, index), visible


def _host_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """What a layer that was not chosen does, with a mask that may be ours."""
    host = getattr(module, HOST, None)
    if host is None:
        raise ValueError(
            f"{_name(module)}: has no torus; call use_toroidal_attention(model, lattice=...), or "
            "restore_toroidal_attention(model) after from_pretrained"
        )
    if mask is not None and mask.dtype == torch.int32:
        mask = visible_of(mask)
        if getattr(module.config, ATTRIBUTE)["mask"] == "eager":
            zero = torch.zeros((), dtype=query.dtype, device=mask.device)
            mask = torch.where(mask, zero, torch.finfo(query.dtype).min)
    if mask is not None and mask.shape[-1] < key.shape[2]:
        key, value = key[:, :, : mask.shape[-1]], value[:, :, : mask.shape[-1]]
    return host(module, query, key, value, mask, **options)
