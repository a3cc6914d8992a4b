"""One task a family: loss, metrics and state for the Trainer."""

from stratcore.training.tasks.dictionary_moe import DictionaryMoETask, ObjectiveOptions, Rows
from stratcore.training.tasks.image_classification import ImageClassificationTask
from stratcore.training.tasks.sequence_prediction import SequencePredictionTask, sequence_loss
from stratcore.training.tasks.text_classification import TextClassificationTask, predict_logits

__all__ = [
    "DictionaryMoETask",
    "ImageClassificationTask",
    "ObjectiveOptions",
    "Rows",
    "SequencePredictionTask",
    "TextClassificationTask",
    "predict_logits",
    "sequence_loss",
]
