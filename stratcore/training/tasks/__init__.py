"""One task a family: loss, metrics and state for the Trainer."""

from stratcore.training.tasks.attention_transfer import AttentionTransferTask
from stratcore.training.tasks.dictionary_moe import DictionaryMoETask, ObjectiveOptions, Rows
from stratcore.training.tasks.image_classification import ImageClassificationTask
from stratcore.training.tasks.language_modeling import LanguageModelingTask, next_token_loss
from stratcore.training.tasks.sequence_prediction import SequencePredictionTask, sequence_loss
from stratcore.training.tasks.text_classification import TextClassificationTask, predict_logits

__all__ = [
    "AttentionTransferTask",
    "DictionaryMoETask",
    "ImageClassificationTask",
    "LanguageModelingTask",
    "ObjectiveOptions",
    "Rows",
    "SequencePredictionTask",
    "TextClassificationTask",
    "next_token_loss",
    "predict_logits",
    "sequence_loss",
]
