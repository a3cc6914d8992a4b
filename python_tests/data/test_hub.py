from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from stratcore.data import hub
from stratcore.data.errors import DataError
from stratcore.data.registry import PAPER_MODELS

TINY = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)


def unreachable(*args: Any, **kwargs: Any) -> None:
    raise OSError("We couldn't connect to the hub\nand more lines")


def error_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", unreachable)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    for function, what in ((hub.load_model, "model"), (hub.load_tokenizer, "tokenizer")):
        assert error_of(function, "roberta") == (
            f"{what} 'roberta': neither a local folder nor to be had from the hub (We couldn't connect to the hub); "
            "go online once, log in if it is gated, or give a local folder with config.json, model.safetensors "
            "and the tokenizer"
        )


def test_names_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def record(where: str, **kwargs: Any) -> Any:
        asked.append((where, kwargs["trust_remote_code"]))
        return torch.nn.Linear(1, 1), {"missing_keys": set()}

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", record)
    for name in ("bert", "RoBERTa", "Llama-3.2-1B", "DeepSeek-R1-Distill-Qwen-1.5B", "someone/else"):
        hub.load_model(name)
    assert asked == [
        ("google-bert/bert-base-uncased", False),
        ("FacebookAI/roberta-base", False),
        ("meta-llama/Llama-3.2-1B", False),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", False),
        ("someone/else", False),
    ]
    assert PAPER_MODELS["llama-3.2-1b"].gated and PAPER_MODELS["bert"].dim == 768
    assert error_of(hub.load_model, "gpt-3-embeddings") == (
        "model 'gpt-3-embeddings' is an API: save its embeddings as .npy and load that file as a table"
    )


def test_folders(tmp_path: Path) -> None:
    assert error_of(hub.load_model, str(tmp_path / "none")) == f"{tmp_path / 'none'}: no such model folder"
    assert "the folder has no config.json" in error_of(hub.load_model, str(tmp_path))
    TINY.save_pretrained(tmp_path)
    assert "the model in this folder cannot be loaded" in error_of(hub.load_model, str(tmp_path))
    torch.manual_seed(0)
    model = BertModel(TINY)
    model.save_pretrained(tmp_path)
    loaded = hub.load_model(str(tmp_path), "bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.pooler.dense.weight, model.pooler.dense.weight.bfloat16())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such type"}))
    assert "the model in this folder cannot be loaded" in error_of(hub.load_model, str(tmp_path))


def test_a_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    BertForMaskedLM(TINY).save_pretrained(tmp_path)  # has no pooler, which nobody needs
    hub.load_model(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in weights if key.endswith("attention.self.query.weight"))
    save_file(
        {k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    message = error_of(hub.load_model, str(tmp_path))
    assert (
        "1 tensors are not in its weights, such as 'encoder.layer.0.attention.self.query.weight'" in message
    )
