from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from python_tests.data.test_embeddings import DECODER, SIZES, VOCABULARY, Terminal, make_texts, make_tokenizer
from stratcore.data import gguf
from stratcore.data.errors import DataError
from stratcore.data.perplexity import PerplexityOptions, TextPerplexity, text_perplexity


def make(kind: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    if kind == "llama":
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**DECODER))
    else:
        config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=40, n_embd=16, n_layer=2, n_head=2)
        model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            nn.init.normal_(
                parameter, std=0.3
            )  # far from the near-zero start, so that probabilities really differ
    return model.to(dtype), make_tokenizer(False)


def oracle(
    model: nn.Module, tokenizer: Any, text: str, window: int = 40, stride: int = 20
) -> tuple[float, int]:
    """Every token by itself: the window that scores it, a softmax in NumPy, one logarithm."""
    tokens = tokenizer(text)["input_ids"]
    total = 0.0
    for t in range(1, len(tokens)):
        start = 0 if t < window else (t - window) // stride * stride + stride
        with torch.no_grad():
            logits = model(torch.tensor([tokens[start:t]])).logits[0, -1].double().numpy()
        odds = np.exp(logits - logits.max())
        total -= np.log(odds[tokens[t]] / odds.sum())
    return total, len(tokens) - 1


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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_equals_the_oracle(kind: str) -> None:
    model, tokenizer = make(kind)
    model.eval()
    texts = [*make_texts(12), "w1", "w1 w2"]
    got = text_perplexity(model, texts, tokenizer)
    expected = [oracle(model, tokenizer, text) for text in texts]
    np.testing.assert_allclose(got.negative_log_likelihood, [total for total, _ in expected], rtol=1e-12)
    assert got.scored.tolist() == [count for _, count in expected] and got.scored.dtype == np.int64
    assert got.token_count.tolist() == [len(text.split()) for text in texts]
    mean = [total / count if count else np.nan for total, count in expected]
    np.testing.assert_allclose(got.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(got.perplexity, np.exp(mean), rtol=1e-12)
    assert got.overall() == pytest.approx(
        np.exp(sum(total for total, _ in expected) / sum(count for _, count in expected)), rel=1e-12
    )


@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 1), (8, 7), (7, 3), (2, 1), (40, 20)])
def test_long_texts_are_scored_once_with_enough_before_them(window: int, stride: int | None) -> None:
    model, tokenizer = make()
    model.eval()
    texts = [" ".join(make_texts(23)[i : i + 6]) for i in (0, 6, 12)] + ["w3 w4 w5"]
    assert max(len(text.split()) for text in texts) > 80
    got = text_perplexity(model, texts, tokenizer, PerplexityOptions(window=window, stride=stride))
    for row, text in enumerate(texts):
        total, count = oracle(model, tokenizer, text, window, stride or window // 2)
        assert got.scored[row] == count
        assert got.negative_log_likelihood[row] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_result_is_independent_of_the_batch(dtype: torch.dtype, rtol: float) -> None:
    model, tokenizer = make(dtype=dtype)
    texts = make_texts()
    together = text_perplexity(model, texts, tokenizer)
    alone = text_perplexity(model, texts, tokenizer, PerplexityOptions(tokens_per_batch=1))
    turned = text_perplexity(model, texts[::-1], tokenizer, PerplexityOptions(tokens_per_batch=64))
    np.testing.assert_allclose(together.perplexity, alone.perplexity, rtol=rtol)
    np.testing.assert_allclose(together.perplexity, turned.perplexity[::-1], rtol=rtol)
    assert np.ptp(together.perplexity[together.scored > 3]) > 5


def test_nothing_to_score_is_nan() -> None:
    model, tokenizer = make()
    got = text_perplexity(model, ["w1", "w1 w2", "w7"], tokenizer)
    assert got.scored.tolist() == [0, 1, 0] and got.token_count.tolist() == [1, 2, 1]
    assert got.negative_log_likelihood[[0, 2]].tolist() == [0, 0]
    assert np.isnan(got.perplexity).tolist() == np.isnan(got.mean).tolist() == [True, False, True]
    assert got.overall() == pytest.approx(got.perplexity[1])
    none = text_perplexity(model, ["w1"], tokenizer)
    assert np.isnan(none.perplexity).all() and np.isnan(none.overall())


def test_start_token_and_cut() -> None:
    model, tokenizer = make()
    with pytest.raises(
        DataError, match="^perplexity: start_token: this tokenizer has no beginning-of-text token$"
    ):
        text_perplexity(model, ["w1"], tokenizer, PerplexityOptions(start_token=True))
    tokenizer.bos_token = "w9"
    got = text_perplexity(model, ["w1", "w2 w3"], tokenizer, PerplexityOptions(start_token=True))
    longer = text_perplexity(model, ["w9 w1", "w9 w2 w3"], tokenizer)
    np.testing.assert_array_equal(got.negative_log_likelihood, longer.negative_log_likelihood)
    assert got.scored.tolist() == [1, 2] and got.token_count.tolist() == [1, 2]
    cut = text_perplexity(model, ["w1 w2 w3 w4 w5"], tokenizer, PerplexityOptions(max_tokens=3))
    whole = text_perplexity(model, ["w1 w2 w3"], tokenizer)
    np.testing.assert_array_equal(cut.negative_log_likelihood, whole.negative_log_likelihood)


def test_interrupted_run_resumes(tmp_path: Path) -> None:
    inner, tokenizer = make(dtype=torch.float32)
    texts = [*make_texts(20), "w1"]
    options = PerplexityOptions(window=12, shard_rows=4, tokens_per_batch=40)

    def run(model: nn.Module, folder: str) -> TextPerplexity:
        return text_perplexity(model, texts, tokenizer, options, tmp_path / folder)

    expected = run(Counter(inner), "whole")
    assert expected.negative_log_likelihood.dtype == np.float64
    with pytest.raises(KeyboardInterrupt):
        run(Counter(inner, fail_after=6), "cache")
    saved = sorted((tmp_path / "cache").glob("*/shard-*.safetensors"))
    assert 1 <= len(saved) < len(list((tmp_path / "whole").glob("*/shard-*.safetensors")))
    resumed = Counter(inner)
    got = run(resumed, "cache")
    np.testing.assert_array_equal(got.negative_log_likelihood, expected.negative_log_likelihood)
    again = Counter(inner)
    np.testing.assert_array_equal(run(again, "cache").perplexity, expected.perplexity)
    assert again.rows == 2 < resumed.rows, "only the look at causality is left"
    assert len(list((tmp_path / "cache").iterdir())) == 1
    text_perplexity(Counter(inner), texts, tokenizer, replace(options, window=13), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_local_folder_and_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = make_texts(4)
    given = text_perplexity(model, texts, tokenizer)
    loaded = text_perplexity(tmp_path, texts, options=PerplexityOptions(device="cpu"))
    np.testing.assert_array_equal(loaded.perplexity, given.perplexity)
    asked = []
    monkeypatch.setattr(gguf, "load_gguf", lambda path: asked.append(path) or (model, tokenizer))
    quantized = text_perplexity("some/model.Q4_1.gguf", texts, options=PerplexityOptions(device="cpu"))
    np.testing.assert_array_equal(quantized.perplexity, given.perplexity)
    assert asked == ["some/model.Q4_1.gguf"]


def test_models_without_a_causal_head_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        **SIZES, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    masked, tokenizer = BertForMaskedLM(config), make_tokenizer(True)
    for parameter in masked.parameters():
        nn.init.normal_(parameter, std=0.3)
    with pytest.raises(
        DataError, match="^BertForMaskedLM: its tokens see later ones; perplexity needs a causal"
    ):
        text_perplexity(masked, ["w1 w1 w1"], tokenizer)
    with pytest.raises(DataError, match="^LlamaModel: returns no logits; perplexity needs a language model"):
        text_perplexity(make()[0].model, ["w1 w2"], make_tokenizer(False))
    make()[0].model.save_pretrained(tmp_path)
    make_tokenizer(False).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="1 tensors are not in its weights, such as 'lm_head.weight'$"):
        text_perplexity(tmp_path, ["w1 w2"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "texts: expected a list of at least one text, got '[]'"),
        (["w1 w2", " "], "texts: row 1: the text is empty"),
        (["w1", 3], "texts: row 1: expected a string, got int"),
    ],
)
def test_rejects_texts(texts: Any, message: str) -> None:
    model, tokenizer = make()
    with pytest.raises(DataError) as caught:
        text_perplexity(model, texts, tokenizer)
    assert str(caught.value) == message


