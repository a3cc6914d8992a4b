"""Recipes: functions that return a complete run, named for what they do."""

from __future__ import annotations

from collections.abc import Callable

from stratcore.recipes.dictionary_moe import DictionaryMoERun, dictionary_moe, dictionary_moe_seed

RECIPES: dict[str, Callable[[], DictionaryMoERun]] = {
    "dictionary_moe": dictionary_moe,
    "dictionary_moe_seed": dictionary_moe_seed,
}

__all__ = ["RECIPES", "DictionaryMoERun", "dictionary_moe", "dictionary_moe_seed"]
