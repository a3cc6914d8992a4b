"""Host attention and its toroidal branch, as an attention implementation of transformers.

Legend: B batch, H query heads, G key heads, N queries, M keys, E head size.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from stratcore.layers.adaptive_depth import AdaptiveDepthBranch
from stratcore.layers.context_parallel import context_parallel_attention
from stratcore.layers.fft_mixing import FFTMixing
from stratcore.layers.sequence_shards import SequenceShards
from stratcore.layers.toroidal_branch import ToroidalBranch
from stratcore.models._attention_hosts import AttentionLayer, host_attention

IMPLEMENTATION = "toroidal_branch"
Branch = ToroidalBranch | AdaptiveDepthBranch | FFTMixing
# Attributes of an attention module: its branch, and the configuration that it had.
BRANCH, CONFIG = "toroidal_branch", "toroidal_branch_host_config"
# The shards of the sequence, while it is cut across ranks; see `context_parallel_lm`.
SHARDS = "sequence_shards"
# What an attention may be asked for, and this one cannot do.
_REFUSED = {
    "softcap": "a cap on the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "another bias of positions",
    "head_mask": "a mask of heads",
    "cache": "a paged cache",
    "output_attentions": "weights as an output, which are never in memory",
}


def attach_branch(layer: AttentionLayer, branch: Branch) -> None:
    """Lets an attention module dispatch to its host's attention and a branch.

    The module gets a copy of the configuration that names this implementation. All others, and the masks, go by the
    model's, so that they stay what they were, bit for bit. The branch is no submodule: the host's state is its own.
    """
    if AttentionInterface().get(IMPLEMENTATION) is not toroidal_branch_forward:
        AttentionInterface.register(IMPLEMENTATION, toroidal_branch_forward)
    module: Any = layer.module
    config = copy.copy(module.config)
    config._attn_implementation_internal = IMPLEMENTATION
    module.__dict__[CONFIG], module.__dict__[BRANCH] = module.config, branch
    module.config = config


def check_unbent(host: nn.Module) -> None:
    """Refuses a host that is part of a `ToroidalLM` already.

    Raises:
        ValueError: names the first layer with a branch.
    """
    for name, module in host.named_modules():
        if BRANCH in module.__dict__:
            raise ValueError(f"{name}: has a toroidal branch already; copy the host before it gets one")


def check_layer(layer: AttentionLayer) -> None:
    """Refuses an attention that a branch cannot stand beside.

    Raises:
        ValueError: another implementation than 'sdpa' and 'eager', a cap on the scores, or sinks.
    """
    config: Any = layer.module.config
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{layer.name}: expected a host with attention 'sdpa' or 'eager', got {config._attn_implementation!r}; "
            "call host.set_attn_implementation('sdpa') first"
        )
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"{layer.name}: caps its scores (attn_logit_softcapping), which a torus cannot")
    if getattr(layer.module, "sinks", None) is not None:
        raise ValueError(f"{layer.name}: has attention sinks, which a torus cannot")


def rotary_channel_order(layer: AttentionLayer, host: PreTrainedModel, head_dim: int) -> Tensor | None:
    """Channels of a head with rotary pairs next to each other, [E] int64; None for a host without rotary embedding.

    Partial rotary embeddings turn the first channels, the others follow behind. Which two channels turn together is
    asked of the host's own `rotate_half`.

    Raises:
        ValueError: a host with a rotary embedding of another make.
    """
    forward: Any = inspect.unwrap(type(layer.module).forward)
    if not any("rotary" in name for name in forward.__code__.co_names):
        return None
    rotate = forward.__globals__.get("rotate_half")
    found: list[Any] = [
        module.inv_freq for module in host.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)
    ]
    turned = 2 * len(found[0]) if found else 0
    if rotate is None or not 0 < turned <= head_dim or any(2 * len(each) != turned for each in found):
        raise ValueError(f"{layer.name}: has a rotary embedding whose pairs of channels are not known")
    partner = rotate(torch.arange(1.0, turned + 1)).abs().long() - 1
    order = [m for first in range(turned) if partner[first] > first for m in (first, int(partner[first]))]
    return torch.tensor([*order, *range(turned, head_dim)])


def toroidal_branch_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """What the host's attention gives, blended with what its branch gives; see `ToroidalBranch`.

    Args:
        module: an attention with a branch.
        query: [B, H, N, E].
        key: [B, G, M, E], G a divisor of H.
        value: as `key`.
        attention_mask: the host's own: None, causal; [B, M] of keys; or [B or 1, H or 1, N, M], bool (True takes
            part) or added, where the last query stands at the last key. What adds the least finite number, or less,
            hides.
        scaling: of the products.
        dropout: of the weights; must be 0.
        options: whatever else the host passes.

    Returns:
        [B, N, H, E], and None in place of the weights.

    Raises:
        ValueError: something that a torus cannot do, or a mask of another shape.
        TypeError: a mask that is neither bool nor a number.
    """
    branch: Branch = getattr(module, BRANCH)
    for name in _REFUSED:
        if options.get(name) is not None and options[name] is not False:
            refuse(module, name)
    if dropout > 0:
        raise ValueError(
            f"{_name(module)}: cannot drop weights, got dropout {dropout} in training; call "
            "stratcore.models.toroidal_lm.turn_off_attention_dropout(host)"
        )
    if isinstance(scaling, Tensor):
        raise ValueError(f"{_name(module)}: expected a number as scaling, got a tensor")
    mask = _mask(module, attention_mask, query, key)
    if mask is None and 1 < query.shape[2] < key.shape[2]:
        raise ValueError(f"{_name(module)}: expected a mask for keys that are not the queries' own, got None")
    causal = False
    causal = False
    if attention_mask is None or attention_mask.ndim == 2:
        asked = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if asked is None else asked
    shards = module.__dict__.get(SHARDS)
    spread = {} if shards is None else {"shards": shards}
    torus = branch(query, key, value, scaling=scaling, causal=causal, mask=mask, **spread)
    torus = torus.transpose(1, 2).contiguous()
    if isinstance(branch, FFTMixing) or branch.gate is None:
        return torus, None
    inputs = (query, key, value, attention_mask)
    attend = _host(module) if shards is None else host_in_shards
    host = attend(module, *inputs, scaling=scaling, dropout=dropout, **options)[0]
    return branch.blend(host, torus), None


def host_in_shards(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The host's causal attention of this rank's tokens to those of all ranks; arguments as those of a branch.

    Raises:
        ValueError: a mask, dropout or window, or whatever else a shard cannot honour.
    """
    shards: SequenceShards = module.__dict__[SHARDS]
    for name in _REFUSED:
        if options.get(name) is not None and options[name] is not False:
            raise ValueError(f"context_parallel: cannot have {_REFUSED[name]} ({name})")
    if attention_mask is not None or options.get("sliding_window") is not None:
        what = "a mask" if attention_mask is not None else "a sliding window"
        raise ValueError(f"context_parallel: expected plain causal attention, got {what}")
    if dropout > 0 or isinstance(scaling, Tensor):
        raise ValueError("context_parallel: expected no dropout of weights and a number as scaling")
    none = query.new_zeros(query.shape[1], dtype=torch.promote_types(query.dtype, torch.float32))
    found = context_parallel_attention(
        query, key, value, none, group=shards.group, method=shards.method, lattice=shards.length, causal=True,
        scale=scaling,
    )  # fmt: skip
    return found.out.transpose(1, 2).contiguous(), None


