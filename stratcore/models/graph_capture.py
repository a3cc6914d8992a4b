"""Calling models of transformers while a CUDA graph is captured, when the device must not be asked for anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache, DynamicCache


def unasked() -> dict[str, Any]:
    """What a model is called with besides, so that nothing is asked of the device; nothing outside a graph.

    Without a cache transformers asks the device whether rows are packed, and where it cannot, it writes a mask out.
    An empty cache says that they are not.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return {"past_key_values": DynamicCache()}
    return {}


def with_own_caches(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an attention with an empty cache in place of one that another has written to."""
    return {name: DynamicCache() if isinstance(value, Cache) else value for name, value in arguments.items()}
