"""Recipes: functions that return a complete run, named for what they do; and what carries a run out."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from stratcore.recipes.analysis import AnalysisRun, advanced, multi_domain, notebook, stratification
from stratcore.recipes.compare_classifiers import CompareClassifiersRun, compare_classifiers
from stratcore.recipes.compare_dictionaries import CompareDictionariesRun, compare_dictionaries
from stratcore.recipes.compare_images import CompareImagesRun, compare_images
from stratcore.recipes.compare_positions import ComparePositionsRun, compare_positions
from stratcore.recipes.dictionary_moe import DictionaryMoERun, dictionary_moe, dictionary_moe_seed
from stratcore.recipes.dual_stream_vit import DualStreamViTRun, dual_stream_vit, dual_stream_vit_digits
from stratcore.recipes.dual_stream_vit_source import SOURCE_RUNS
from stratcore.recipes.perplexity_suite import PerplexitySuiteRun, perplexity_suite
from stratcore.recipes.search_dictionary_moe import SearchDictionaryMoERun, search_dictionary_moe
from stratcore.recipes.sweep_toroidal_lm import SweepToroidalLMRun, sweep_toroidal_lm
from stratcore.recipes.toroidal_lm import ToroidalLMRun, toroidal_lm
from stratcore.recipes.transfer_dictionary_moe import TransferDictionaryMoERun, transfer_dictionary_moe

RECIPES: dict[str, Callable[[], Any]] = {
    "dictionary_moe": dictionary_moe,
    "dictionary_moe_seed": dictionary_moe_seed,
    "compare_classifiers": compare_classifiers,
    "compare_dictionaries": compare_dictionaries,
    "compare_positions": compare_positions,
    "compare_images": compare_images,
    "search_dictionary_moe": search_dictionary_moe,
    "transfer_dictionary_moe": transfer_dictionary_moe,
    "dual_stream_vit": dual_stream_vit,
    "dual_stream_vit_digits": dual_stream_vit_digits,
    **{recipe.__name__: recipe for recipe in SOURCE_RUNS},
    "toroidal_lm": toroidal_lm,
    "sweep_toroidal_lm": sweep_toroidal_lm,
    "perplexity_suite": perplexity_suite,
}
ANALYSES: dict[str, Callable[[], AnalysisRun]] = {
    "stratification": stratification,
    "advanced": advanced,
    "notebook": notebook,
    "multi_domain": multi_domain,
}
_EXECUTORS: dict[type, str] = {  # loaded on use: they import the models
    AnalysisRun: "stratcore.recipes.analysis_run",
    CompareClassifiersRun: "stratcore.recipes.compare_classifiers_run",
    CompareDictionariesRun: "stratcore.recipes.compare_dictionaries_run",
    ComparePositionsRun: "stratcore.recipes.compare_positions_run",
    CompareImagesRun: "stratcore.recipes.compare_images_run",
    SearchDictionaryMoERun: "stratcore.recipes.search_dictionary_moe",
    TransferDictionaryMoERun: "stratcore.recipes.transfer_dictionary_moe",
    PerplexitySuiteRun: "stratcore.recipes.perplexity_suite_run",
    SweepToroidalLMRun: "stratcore.recipes.sweep_toroidal_lm_run",
    ToroidalLMRun: "stratcore.recipes.toroidal_lm_run",
    DualStreamViTRun: "stratcore.recipes.dual_stream_vit_run",
    DictionaryMoERun: "stratcore.recipes.dictionary_moe_run",
}

__all__ = [
    "ANALYSES",
    "RECIPES",
    "AnalysisRun",
    "CompareClassifiersRun",
    "CompareDictionariesRun",
    "CompareImagesRun",
    "ComparePositionsRun",
    "DictionaryMoERun",
    "DualStreamViTRun",
    "PerplexitySuiteRun",
    "SearchDictionaryMoERun",
    "SweepToroidalLMRun",
    "ToroidalLMRun",
    "TransferDictionaryMoERun",
    "advanced",
    "compare_classifiers",
    "compare_dictionaries",
    "compare_images",
    "compare_positions",
    "dictionary_moe",
    "dictionary_moe_seed",
    "dual_stream_vit",
    "dual_stream_vit_digits",
    "executor_of",
    "multi_domain",
    "notebook",
    "perplexity_suite",
    "search_dictionary_moe",
    "stratification",
    "sweep_toroidal_lm",
    "toroidal_lm",
    "transfer_dictionary_moe",
]


def executor_of(run: Any) -> Callable[..., Any]:
    """`execute(run, folder, *, resume, command, before_training)` for a run of this class."""
    return import_module(_EXECUTORS[type(run)]).execute
