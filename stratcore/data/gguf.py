"""Language models out of GGUF files (llama.cpp), de-quantized to plain float32 modules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stratcore.data.errors import DataError
from stratcore.data.table import check_file

if TYPE_CHECKING:
    from torch import nn

_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def load_gguf(path: str | Path) -> tuple[nn.Module, Any]:
    """Load a model of the llama architecture and its tokenizer.

    The result is an ordinary `LlamaForCausalLM` in float32: it trains, saves and embeds like any other. What
    the file stored in 4 or 8 bits stays that coarse.

    Args:
        path: `.gguf` file.

    Returns:
        (model in evaluation mode, tokenizer).

    Raises:
        ModuleNotFoundError: the `gguf` package is missing.
        DataError: not a GGUF file, another architecture, a tensor missing or unknown.
    """
    from transformers import AutoTokenizer

    path = Path(path)
    reader = open_gguf(path)
    field = reader.get_field("general.architecture")
    if field is None or field.contents() != "llama":
        raise DataError(f"{path}: expected architecture 'llama', got {field.contents() if field else None!r}")
    tensors = ((tensor.name, _values(tensor)) for tensor in reader.tensors)
    model = llama_from_tensors(_llama_options(reader, path), tensors, str(path))
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def open_gguf(path: str | Path) -> Any:
    """Return a `GGUFReader` of a file; tensors are read when asked for.

    Raises:
        ModuleNotFoundError: the `gguf` package is missing.
        DataError: not a GGUF file.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        message = "reading .gguf files needs the package gguf: pip install gguf"
        raise ModuleNotFoundError(message, name=error.name) from error
    path = Path(path)
    check_file(path)
    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise DataError(f"{path}: not a readable GGUF file ({error})") from None


def read_tensor(reader: Any, name: str) -> np.ndarray | None:
    """Return one tensor of an open file in float32, de-quantized; None where there is none of that name."""
    return next((_values(tensor) for tensor in reader.tensors if tensor.name == name), None)


def _values(tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize

    # A copy, because values that were stored as float32 are a read-only view of the file.
    return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)


def llama_from_tensors(
    options: dict[str, Any], tensors: Iterable[tuple[str, np.ndarray]], source: str
) -> nn.Module:
    """Build a `LlamaForCausalLM` from tensors under llama.cpp's names.

    Args:
        options: keyword arguments of `LlamaConfig`.
        tensors: (name, values) pairs.
        source: begins error messages.

    Raises:
        DataError: an unknown name, a wrong shape or a tensor that is missing.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    weights = {}
    for name, values in tensors:
        target = _hugging_face_name(name, source)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(target.split(".")[-2])
        weight = torch.from_numpy(values)
        weights[target] = weight if heads is None else split_rotary_halves(weight, options[heads])
    tied = "lm_head.weight" not in weights
    model = LlamaForCausalLM(LlamaConfig(**options, tie_word_embeddings=tied))
    try:
        report = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise DataError(f"{source}: {error}") from None
    missing = set(report.missing_keys) - ({"lm_head.weight"} if tied else set())
    if missing or report.unexpected_keys:
        name = min(missing | set(report.unexpected_keys))
        raise DataError(f"{source}: tensor {name!r} is {'missing' if name in missing else 'unknown'}")
    model.tie_weights()
    return model.eval()


def split_rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of query and key rows, where the two rotary halves of a head alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str, source: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _BLOCK_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.weight"
    if parts[0] in _TOP_NAMES and parts[1:] == ["weight"]:
        return f"{_TOP_NAMES[parts[0]]}.weight"
    raise DataError(f"{source}: tensor {name!r} is unknown")


def _llama_options(reader: Any, path: Path) -> dict[str, Any]:
    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise DataError(f"{path}: key {key!r} is missing")
        return field.contents()

    embedding = next((t for t in reader.tensors if t.name == "token_embd.weight"), None)
    if embedding is None:
        raise DataError(f"{path}: tensor 'token_embd.weight' is missing")
    special = {
        f"{name}_token_id": int(field.contents())
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if (field := reader.get_field(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    return special | {
        "vocab_size": int(embedding.shape[1]),
        "hidden_size": int(value("llama.embedding_length")),
        "intermediate_size": int(value("llama.feed_forward_length")),
        "num_hidden_layers": int(value("llama.block_count")),
        "num_attention_heads": int(value("llama.attention.head_count")),
        "num_key_value_heads": int(value("llama.attention.head_count_kv")),
        "max_position_embeddings": int(value("llama.context_length")),
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(value("llama.rope.freq_base"))},
    }
