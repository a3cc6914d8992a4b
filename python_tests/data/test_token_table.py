from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from python_tests.data.test_embeddings import BLOCK, DECODER, SIZES, VOCABULARY, make_tokenizer
from stratcore.data import token_table
from stratcore.data.errors import DataError
from stratcore.data.token_table import TokenTable, token_embeddings

V = len(VOCABULARY)
MODELS = {
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=40, n_embd=16, n_layer=2, n_head=2)),
    "bert": lambda: BertModel(BertConfig(**SIZES, **BLOCK)),
    "masked bert": lambda: BertForMaskedLM(BertConfig(**SIZES, **BLOCK)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
}
TIED = {"llama tied": True, "llama": False, "gpt2": True, "bert": None, "masked bert": True, "t5": True}


def save(kind: str, folder: Path, tokenizer: Any = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind]()
    model.save_pretrained(folder, **options)
    (tokenizer or make_tokenizer("bert" in kind)).save_pretrained(folder)
    return model


def error_of(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        token_embeddings(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", MODELS)
def test_tables_equal_the_built_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(kind, tmp_path)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)  # nothing may build the model
    table = token_embeddings(tmp_path)
    np.testing.assert_array_equal(table.rows, model.get_input_embeddings().weight.detach().numpy())
    assert table.rows.dtype == np.float32 and table.rows.shape == (V, 16)
    assert table.tied is TIED[kind] and table.which == "input" and table.dropped == {}
    assert table.tokens == tuple(VOCABULARY) and table.ids.tolist() == list(range(V))
    assert table.source == f"{tmp_path} (input embedding)"
    if TIED[kind] is None:
        assert error_of(tmp_path, which="output") == f"{tmp_path}: BertModel has no output embedding"
        return
    output = token_embeddings(tmp_path, which="output")
    np.testing.assert_array_equal(output.rows, model.get_output_embeddings().weight.detach().numpy())
    assert np.array_equal(output.rows, table.rows) is TIED[kind] and output.tied is TIED[kind]


def test_only_the_shard_with_the_table_is_read(tmp_path: Path) -> None:
    model = save("llama", tmp_path, max_shard_size="6KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = index["model.embed_tokens.weight"]
    others = set(index.values()) - {needed}
    assert len(others) >= 2
    for shard in others:
        (tmp_path / shard).unlink()
    rows = token_embeddings(str(tmp_path)).rows
    np.testing.assert_array_equal(rows, model.model.embed_tokens.weight.detach().numpy())
    assert "the output embedding 'lm_head.weight' is not in its weights" in error_of(tmp_path, which="output")


def test_a_bare_model_reads_the_weights_of_one_with_a_head(tmp_path: Path) -> None:
    model = save("masked bert", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for architectures in (["BertModel"], [], ["pipeline"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
        table = token_embeddings(tmp_path)
        expected = model.bert.embeddings.word_embeddings.weight.detach().numpy()
        np.testing.assert_array_equal(table.rows, expected)
        assert table.tied is None


def test_half_precision_is_widened(tmp_path: Path) -> None:
    model = save("llama", tmp_path)
    model.bfloat16().save_pretrained(tmp_path)
    table = token_embeddings(tmp_path)
    np.testing.assert_array_equal(table.rows, model.model.embed_tokens.weight.detach().float().numpy())


def test_special_unused_and_duplicate_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(True)  # its 44 tokens are fewer than the 48 rows below
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    words = {
        "w0": "[unused0]",
        "w1": "<unused12>",
        "w2": "<|reserved_special_token_7|>",
        "w3": "madeupword0002",
    }
    path = tmp_path / "tokenizer.json"
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES | {"vocab_size": 48}, **BLOCK))
    with torch.no_grad():
        weight = model.embeddings.word_embeddings.weight
        weight[9] = weight[30] = weight[8]
        weight[47] = weight[4]
        weight[20] = 0.0
        weight[21] = -0.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = path.read_text()
    for old, new in words.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text)
    table = token_embeddings(tmp_path)
    assert [table.tokens[i] for i in np.flatnonzero(table.special)] == ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    assert table.ids[table.unused].tolist() == [4, 5, 6, 7, 44, 45, 46, 47]
    assert table.tokens[4:8] == tuple(words.values()) and table.tokens[44:] == tuple(
        f"<row {i}>" for i in range(44, 48)
    )
    assert table.ids[table.duplicate].tolist() == [9, 20, 21, 30, 47]  # 20: the row of [PAD] is zero too
    assert table.counts() == {"special": 4, "unused": 8, "duplicate": 5}
    fewer = token_embeddings(tmp_path, drop=("special", "unused", "duplicate"))
    assert fewer.dropped == {"special": 4, "unused": 8, "duplicate": 4}  # row 47 counts as unused
    assert len(fewer.rows) == len(fewer.tokens) == 32 and fewer.counts() == {
        "special": 0,
        "unused": 0,
        "duplicate": 0,
    }
    np.testing.assert_array_equal(fewer.rows, table.rows[fewer.ids])
    assert [fewer.tokens[0], fewer.ids[0], fewer.tokens[1], fewer.ids[1]] == ["w4", 8, "w6", 10]
    assert table.drop(("unused",)).drop(("special",)).dropped == {"unused": 8, "special": 4}
    assert fewer.as_table().num_rows == 32 and fewer.as_table().domain_names == ("tokens",)
    with pytest.raises(ValueError, match="^drop: expected some of .*, got 'rare'$"):
        table.drop(("rare",))
    everything = TokenTable(**{**table.__dict__, "special": np.ones(48, bool)})
    with pytest.raises(DataError, match=r"\(input embedding\): no token is left without special rows$"):
        everything.drop(("special",))


def test_save(tmp_path: Path) -> None:
    save("llama tied", tmp_path)
    table = token_embeddings(tmp_path, drop=("special",))
    table.save(tmp_path / "tiny_tokens.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "tiny_tokens.npy"), table.rows)
    facts = json.loads((tmp_path / "tiny_tokens.tokens.json").read_text())
    assert facts["tokens"] == list(table.tokens) and facts["ids"] == table.ids.tolist()
    assert facts["tied"] is True and facts["dropped"] == {"special": 1} and facts["which"] == "input"
    assert facts["unused"] == facts["duplicate"] == facts["special"] == []


def fake_gguf(
    monkeypatch: pytest.MonkeyPatch, tensors: dict[str, np.ndarray], fields: dict[str, Any]
) -> list[str]:
    """A stand-in for the package gguf, which reads such files; it records which tensors are de-quantized."""
    asked: list[str] = []

    class Reader:
        def __init__(self, path: Path) -> None:
            self.tensors = [
                SimpleNamespace(name=name, data=(name, values), tensor_type="Q8_0")
                for name, values in tensors.items()
            ]

        def get_field(self, key: str) -> Any:
            return SimpleNamespace(contents=lambda: fields[key]) if key in fields else None

    def dequantize(data: tuple[str, np.ndarray], kind: str) -> np.ndarray:
        asked.append(data[0])
        return data[1]

    package, quants = ModuleType("gguf"), ModuleType("gguf.quants")
    package.GGUFReader, quants.dequantize = Reader, dequantize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gguf", package)
    monkeypatch.setitem(sys.modules, "gguf.quants", quants)
    return asked


def test_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    fields = {
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "a", "b", "c"],
        "tokenizer.ggml.token_type": [2, 3, 1, 5, 6],
    }
    tensors = {"token_embd.weight": rows, "blk.0.ffn_up.weight": rows}
    asked = fake_gguf(monkeypatch, tensors, fields)
    for which in ("input", "output"):
        table = token_embeddings(path, which=which)
        np.testing.assert_array_equal(table.rows, rows)
        assert table.tied is True and table.tokens == ("<unk>", "<s>", "a", "b", "c", "<row 5>")
        assert table.ids[table.special].tolist() == [0, 1] and table.ids[table.unused].tolist() == [3, 5]
    assert asked == ["token_embd.weight"] * 2
    asked = fake_gguf(monkeypatch, tensors | {"output.weight": -rows}, fields)
    output = token_embeddings(path, which="output")
    np.testing.assert_array_equal(output.rows, -rows)
    assert output.tied is False and asked == ["output.weight"]
    assert token_embeddings(path).tied is False
    fake_gguf(monkeypatch, {}, fields)
    assert error_of(path) == f"{path}: tensor 'token_embd.weight' is missing"
    fake_gguf(monkeypatch, tensors, {})
    assert error_of(path) == f"{path}: key 'tokenizer.ggml.tokens' is missing"
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="needs the package gguf"):
        token_embeddings(path)


def test_hub_fetches_only_the_file_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save("llama", tmp_path, max_shard_size="6KB")
    config, tokenizer = LlamaConfig.from_pretrained(tmp_path), make_tokenizer(False)
    asked: list[str] = []

    def cached_file(where: str, filename: str, **options: Any) -> str | None:
        assert where == "someone/model"
        asked.append(filename)
        return str(tmp_path / filename) if (tmp_path / filename).is_file() else None

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda where, **options: config)
    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    monkeypatch.setattr(token_table, "load_tokenizer", lambda name: tokenizer)
    rows = token_embeddings("someone/model").rows
    np.testing.assert_array_equal(rows, model.model.embed_tokens.weight.detach().numpy())
    assert asked[:2] == ["model.safetensors", "model.safetensors.index.json"] and len(asked) == 3

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(transformers.utils, "cached_file", unreachable)
    assert error_of("someone/model").startswith("model 'someone/model': neither a local folder nor to be had")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    assert error_of("someone/model").startswith("model 'someone/model': neither a local folder nor to be had")


