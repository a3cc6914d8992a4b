"""One task a family: loss, metrics and state for the Trainer."""

from stratcore.training.tasks.dictionary_moe import DictionaryMoETask, ObjectiveOptions, Rows

__all__ = ["DictionaryMoETask", "ObjectiveOptions", "Rows"]
