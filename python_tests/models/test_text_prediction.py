"""Texts in, labels out: batches, order, bad texts, the tokenizer that is saved along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.models.stratified_classifier_cases import classifier, moved, tokenizer
from stratcore.models import StratifiedClassifier, TextPredictor
from stratcore.models.text_prediction import encode_texts, pad_token, padded_batch, token_limit

TEXTS = ["a good film", "bad", "the very very very poor day", "fine day", "a"]


def with_tokenizer(name: str = "distilbert", **options: Any) -> StratifiedClassifier:
    model = moved(classifier(name, id2label={0: "no", 1: "yes"}, **options))
    model.tokenizer = tokenizer()
    return model


@pytest.mark.parametrize("name", ["distilbert", "roberta", "gpt2"])
def test_prediction_equals_the_text_alone(name: str) -> None:
    model = with_tokenizer(name)
    found = model.predict(TEXTS)
    assert found.label_names == ("no", "yes") and found.probabilities.dtype == np.float32
    assert found.labels == tuple(("no", "yes")[index] for index in found.indices)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            logits = model(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0]
        assert np.abs(found.probabilities[row] - logits.softmax(-1).numpy()).max() <= 1e-5
    assert len(set(found.probabilities[:, 0].tolist())) == len(TEXTS)


def test_batches_change_rounding_only() -> None:
    model = with_tokenizer()
    whole = model.predict(TEXTS).probabilities
    for budget in (1, 9, 20):
        assert np.abs(model.predict(TEXTS, tokens_per_batch=budget).probabilities - whole).max() <= 1e-5


def test_batches_keep_their_budget_and_hold_every_row_once() -> None:
    lengths = [3, 9, 1, 1, 4, 20, 2]
    batches = list(TextPredictor(with_tokenizer(), tokens_per_batch=10)._batches(lengths))
    assert sorted(sum(batches, [])) == list(range(7))
    assert all(len(b) * max(lengths[i] for i in b) <= 10 for b in batches if len(b) > 1)
    assert batches[0] == [5] and len(batches) == 4


def test_long_texts_are_cut() -> None:
    model = with_tokenizer()
    cut = model.predict(["good " * 500], max_length=6).probabilities
    assert np.array_equal(cut, model.predict(["good good good good"]).probabilities)
    assert model.predict(["good " * 500]).probabilities.shape == (1, 2)


def test_the_mode_of_the_model_comes_back() -> None:
    model = with_tokenizer().train()
    first, second = model.predict(TEXTS), model.predict(TEXTS)  # without dropout
    assert model.training and np.array_equal(first.probabilities, second.probabilities)
    assert model.predict([]).probabilities.shape == (0, 2)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("one text", TypeError, "texts: expected a sequence of texts, got one text"),
        (["good", 3], TypeError, "texts: row 1: expected a text, got int"),
        (["good", None], TypeError, "texts: row 1: expected a text, got NoneType"),
        (["good", " \n"], ValueError, "texts: row 1: expected a text, got an empty one"),
        (["x" * 10**7], ValueError, "texts: row 0: 10000000 characters, of 1000000 at most"),
    ],
)
def test_bad_texts_are_named_by_row(texts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        with_tokenizer().predict(texts)


def test_a_text_without_a_token_is_named() -> None:
    def nothing(texts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [[1], []]}

    with pytest.raises(ValueError, match="texts: row 1: no token is left of 'b'"):
        encode_texts(["a", "b"], nothing, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, r"max_length: expected a number in \[1, 160\], got 0"),
        ({"max_length": 161}, r"max_length: expected a number in \[1, 160\], got 161"),
        ({"tokens_per_batch": 0}, "tokens_per_batch: expected at least 1, got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_tokenizer().predict(TEXTS, **options)


def test_the_tokenizer_is_saved_along(tmp_path: Path) -> None:
    model = with_tokenizer()
    model.save_pretrained(tmp_path)
    loaded = StratifiedClassifier.from_pretrained(tmp_path)
    assert np.array_equal(loaded.predict(TEXTS).probabilities, model.predict(TEXTS).probabilities)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path)
    model = StratifiedClassifier.from_pretrained(tmp_path)
    assert model.tokenizer is None
    with pytest.raises(ValueError, match="tokenizer: expected one"):
        model.predict(TEXTS)
    assert model.predict(TEXTS, tokenizer=tokenizer()).indices.shape == (5,)


def test_limits_and_pads() -> None:
    words = tokenizer()
    assert token_limit(classifier("bert"), words) == 160
    assert token_limit(classifier("roberta"), words) == 158  # positions begin behind the pad token 1
    words.model_max_length = 77
    assert token_limit(classifier("gpt2"), words) == 77
    assert pad_token(classifier("gpt2"), None) == 1 and pad_token(classifier("gpt2"), words) == 0
    inputs = padded_batch([[5, 6], [7]], 9, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]
