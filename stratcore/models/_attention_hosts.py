"""Attention modules of a host, found by what their forward calls, and which of them are chosen."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn
from transformers import AttentionInterface, PreTrainedModel

Layers = str | int | Iterable[int] | Callable[[int], bool]

# A config's own word, and why it stands in the way.
_SELF_ONLY = {
    "is_encoder_decoder": "an encoder and a decoder, whose tokens have no common positions",
    "add_cross_attention": "attention to another sequence, which has no common positions",
}


class AttentionLayer(NamedTuple):
    """One attention module: the number of its layer, its name in the model, itself."""

    number: int
    name: str
    module: nn.Module


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """Every attention of a model that dispatches through AttentionInterface, by number of layer.

    Raises:
        TypeError: not a PreTrainedModel.
        ValueError: none dispatches, or the model is one that attends to a second sequence or has several parts.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a PreTrainedModel of transformers, got {type(model).__name__}")
    kind = type(model).__name__
    for name, problem in _SELF_ONLY.items():
        if getattr(model.config, name, False):
            raise ValueError(f"{kind}: cannot have toroidal attention in {problem} ({name})")
    chosen = {id(module) for module in dispatching_modules(model)}
    found = [(name, module) for name, module in model.named_modules() if id(module) in chosen]
    if not found:
        raise ValueError(f"{kind}: none of its modules dispatches attention through AttentionInterface")
    if any(getattr(module, "config", None) is not model.config for _, module in found):
        raise ValueError(
            f"{kind}: has parts with configurations of their own; pass one part, such as its text model"
        )
    numbers: list[Any] = [getattr(module, "layer_idx", None) for _, module in found]
    if len(set(numbers)) < len(found) or not all(type(number) is int for number in numbers):
        numbers = list(range(len(found)))
    return sorted(AttentionLayer(number, *each) for number, each in zip(numbers, found, strict=True))


def dispatching_modules(model: nn.Module) -> list[nn.Module]:
    """Modules whose forward calls what AttentionInterface holds, in their order."""
    return [module for module in model.modules() if _dispatches(module)]


def _forward(module: nn.Module) -> Any:
    return inspect.unwrap(type(module).forward)


def _dispatches(module: nn.Module) -> bool:
    code = getattr(_forward(module), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def choose(found: list[AttentionLayer], layers: Layers) -> list[AttentionLayer]:
    """The layers that are asked for; see `use_toroidal_attention`.

    Raises:
        ValueError: a number that is none of theirs, an expression that is not regular, or no layer at all.
        TypeError: another kind of choice.
    """
    if isinstance(layers, str):
        try:
            chosen = found if layers == "all" else [each for each in found if re.search(layers, each.name)]
        except re.error as error:
            raise ValueError(
                f"layers: expected 'all' or a regular expression, got {layers!r}: {error}"
            ) from None
    elif callable(layers):
        chosen = [each for each in found if layers(each.number)]
    else:
        wanted = _numbers(layers, [each.number for each in found])
        chosen = [each for each in found if each.number in wanted]
    if not chosen:
        names = ", ".join(each.name for each in found[:2])
        raise ValueError(f"layers: {layers!r} chooses none of {len(found)} layers ({names}, ...)")
    return chosen


def _numbers(layers: int | Iterable[int], known: list[int]) -> set[int]:
    wanted = set()
    for given in layers if isinstance(layers, Iterable) else [layers]:
        if isinstance(given, bool) or not hasattr(given, "__index__"):
            raise TypeError(f"layers: expected whole numbers, got {given!r}")
        number = operator.index(given)
        if -len(known) <= number < 0:
            number = known[number]
        if number not in known:
            raise ValueError(f"layers: expected numbers of layers with attention, {known}, got {number}")
        wanted.add(number)
    return wanted


def has_window(layer: AttentionLayer) -> bool:
    """Whether a layer attends to a sliding window or a chunk, so that its cache drops the first slots."""
    config: Any = layer.module.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and layer.number < len(kinds):
        return kinds[layer.number] != "full_attention"
    windows = ("sliding_window", "attention_chunk_size")
    return any(getattr(config, name, None) is not None for name in windows)


def host_attention(layer: AttentionLayer, implementation: str) -> Callable:
    """The function that a layer would have called.

    Raises:
        ValueError: it cannot be called from outside of the layer.
    """
    if implementation == "sdpa":
        return AttentionInterface()[implementation]
    eager = _forward(layer.module).__globals__.get("eager_attention_forward")
    if eager is None or getattr(layer.module, "reorder_and_upcast_attn", False):
        raise ValueError(
            f"{layer.name}: cannot keep eager attention beside toroidal layers; set 'sdpa', or choose all layers"
        )
    return eager
