"""Toroidal attention in models of transformers: registered, put into a host and taken out, saved and restored."""

from stratcore.huggingface.adapter import (
    load_toroidal_adapter,
    restore_toroidal_attention,
    save_toroidal_adapter,
)
from stratcore.huggingface.attention import register_toroidal_attention
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
    "register_toroidal_attention",
    "remove_toroidal_attention",
    "restore_toroidal_attention",
    "save_toroidal_adapter",
    "toroidal_parameters",
    "use_toroidal_attention",
]
