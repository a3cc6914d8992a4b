"""Results as JSON: plain values, a check against a typed schema, and writing a file whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np


def to_plain(value: Any) -> Any:
    """Turn dataclasses, arrays and NumPy scalars into JSON's own types; NaN and infinity become None.

    Raises:
        TypeError: a value that JSON has no type for.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        f"results: {type(value).__name__} has no place in JSON, expected numbers, text, lists, dicts"
    )


def check_schema(value: Any, hint: Any, path: str = "") -> None:
    """Check plain values against a TypedDict, a dataclass or a plain type: keys are there, kinds are right.

    Further keys are allowed. A float may be None, where it was not finite.

    Raises:
        ValueError: names the first missing key or ill-typed value by its path, e.g. `gate.statistics.load`.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint) or dataclasses.is_dataclass(hint):
        _expect(isinstance(value, Mapping), path, "a mapping", value)
        for key, item_hint in get_type_hints(hint).items():
            name = f"{path}.{key}" if path else key
            if key not in value:
                raise ValueError(f"results: missing key {name!r}")
            check_schema(value[key], item_hint, name)
    elif origin in (Union, UnionType):
        if value is not None:
            check_schema(value, next(arm for arm in arguments if arm is not type(None)), path)
    elif origin is list:
        _expect(isinstance(value, Sequence) and not isinstance(value, str), path, "a list", value)
        for index, item in enumerate(value):
            check_schema(item, arguments[0], f"{path}[{index}]")
    elif origin is Literal:
        _expect(value in arguments, path, "one of " + ", ".join(map(str, arguments)), value)
    elif origin is dict:
        _expect(isinstance(value, Mapping), path, "a mapping", value)
    elif hint is float:
        _expect(value is None or _is_number(value), path, "a number", value)
    elif hint is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), path, "an integer", value)
    elif hint is str:
        _expect(isinstance(value, str), path, "a string", value)


def write_json(path: Path, value: Any) -> Path:
    """Write plain values as JSON, by `write_atomic`."""
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, (text + "\n").encode())


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file beside its place, sync it, and rename it into place."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect(holds: bool, path: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"results: {path}: expected {expected}, got {type(got).__name__} {str(got)[:40]!r}")
