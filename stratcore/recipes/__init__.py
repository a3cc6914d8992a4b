"""Recipes: functions that return a complete run, named for what they do; and what carries a run out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from stratcore.recipes.compare_dictionaries import CompareDictionariesRun, compare_dictionaries
from stratcore.recipes.dictionary_moe import DictionaryMoERun, dictionary_moe, dictionary_moe_seed

RECIPES: dict[str, Callable[[], Any]] = {
    "dictionary_moe": dictionary_moe,
    "dictionary_moe_seed": dictionary_moe_seed,
    "compare_dictionaries": compare_dictionaries,
}
_EXECUTORS = {  # loaded on use: they import the models
    CompareDictionariesRun: "stratcore.recipes.compare_dictionaries_run",
    DictionaryMoERun: "stratcore.recipes.dictionary_moe_run",
}

__all__ = [
    "RECIPES",
    "CompareDictionariesRun",
    "DictionaryMoERun",
    "compare_dictionaries",
    "dictionary_moe",
    "dictionary_moe_seed",
    "executor_of",
]


def executor_of(run: Any) -> Callable[..., Any]:
    """`execute(run, folder, *, resume, command, before_training)` for a run of this class."""
    return import_module(_EXECUTORS[type(run)]).execute
