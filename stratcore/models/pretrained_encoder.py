"""Encoders of transformers behind one face: loaded whole or not at all, read the same way.

Legend: B sequences, N tokens, D channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from stratcore.layers._residual_branch import blank_pads, token_mean

# Last hidden states do not pass through a pooler, so its weights may be absent.
_UNUSED = ("pooler.",)
# Constants that older checkpoints hold.
_CONSTANTS = ("position_ids", "token_type_ids", "inv_freq", "attn.bias", "attn.masked_bias")
# Encoders that count positions from the first column, with pads on the left too.
_COUNTED_POSITIONS = ("bert", "distilbert", "electra", "albert", "deberta", "deberta-v2")


class PretrainedMismatch(ValueError):
    """Weights do not fit the model that was asked for; in one line with the first names of each kind."""


# ---- loading


def load_encoder(
    name: str | Path, *, dtype: torch.dtype = torch.float32, encoder_class: Any = AutoModel
) -> PreTrainedModel:
    """Pretrained encoder without a head, every tensor of it read from the weights.

    Args:
        name: local folder, or name on the hub.
        dtype: of the weights.
        encoder_class: what loads it, a class of transformers; AutoModel follows the folder's config.json.

    Raises:
        PretrainedMismatch: a tensor of the encoder that the weights lack, have in another shape, or have besides.
            transformers draws such tensors at random and goes on, so that a "pretrained" encoder may be none.
        OSError: nothing to be had under this name.
    """
    with _without_report():
        encoder, report = encoder_class.from_pretrained(
            str(name),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, in one line
        )
    check_loaded(encoder, report, f"encoder {str(name)!r}")
    return encoder.train(False)


@contextmanager
def _without_report() -> Iterator[None]:
    """Silences the table of tensors that transformers prints: `check_loaded` says in one line what matters of it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_loaded(model: PreTrainedModel, report: Mapping[str, Iterable[Any]], what: str) -> None:
    """Refuses a model that is not wholly made of its weights.

    Heads of the pretraining task, poolers and constants of older checkpoints are no part of the encoder.

    Raises:
        PretrainedMismatch: in one line.
    """
    parts = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in report["missing_keys"] if not _is_allowed(key))
    surplus = sorted(
        key
        for key in report["unexpected_keys"]
        if not _is_allowed(key.removeprefix(prefix)) and _first_part(key.removeprefix(prefix)) in parts
    )
    changed = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    found = [
        f"{len(keys)} {kind}, such as {', '.join(map(repr, keys[:2]))}"
        for keys, kind in (
            (missing, "of its tensors are not in the weights"),
            (changed, "have another shape there"),
            (surplus, "tensors of the weights have no place in it"),
        )
        if keys
    ]
    if found:
        raise PretrainedMismatch(f"{what} is no {type(model).__name__}: {'; '.join(found)}")


def _is_allowed(key: str) -> bool:
    return key.startswith(_UNUSED) or key.endswith(_CONSTANTS)


def _first_part(key: str) -> str:
    return key.split(".", 1)[0]


def encoder_config(name: str | Path) -> PretrainedConfig:
    """Configuration of a local folder or of a name on the hub.

    Raises:
        OSError: nothing to be had under this name.
    """
    return AutoConfig.from_pretrained(str(name), trust_remote_code=False)


def new_encoder(config: PretrainedConfig | None) -> PreTrainedModel:
    """Encoder of a configuration with weights at random.

    Raises:
        ValueError: no configuration of one.
    """
    if config is None:
        raise ValueError("encoder: expected the configuration of an encoder, got None")
    return AutoModel.from_config(config, trust_remote_code=False)


def check_encoder(encoder: PreTrainedModel) -> None:
    """Refuses what has no single stack of hidden states of tokens.

    Raises:
        ValueError: an encoder-decoder, or a configuration without sizes.
    """
    config = encoder.config
    if config.is_encoder_decoder:
        raise ValueError(f"encoder: expected an encoder or a decoder alone, got {type(encoder).__name__}")
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(getattr(config, name, None), int):
            raise ValueError(f"encoder: expected {type(config).__name__} with {name}, a whole number")


def drop_pooler(encoder: PreTrainedModel) -> None:
    """Takes out the pooler, which would be parameters without a gradient; in place."""
    host: Any = encoder
    if not isinstance(getattr(host, "pooler", None), nn.Module):
        return
    if "add_pooling_layer" in inspect.signature(type(host).__init__).parameters:
        host.pooler = None  # its forward knows of encoders without one
    else:
        host.pooler.requires_grad_(False)


# ---- reading


def is_causal(config: PretrainedConfig) -> bool:
    """Whether tokens see earlier tokens only: a decoder, or a family that has no masked language model."""
    if getattr(config, "is_decoder", False):
        return True
    family = config.model_type
    return family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def encoder_arguments(encoder: PreTrainedModel) -> dict[str, Any]:
    """What to call an encoder with besides tokens: no cache, where it has one."""
    return {"return_dict": True} | ({"use_cache": False} if takes(encoder, "use_cache") else {})


def takes(encoder: PreTrainedModel, name: str) -> bool:
    """Whether an encoder has an argument of this name."""
    return name in inspect.signature(encoder.forward).parameters


def counted_positions(config: PretrainedConfig, mask: Tensor | None) -> Tensor | None:
    """Positions [B, N] from the first real token on, where the encoder does not count them so by itself.

    Decoders and the families of BERT that count columns get them; RoBERTa counts real tokens; of others pads belong
    on the right.
    """
    if mask is None or not (is_causal(config) or config.model_type in _COUNTED_POSITIONS):
        return None
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One row [B, D] a sequence from hidden states [B, N, D]; 0 for a sequence of pads alone.

    pooling: 'mean' over real tokens, 'cls' the first real token, 'last' the last real one.
    """
    if pooling == "mean":
        return token_mean(hidden, mask)
    if mask is None:
        return hidden[:, 0 if pooling == "cls" else -1]
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    chosen_B = (mask * (order if pooling == "last" else order.flip(0))).argmax(-1)
    index_B1D = chosen_B[:, None, None].expand(-1, 1, hidden.shape[-1])
    return blank_pads(hidden, mask).gather(1, index_B1D).squeeze(1)
