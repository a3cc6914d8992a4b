"""Modules over the ops: no loss, no input or output of files."""

from stratcore.layers.dictionary import DictionaryExperts
from stratcore.layers.gating import QueryKeyGate, expert_weights
from stratcore.layers.lista import ListaOptions, TopKLISTA

__all__ = ["DictionaryExperts", "ListaOptions", "QueryKeyGate", "TopKLISTA", "expert_weights"]
