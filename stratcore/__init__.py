"""Geometry-aware torch ops, and the layers, models and analyses that stand on them.

Importing the package costs nothing: each room loads when it is first used, and `stratcore.array` works where
torch is not installed.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

__all__ = [
    "analysis",
    "array",
    "data",
    "huggingface",
    "layers",
    "models",
    "ops",
    "recipes",
    "training",
]

try:
    __version__ = metadata.version("stratcore")
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
