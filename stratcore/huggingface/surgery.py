"""Toroidal attention into a host of transformers, and out of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stratcore.huggingface.attention import (
    BIAS,
    HOST,
    refuse_weights,
    register_toroidal_attention,
)
from stratcore.huggingface.bias import ToroidalBias, initial_slopes
from stratcore.huggingface.settings import ATTRIBUTE, IMPLEMENTATION, Settings, Torus, torus_from
from stratcore.models._attention_hosts import (
    AttentionLayer,
    Layers,
    attention_layers,
    choose,
    has_window,
    host_attention,
)

# Attribute of a host: the handle of the hook that refuses to give weights.
GUARD = "toroidal_guard"


def use_toroidal_attention(
    model: PreTrainedModel,
    *,
    layers: Layers = "all",
    slopes: float | str | Sequence | Tensor = 0.0,
    **torus: Any,
) -> list[int]:
    """Let layers of a pretrained model attend on a torus; in place, and as the identity unless slopes are given.

        use_toroidal_attention(model, layers=[0, -1], lattice=4096)

    Each chosen attention gets a `toroidal_bias`, with one learnable slope a head. A second call chooses further
    layers, or gives chosen ones another torus. The other layers keep the attention that they had.

    Args:
        model: any decoder or encoder that dispatches through AttentionInterface; or the part that does, of one that
            has several.
        layers: 'all'; numbers, negative ones from the last layer that has attention; a regular expression, searched
            for in the name of the attention ('layers[.][0-3][.]'); or a function from number to bool.
        slopes: to start from, in scores a step: a number, [H], [H, axes] with `per_axis`, or 'alibi'.
        torus: the fields of `Torus`: `lattice`, in tokens, and if wished `block`, `metric`, `per_axis`,
            `parameterization` ('linear', 'softplus' or 'fixed'), `eps`, `first_position`.

    Returns:
        Numbers of the layers that were chosen.

    Raises:
        ValueError: an option, a choice of layers, or a host that does not fit, in one line.
        TypeError: not a model of transformers.

    Positions: a token's position is its slot: its column in the input, or in the cache. On one axis only differences
        count, so padding on either side, packed sequences, sliding windows and every kind of cache give each sequence
        the result that it has alone, also once the lattice wraps: tokens a period apart have distance 0. On several
        axes a slot's number counts: padding on the left, packed sequences and windows raise. Sequences are packed
        where transformers finds them so: by position_ids that begin anew, without attention_mask and cache.
    Masks: causal or bidirectional, padded on either side, or of any pattern. Where all layers are chosen, the first
        three never have N x M entries, but for a chunk into a static cache that is not empty, and for a decoder that
        is compiled without an attention_mask. A 4-D mask that is passed in ends at the last query's key.
    Refused: attention dropout in training, caps on scores, sinks, biases of positions, a scale that is a tensor,
        weights as an output, a second sequence.
    Saving: `save_toroidal_adapter`; or `model.save_pretrained`, then `restore_toroidal_attention` on what
        `from_pretrained` gives: the options are in the configuration, the slopes among the weights.
    Source: csrc/toroidal_attention/README.md.
    """
    options = torus_from(torus, "use_toroidal_attention")
    found = attention_layers(model)
    chosen = choose(found, layers)
    heads = head_count(model)
    start = initial_slopes(slopes, heads, options)
    install(model, found, {each.number: (options, start) for each in chosen})
    return [each.number for each in chosen]


def remove_toroidal_attention(model: PreTrainedModel) -> None:
    """Give a host back as it was: its attention, its weights, its configuration, bitwise.

    Args:
        model: with toroidal attention, or without, which changes nothing.
    """
    record = getattr(model.config, ATTRIBUTE, None)
    for module in model.modules():
        for name in (BIAS, HOST, GUARD):
            if hasattr(module, name):
                if name == GUARD:
                    getattr(module, name).remove()
                delattr(module, name)
    if record is not None:
        if model.config._attn_implementation == IMPLEMENTATION:
            model.set_attn_implementation(record["implementation"])
        delattr(model.config, ATTRIBUTE)


def toroidal_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Learnable slopes of a model, one tensor a layer: for an optimizer, or to be all that is trained.

        model.requires_grad_(False)
        for slopes in toroidal_parameters(model):
            slopes.requires_grad_(True)

    Args:
        model: the host.

    Returns:
        float32 [H], or [H, axes], each; none for fixed ones.
    """
    return [
        each for module in model.modules() if isinstance(module, ToroidalBias) for each in module.parameters()
    ]


