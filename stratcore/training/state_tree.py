"""Nested state as JSON plus tensors, and back.

A state is a nest of dictionaries (string or integer keys), lists and tuples whose leaves are tensors,
strings, numbers, booleans and None. Everything comes back with its type and its bits; tensors that were one
(tied weights) are stored once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TENSOR, _ITEMS, _TUPLE, _FLOAT = "__tensor__", "__items__", "__tuple__", "__float__"


def flatten_state(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a state into a JSON tree and its tensors.

    Args:
        state: The nest described above.

    Returns:
        The tree, strict JSON, with a reference in each tensor's place; and the tensors by name (the path of
        keys, joined with dots), on the CPU and contiguous.

    Raises:
        TypeError: A leaf or key is of another type; the message names its path.
    """
    flattener = _Flattener()
    return flattener.visit(state, ()), flattener.tensors


def state_bytes(state: Any) -> int:
    """Return how many bytes the tensors of a state take."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(state_bytes(item) for item in state.values())
    if isinstance(state, (list, tuple)):
        return sum(state_bytes(item) for item in state)
    return 0


def unflatten_state(tree: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Rebuild a state.

    Args:
        tree: From `flatten_state`.
        tensors: From `flatten_state`, on the CPU.
        device: Tensors that had left an accelerator go here; those that had left the CPU stay there.

    Returns:
        The state.

    Raises:
        KeyError: A referenced tensor is missing.
    """
    if isinstance(tree, list):
        return [unflatten_state(item, tensors, device) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        tensor = tensors[tree[_TENSOR]]
        return tensor if tree["device"] == "cpu" else tensor.to(device)
    if _FLOAT in tree:
        return float(tree[_FLOAT])
    if _TUPLE in tree:
        return tuple(unflatten_state(item, tensors, device) for item in tree[_TUPLE])
    if _ITEMS in tree:
        return {key: unflatten_state(item, tensors, device) for key, item in tree[_ITEMS]}
    return {key: unflatten_state(item, tensors, device) for key, item in tree.items()}


class _Flattener:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._stored: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def visit(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            return {_TENSOR: self._store(value, path), "device": value.device.type}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
        if isinstance(value, tuple):
            return {_TUPLE: self._visit_all(value, path)}
        if isinstance(value, list):
            return self._visit_all(value, path)
        if isinstance(value, Mapping):
            return self._visit_mapping(value, path)
        raise TypeError(
            f"state '{'.'.join(path)}': expected tensors, str, int, float, bool, None, dict, list or tuple, "
            f"got {type(value).__name__}"
        )

    def _visit_all(self, values: list[Any] | tuple[Any, ...], path: tuple[str, ...]) -> list[Any]:
        return [self.visit(value, (*path, str(index))) for index, value in enumerate(values)]

    def _visit_mapping(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise TypeError(f"state '{'.'.join(path)}': expected str or int keys, got {key!r}")
        pairs = [(key, self.visit(item, (*path, str(key)))) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return dict(pairs)
        return {_ITEMS: [[key, item] for key, item in pairs]}

    def _store(self, tensor: Tensor, path: tuple[str, ...]) -> str:
        tensor = tensor.detach()
        identity = (
            str(tensor.device),
            tensor.data_ptr(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        if tensor.numel() > 0 and identity in self._stored:
            return self._stored[identity]
        name = ".".join(path) or "value"
        while name in self.tensors:
            name += "'"
        self._stored[identity] = name
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # The file format refuses two tensors that overlap in memory (a queue and a slice of it).
        self.tensors[name] = tensor.clone() if storage in self._storages else tensor
        self._storages.add(storage)
        return name
