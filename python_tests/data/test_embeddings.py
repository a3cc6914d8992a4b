from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)

from stratcore.data import gguf
from stratcore.data._batches import batches_by_tokens
from stratcore.data.embeddings import (
    EmbedOptions,
    embed_table,
    embed_texts,
    pool_hidden,
)
from stratcore.data.errors import DataError
from stratcore.data.texts import TextTable

WORDS = [f"w{i}" for i in range(40)]
VOCABULARY = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3} | {word: i + 4 for i, word in enumerate(WORDS)}
SIZES = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 40, "pad_token_id": 1}
BLOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = BLOCK | {"num_key_value_heads": 1, "vocab_size": len(VOCABULARY), "max_position_embeddings": 40}
CONFIGS = {
    "bert": BertConfig(**SIZES, **BLOCK),
    "roberta": RobertaConfig(**SIZES, **BLOCK),
    "distilbert": DistilBertConfig(**SIZES, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "gpt2": GPT2Config(vocab_size=len(VOCABULARY), n_positions=40, n_embd=16, n_layer=2, n_head=2),
    "llama": LlamaConfig(**DECODER),
    "qwen2": Qwen2Config(**DECODER),
}
DECODERS = ("gpt2", "llama", "qwen2")


def make_tokenizer(encoder: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if not encoder:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def make(kind: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[kind])
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and not name.startswith("ln_"):
            nn.init.normal_(parameter, std=0.3)  # far from the near-zero start, so that rows really differ
    return model, make_tokenizer(kind not in DECODERS)


def make_texts(count: int = 23) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for _ in range(count)]


class Counter(nn.Module):
    """A model that counts the rows it sees and fails after a given number of batches."""

    def __init__(self, inner: nn.Module, fail_after: int | None = None) -> None:
        super().__init__()
        self.inner, self.fail_after, self.batches, self.rows = inner, fail_after, 0, 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        if self.batches == self.fail_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.rows += len(input_ids)
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_result_is_independent_of_the_batch(kind: str, pooling: str) -> None:
    model, tokenizer = make(kind)
    texts = make_texts()
    assert (tokenizer.pad_token_id is None) == (kind in DECODERS)
    together = embed_texts(texts, model, tokenizer, EmbedOptions(pooling=pooling))
    alone = embed_texts(texts, model, tokenizer, EmbedOptions(pooling=pooling, tokens_per_batch=1))
    turned = embed_texts(texts[::-1], model, tokenizer, EmbedOptions(pooling=pooling, tokens_per_batch=64))
    assert together.embeddings.shape == (23, 16) and together.embeddings.dtype == np.float32
    np.testing.assert_allclose(together.embeddings, alone.embeddings, atol=1e-5)
    np.testing.assert_allclose(together.embeddings, turned.embeddings[::-1], atol=1e-5)
    distance = np.linalg.norm(together.embeddings[:, None] - together.embeddings[None], axis=-1)
    assert distance[np.triu_indices(23, 1)].min() > 0.01
    specials = 0 if kind in DECODERS else 2
    assert together.token_count.tolist() == [len(text.split()) + specials for text in texts]


@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_plain_forward_of_each_text(kind: str) -> None:
    model, tokenizer = make(kind)
    model.eval()
    texts = make_texts(5)
    for pooling in ("mean", "last"):
        got = embed_texts(texts, model, tokenizer, EmbedOptions(pooling=pooling)).embeddings
        for row, text in enumerate(texts):
            with torch.no_grad():
                hidden = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
            expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
            np.testing.assert_allclose(got[row], expected.numpy(), atol=1e-5)


def test_pooling_on_either_padding_side() -> None:
    hidden = torch.arange(24, dtype=torch.float32).reshape(2, 4, 3)
    hidden[0, 3] = hidden[1, 0] = float("nan")
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert pool_hidden(hidden, mask, "last").tolist() == [[6, 7, 8], [21, 22, 23]]
    assert pool_hidden(hidden, mask, "mean").tolist() == [[3, 4, 5], [18, 19, 20]]
    low = torch.ones(1, 301, 1, dtype=torch.bfloat16)
    assert pool_hidden(low, torch.ones(1, 301), "mean").item() == 1.0  # 301 is no bfloat16
    assert pool_hidden(low, torch.ones(1, 301), "last").dtype == torch.float32


def test_batches_stay_within_the_budget() -> None:
    lengths = [9, 9, 5, 5, 5, 2, 1, 1, 30]
    slices = list(batches_by_tokens(lengths, 20))
    assert [(s.start, s.stop) for s in slices] == [(0, 2), (2, 6), (6, 8), (8, 9)]
    assert list(batches_by_tokens([], 20)) == []


def test_max_length_and_position_limit() -> None:
    for kind, limit in (("bert", 40), ("roberta", 38), ("gpt2", 40)):
        model, tokenizer = make(kind)
        long_text = " ".join(WORDS * 3)
        assert embed_texts([long_text], model, tokenizer).token_count.tolist() == [limit]
        short = embed_texts([long_text], model, tokenizer, EmbedOptions(max_length=7))
        assert short.token_count.tolist() == [7]


def test_head_is_left_out_and_modes_come_back() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIGS["llama"])
    model.model.layers[0].eval()
    got = embed_texts(make_texts(3), model, make_tokenizer(False)).embeddings
    bare = embed_texts(make_texts(3), model.model, make_tokenizer(False)).embeddings
    np.testing.assert_array_equal(got, bare)
    assert model.model.layers[1].training and not model.model.layers[0].training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_encoder_decoder_is_embedded_by_its_encoder() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(
        T5Config(vocab_size=44, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    texts = make_texts(4)
    one = embed_texts(texts, model, make_tokenizer(True), EmbedOptions(tokens_per_batch=1)).embeddings
    np.testing.assert_allclose(embed_texts(texts, model, make_tokenizer(True)).embeddings, one, atol=1e-5)


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    inner, tokenizer = make("bert")
    texts = make_texts(20)
    options = EmbedOptions(shard_rows=4, tokens_per_batch=64)
    whole = Counter(inner)
    expected = embed_texts(texts, whole, tokenizer, options, tmp_path / "whole")
    assert whole.rows == 20
    interrupted = Counter(inner, fail_after=5)
    with pytest.raises(KeyboardInterrupt):
        embed_texts(texts, interrupted, tokenizer, options, tmp_path / "cache")
    saved = sorted((tmp_path / "cache").glob("*/shard-*.safetensors"))
    assert 1 <= len(saved) < 5
    resumed = Counter(inner)
    got = embed_texts(texts, resumed, tokenizer, options, tmp_path / "cache")
    assert resumed.rows == 20 - 4 * len(saved)
    np.testing.assert_array_equal(got.embeddings, expected.embeddings)
    np.testing.assert_array_equal(got.token_count, expected.token_count)
    again = Counter(inner)
    np.testing.assert_array_equal(
        embed_texts(texts, again, tokenizer, options, tmp_path / "cache").embeddings, expected.embeddings
    )
    assert again.rows == 0


def test_damaged_shard_is_made_again(tmp_path: Path) -> None:
    inner, tokenizer = make("bert")
    texts = make_texts(9)
    options = EmbedOptions(shard_rows=3)
    first = embed_texts(texts, inner, tokenizer, options, tmp_path)
    shards = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(shards) == 3 and len(list(tmp_path.rglob("*.part"))) == 0
    shards[0].write_bytes(shards[0].read_bytes()[:-3])
    shards[1].write_bytes(b"")
    shards[2].unlink()
    np.testing.assert_array_equal(
        embed_texts(texts, inner, tokenizer, options, tmp_path).embeddings, first.embeddings
    )


def test_cache_key_follows_texts_weights_and_options(tmp_path: Path) -> None:
    model, tokenizer = make("bert")
    texts = make_texts(3)

    def folders(texts: list[str], options: EmbedOptions | None = None) -> int:
        embed_texts(texts, model, tokenizer, options, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert folders(texts) == 1
    assert folders(texts) == 1
    assert folders(texts[::-1]) == 2
    assert folders(texts, EmbedOptions(pooling="last")) == 3
    assert folders(texts, EmbedOptions(max_length=4)) == 4
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5, 3] += 1e-3
    assert folders(texts) == 5
    model.config.layer_norm_eps = 1e-3
    assert folders(texts) == 6


def test_local_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("bert", "llama"):
        model, tokenizer = make(kind)
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        texts = make_texts(4)
        capfd.readouterr()
        loaded = embed_texts(texts, tmp_path / kind, options=EmbedOptions(device="cpu"))
        assert capfd.readouterr() == ("", ""), "bars and notes are for terminals"
        given = embed_texts(texts, model, tokenizer)
        np.testing.assert_array_equal(loaded.embeddings, given.embeddings)


def test_gguf_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make("llama")
    asked: list[str] = []
    monkeypatch.setattr(gguf, "load_gguf", lambda path: asked.append(path) or (model, tokenizer))
    texts = make_texts(4)
    given = embed_texts(texts, model, tokenizer)
    loaded = embed_texts(texts, "some/model.Q4_1.gguf", options=EmbedOptions(device="cpu"))
    np.testing.assert_array_equal(loaded.embeddings, given.embeddings)
    assert asked == ["some/model.Q4_1.gguf"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    model, tokenizer = make("bert")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    embed_texts(make_texts(4), model, tokenizer, progress=progress)
    assert ("100%" in terminal.getvalue()) is progress


def test_embed_table_keeps_tasks_apart() -> None:
    model, tokenizer = make("bert")
    texts = TextTable(
        texts=tuple(make_texts(4)),
        domain=np.array([0, 1, 2, 2]),
        domain_names=("film", "news", "product"),
        label=np.array([1, 1, 1, -1]),
        label_names=(("negative", "positive"), ("world", "sports"), ("negative", "positive")),
        source="here",
    )
    table = embed_table(texts, model, tokenizer)
    assert table.label.tolist() == [1, 3, 1, -1]
    assert table.domain_names == texts.domain_names and table.source == "BertModel"
    assert table.embeddings.shape == (4, 16) and (table.token_count > 2).all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: expected a list of at least one text, got '[]'"),
        ("w1 w2", "texts: expected a list of at least one text, got 'w1 w2'"),
        (["w1", ""], "texts: row 1: the text is empty"),
        (["w1", " \n"], "texts: row 1: the text is empty"),
        (["w1", None], "texts: row 1: expected a string, got NoneType"),
        (["w1" * 500_001], "texts: row 0: 1000002 characters, at most 1000000"),
    ],
)
def test_rejects_texts(texts: Any, message: str) -> None:
    model, tokenizer = make("bert")
    with pytest.raises(DataError) as caught:
        embed_texts(texts, model, tokenizer)
    assert str(caught.value) == message


def test_rejects_text_without_token_and_nan_model() -> None:
    model, tokenizer = make("gpt2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("-", "removed")
    with pytest.raises(DataError, match=r"^texts: row 1: no token is left of '--'$"):
        embed_texts(["w1", "--"], model, tokenizer)
    model, tokenizer = make("bert")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[VOCABULARY["w7"]] = float("nan")
    with pytest.raises(
        DataError, match=r"^texts: row 2: the model's embedding is not finite \(1 such rows\)$"
    ):
        embed_texts(["w1", "w2", "w7", "w3"], model, tokenizer)


def test_rejects_options_and_missing_tokenizer() -> None:
    for change, message in (
        ({"pooling": "max"}, "EmbedOptions.pooling: expected one of ('mean', 'last'), got 'max'"),
        ({"max_length": 0}, "EmbedOptions.max_length: expected at least 1, got 0"),
        ({"dtype": "int8"}, "EmbedOptions.dtype: expected float32, bfloat16 or float16, got 'int8'"),
    ):
        with pytest.raises(ValueError) as caught:
            EmbedOptions(**change)
        assert str(caught.value) == message
    with pytest.raises(DataError, match="^BertModel: a model given as a module needs its tokenizer$"):
        embed_texts(["w1"], make("bert")[0])
