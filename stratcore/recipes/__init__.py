"""Recipes: functions that return a complete run, named for what they do; and what carries a run out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from stratcore.recipes.dictionary_moe import DictionaryMoERun, dictionary_moe, dictionary_moe_seed

RECIPES: dict[str, Callable[[], Any]] = {
    "dictionary_moe": dictionary_moe,
    "dictionary_moe_seed": dictionary_moe_seed,
}
_EXECUTORS = {
    DictionaryMoERun: "stratcore.recipes.dictionary_moe_run"
}  # loaded on use: they import the models

__all__ = ["RECIPES", "DictionaryMoERun", "dictionary_moe", "dictionary_moe_seed", "executor_of"]


def executor_of(run: Any) -> Callable[..., Any]:
    """`execute(run, folder, *, resume, command, before_training)` for a run of this class."""
    return import_module(_EXECUTORS[type(run)]).execute
