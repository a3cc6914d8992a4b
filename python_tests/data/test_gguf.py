from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stratcore.data.errors import DataError
from stratcore.data.gguf import llama_from_tensors, load_gguf, split_rotary_halves

OPTIONS = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
LLAMA_CPP = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to query and key rows: the halves of a head alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def export(model: LlamaForCausalLM, tied: bool) -> list[tuple[str, np.ndarray]]:
    tensors = []
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            weight = interleave(weight, heads) if heads else weight
            tensors.append((f"blk.{layer}.{LLAMA_CPP[part]}.weight", weight.numpy()))
        elif not (tied and stem == "lm_head"):
            tensors.append((f"{TOP[stem]}.weight", weight.numpy()))
    return tensors


@pytest.mark.parametrize("tied", [True, False])
def test_same_logits_after_the_round_trip(tied: bool) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**OPTIONS, tie_word_embeddings=tied)).eval()
    tokens = torch.randint(30, (2, 9))
    rebuilt = llama_from_tensors(OPTIONS, export(model, tied), "tiny.gguf")
    with torch.no_grad():
        assert torch.equal(rebuilt(tokens).logits, model(tokens).logits)
    assert not rebuilt.training and rebuilt.config.tie_word_embeddings is tied
    assert all(parameter.dtype == torch.float32 for parameter in rebuilt.parameters())


def test_split_rotary_halves() -> None:
    rows = torch.arange(8.0)[:, None]
    assert split_rotary_halves(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(split_rotary_halves(interleave(rows, 2), 2), rows)


def test_rejects_tensors() -> None:
    tensors = export(LlamaForCausalLM(LlamaConfig(**OPTIONS, tie_word_embeddings=True)), True)
    for bad, message in (
        (tensors[1:], "tiny.gguf: tensor 'model.embed_tokens.weight' is missing"),
        ([*tensors, ("blk.0.moe.weight", np.ones(3))], "tiny.gguf: tensor 'blk.0.moe.weight' is unknown"),
        (
            [*tensors, ("blk.7.attn_v.weight", np.ones((8, 16), np.float32))],
            "self_attn.v_proj.weight' is unknown",
        ),
        ([(tensors[0][0], np.ones((3, 16), np.float32)), *tensors[1:]], "size mismatch"),
    ):
        with pytest.raises(DataError) as caught:
            llama_from_tensors(OPTIONS, bad, "tiny.gguf")
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"^reading \.gguf files needs the package gguf: pip install gguf$"):
        load_gguf(tmp_path / "x.gguf")
