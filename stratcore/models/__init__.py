"""The model families: options and the module of each; a name is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "arbitration_vit": ("ArbitrationViT",),
    "context_parallel_lm": ("context_parallel", "context_parallel_logits", "context_parallel_nll"),
    "dictionary_moe": ("DictionaryMoE", "DictionaryMoEOptions", "DictionaryMoEOutput"),
    "dual_stream_vit": ("DualStreamViT", "DualStreamViTOutput"),
    "dual_stream_vit_config": ("ARCHITECTURES", "DualStreamViTOptions"),
    "geometric_regularization": ("geometric_losses",),
    "plain_vit": ("PlainViT", "PlainViTOptions", "plain_options"),
    "pretrained_encoder": ("PretrainedMismatch", "load_encoder"),
    "sequence_transformer": ("SequenceTransformer", "SequenceTransformerOptions"),
    "stratified_classifier": (
        "ParameterCount",
        "RoutedTokens",
        "StratifiedClassifier",
        "StratifiedClassifierOutput",
    ),
    "stratified_classifier_blocks": ("ResidualMLP", "block_parameters"),
    "stratified_classifier_config": ("VARIANTS", "StratifiedClassifierConfig"),
    "toroidal_lm": ("ToroidalLM",),
    "toroidal_lm_config": ("ToroidalLMOptions",),
    "text_prediction": ("TextPrediction", "TextPredictor"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_NAMES])