def test_rejects_options_and_broken_models() -> None:
    for change, message in (
        ({"window": 1}, "PerplexityOptions.window: expected at least 2, got 1"),
        ({"stride": 0}, "PerplexityOptions.stride: expected at least 1, got 0"),
        ({"max_tokens": 0}, "PerplexityOptions.max_tokens: expected at least 1, got 0"),
        ({"dtype": "int8"}, "PerplexityOptions.dtype: expected float32, bfloat16 or float16, got 'int8'"),
    ):
        with pytest.raises(ValueError) as caught:
            PerplexityOptions(**change)
        assert str(caught.value) == message
    model, tokenizer = make()
    with pytest.raises(
        DataError, match="^perplexity: stride: expected fewer than the 40 tokens of a window, got 40$"
    ):
        text_perplexity(model, ["w1 w2"], tokenizer, PerplexityOptions(stride=40))
    with pytest.raises(DataError, match="a model given as a module needs its tokenizer"):
        text_perplexity(model, ["w1 w2"])
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCABULARY["w7"]] = float("nan")
    with pytest.raises(
        DataError, match=r"^texts: row 1: the model's likelihood is not finite \(1 such windows\)$"
    ):
        text_perplexity(model, ["w1 w2 w3", "w1 w7 w3"], tokenizer)


@pytest.mark.parametrize("progress", [True, False])
def test_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    model, tokenizer = make()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    text_perplexity(model, make_texts(4), tokenizer, progress=progress)
    assert ("100%" in terminal.getvalue()) is progress