def head_count(model: PreTrainedModel) -> int:
    """Query heads of a model's attention.

    Raises:
        ValueError: its configuration does not name one number.
    """
    heads = getattr(model.config, "num_attention_heads", None)
    if type(heads) is not int:
        raise ValueError(f"{type(model).__name__}: expected one number of attention heads, got {heads!r}")
    return heads


def attached(found: Sequence[AttentionLayer]) -> dict[int, ToroidalBias]:
    """Toroidal biases by number of layer."""
    pairs = ((each.number, getattr(each.module, BIAS, None)) for each in found)
    return {number: bias for number, bias in pairs if bias is not None}


def install(
    model: PreTrainedModel, found: Sequence[AttentionLayer], new: Mapping[int, tuple[Torus, Tensor]]
) -> None:
    """Attach biases, with these slopes to start from, and let the model dispatch to them; all of it or nothing.

    Raises:
        ValueError: a layer, or the host, that cannot.
    """
    present = attached(found)
    chosen = {
        **{number: bias.torus for number, bias in present.items()},
        **{n: t for n, (t, _) in new.items()},
    }
    rest = [each for each in found if each.number not in chosen]
    implementation = _host_implementation(model, bool(present))
    if rest and implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"layers: only 'sdpa' and 'eager' can stay beside toroidal layers, and the host has {implementation!r}: "
            "choose all layers, or call model.set_attn_implementation first"
        )
    picked = [each for each in found if each.number in new]
    for each in picked:
        _check_layer(each, new[each.number][0])
    hosts = [(each, host_attention(each, implementation)) for each in rest]
    biases = [(each, _bias_for(each, *new[each.number])) for each in picked]
    register_toroidal_attention()
    for each, host in hosts:
        setattr(each.module, HOST, host)
    for each, bias in biases:
        _attach(each.module, bias)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and not hasattr(module, GUARD):
            setattr(module, GUARD, module.register_forward_pre_hook(refuse_weights, with_kwargs=True))
    record = Settings(heads=head_count(model), layers=chosen).to_json()
    record |= {"implementation": implementation, "mask": implementation if rest else IMPLEMENTATION}
    setattr(model.config, ATTRIBUTE, record)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
    finally:
        switched = model.config._attn_implementation == IMPLEMENTATION
        if not switched:
            remove_toroidal_attention(model)
    if not switched:
        raise ValueError(f"{type(model).__name__}: does not let its attention implementation be set")


def _host_implementation(model: PreTrainedModel, attached_before: bool) -> str:
    """What the host dispatched to, or would, had it not been asked for this attention by name."""
    now = model.config._attn_implementation
    if attached_before or now == IMPLEMENTATION:
        own = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        return getattr(model.config, ATTRIBUTE, {}).get("implementation", own)
    return now


def _check_layer(layer: AttentionLayer, torus: Torus) -> None:
    if getattr(layer.module.config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"{layer.name}: caps its scores (attn_logit_softcapping), which a torus cannot")
    if getattr(layer.module, "sinks", None) is not None:
        raise ValueError(f"{layer.name}: has attention sinks, which a torus cannot")
    if torus.axes > 1 and has_window(layer):
        raise ValueError(
            f"{layer.name}: attends to a window, whose cache drops slots; a lattice of {torus.axes} axes counts them"
        )


def _attach(module: nn.Module, bias: ToroidalBias) -> None:
    setattr(module, BIAS, bias)
    if hasattr(module, HOST):
        delattr(module, HOST)


def _bias_for(layer: AttentionLayer, torus: Torus, slopes: Tensor) -> ToroidalBias:
    device = next(layer.module.parameters()).device
    if device.type == "meta":
        raise ValueError(f"{layer.name}: expected weights on a device, got none yet (meta)")
    return ToroidalBias(torus, slopes.clone()).to(device)
