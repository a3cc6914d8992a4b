"""The model families: frozen options and the module of each."""

from stratcore.models.dictionary_moe import DictionaryMoE, DictionaryMoEOptions, DictionaryMoEOutput

__all__ = ["DictionaryMoE", "DictionaryMoEOptions", "DictionaryMoEOutput"]
