"""Toroidal attention in models of transformers, put in, taken out, saved, restored; models for its auto classes."""

from stratcore.huggingface.adapter import (
    load_toroidal_adapter,
    restore_toroidal_attention,
    save_toroidal_adapter,
)
from stratcore.huggingface.attention import register_toroidal_attention
from stratcore.huggingface.auto_classes import register_stratified_classifier
from stratcore.huggingface.bias import ToroidalBias
from stratcore.huggingface.settings import Torus
from stratcore.huggingface.surgery import (
    remove_toroidal_attention,
    toroidal_parameters,
    use_toroidal_attention,
)

__all__ = [
    "ToroidalBias",
    "Torus",
    "load_toroidal_adapter",
    "register_stratified_classifier",
    "register_toroidal_attention",
    "remove_toroidal_attention",
    "restore_toroidal_attention",
    "save_toroidal_adapter",
    "toroidal_parameters",
    "use_toroidal_attention",
]