def _name(module: nn.Module) -> str:
    return f"toroidal branch of {type(module).__name__}"


def refuse(module: nn.Module, name: str) -> NoReturn:
    """Says in one line that an attention cannot do what is asked by this name."""
    raise ValueError(f"{_name(module)}: cannot have {_REFUSED[name]} ({name})")


def _host(module: nn.Module) -> Any:
    implementation = getattr(module, CONFIG)._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{_name(module)}: expected host attention 'sdpa' or 'eager', got {implementation!r}"
        )
    return host_attention(AttentionLayer(0, _name(module), module), implementation)


def _mask(module: nn.Module, mask: Any, query: Tensor, key: Tensor) -> Tensor | None:
    """In a form that `ops.toroidal_attention` takes: 4 dimensions, bool or added with -inf."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        got = f"{mask.ndim} dimensions" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{_name(module)}: expected a mask of 2 or 4 dimensions, got {got}")
    full = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    wide = mask[:, None, None].bool() if mask.ndim == 2 else mask
    if not all(m in (1, n) for m, n in zip(wide.shape, full, strict=True)) or wide.shape[3] != full[3]:
        raise ValueError(
            f"{_name(module)}: expected a mask [{full[0]}, {full[3]}], or 4 dimensions that broadcast to "
            f"{list(full)}, got {list(mask.shape)}"
        )
    if wide.dtype == torch.bool:
        if mask.ndim == 4 and getattr(module, CONFIG)._attn_implementation == "eager":
            raise ValueError(
                f"{_name(module)}: expected a mask to be added, as eager attention adds it, got bool"
            )
        return wide
    if not wide.is_floating_point():
        raise TypeError(f"{_name(module)}: expected a mask of bool or floating point, got {mask.dtype}")
    return wide.masked_fill(wide <= torch.finfo(wide.dtype).min, -torch.inf)