def test_damaged_folders(tmp_path: Path) -> None:
    assert "no such model folder" in error_of(tmp_path / "none")
    save("llama", tmp_path)
    weights = tmp_path / "model.safetensors"
    good = load_file(weights)
    save_file({k: v for k, v in good.items() if "embed_tokens" not in k}, weights, {"format": "pt"})
    assert (
        error_of(tmp_path)
        == f"{tmp_path}: the input embedding 'model.embed_tokens.weight' is not in its weights"
    )
    save_file(good | {"model.embed_tokens.weight": torch.ones(3, 16)}, weights, {"format": "pt"})
    assert "expected floats of shape (44, 16), got torch.float32 of shape (3, 16)" in error_of(tmp_path)
    save_file(good | {"model.embed_tokens.weight": torch.full((V, 16), torch.nan)}, weights, {"format": "pt"})
    assert "(input embedding): row 0, column 0: nan is not a finite float32" in error_of(tmp_path)
    two = {"a.embed_tokens.weight": torch.ones(V, 16), "b.model.embed_tokens.weight": torch.ones(V, 16)}
    save_file(two, weights, {"format": "pt"})
    assert token_embeddings(tmp_path).rows.shape == (V, 16)
    save_file(two | {"c.model.embed_tokens.weight": torch.ones(V, 16)}, weights, {"format": "pt"})
    assert "is not in its weights" in error_of(tmp_path), "two candidates: no guess"
    weights.write_bytes(b"\x10\0\0\0")
    assert "model.safetensors: not a readable safetensors file" in error_of(tmp_path)
    weights.unlink()
    assert "neither model.safetensors nor its index is there" in error_of(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for text, message in (
        ("{", "not a readable index of shards"),
        ('{"weight_map": []}', "not a readable index of shards"),
        (
            '{"weight_map": {"model.embed_tokens.weight": "../x.safetensors"}}',
            "is not the name of a safetensors file",
        ),
        ('{"weight_map": {"model.embed_tokens.weight": "x.bin"}}', "is not the name of a safetensors file"),
    ):
        index.write_text(text)
        assert message in error_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    assert "the model in this folder cannot be loaded" in error_of(tmp_path)
    with pytest.raises(
        ValueError, match="^token_embeddings: which: expected 'input' or 'output', got 'both'$"
    ):
        token_embeddings(tmp_path, which="both")  # type: ignore[arg-type]
