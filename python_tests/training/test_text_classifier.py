"""The scikit-learn face: it learns, repeats itself, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from python_tests.models.stratified_classifier_cases import encoder, tokenizer
from stratcore.models import StratifiedClassifier
from stratcore.training.text_classifier import StratifiedTextClassifier

pytestmark = pytest.mark.usefixtures("single_thread")
FILLERS = ("the", "a", "film", "day", "very")


def texts_and_labels(count: int) -> tuple[list[str], np.ndarray]:
    """Texts of 2 to 6 words; one word decides."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    texts = []
    for label in labels:
        words = list(generator.choice(FILLERS, generator.integers(1, 6)))
        words.insert(
            int(generator.integers(0, len(words) + 1)),
            str(generator.choice([["bad", "poor"], ["good", "fine"]][label])),
        )
        texts.append(" ".join(words))
    return texts, np.array(["down", "up"])[labels]


def estimator(**options: Any) -> StratifiedTextClassifier:
    given = {"tokenizer": tokenizer(), "epochs": 4, "learning_rate": 5e-3, "device": "cpu", "max_length": 32}
    return StratifiedTextClassifier(encoder("distilbert"), **given | options)


@pytest.mark.parametrize("variant", ["plain", "stratified_moe", "layer_processing"])
def test_it_learns(variant: str) -> None:
    texts, labels = texts_and_labels(160)
    model = estimator(variant=variant).fit(texts[:120], labels[:120])
    assert model.score(texts[120:], labels[120:]) >= 0.9
    assert model.classes_.tolist() == ["down", "up"] and len(model.loss_curve_) == 4
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]
    probabilities = model.predict_proba(texts[120:])
    assert np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert np.array_equal(model.predict(texts[120:]), model.classes_[probabilities.argmax(1)])


def test_equal_seeds_give_equal_bits_and_leave_the_process_alone() -> None:
    texts, labels = texts_and_labels(40)
    before = {key: value.clone() for key, value in encoder("distilbert").state_dict().items()}
    found = []
    for seed in (1, 1, 2):
        torch.rand(seed + len(found))  # where the process's generators stand must not matter
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        found.append(estimator(epochs=1, random_state=seed).fit(texts, labels).predict_proba(texts))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(value, before[key]) for key, value in encoder("distilbert").state_dict().items())


def test_scikit_learn_can_clone_and_cross_validate() -> None:
    texts, labels = texts_and_labels(48)
    model = estimator(epochs=1, options={"num_strata": 2})
    assert is_classifier(model)
    assert clone(model).get_params()["options"] == {"num_strata": 2}
    assert model.set_params(epochs=2).epochs == 2
    scores = cross_val_score(model, np.array(texts, dtype=object), labels, cv=2)
    assert scores.shape == (2,) and (scores >= 0).all()


def test_numbers_as_labels_and_a_model_to_save(tmp_path: Path) -> None:
    texts, labels = texts_and_labels(40)
    numbers = np.where(labels == "up", 7, 3)
    model = estimator(epochs=1, variant="token_routing").fit(texts, numbers)
    assert model.classes_.tolist() == [3, 7] and set(model.predict(texts)) <= {3, 7}
    model.model_.save_pretrained(tmp_path)
    loaded = StratifiedClassifier.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "3", 1: "7"}
    assert np.array_equal(loaded.predict(texts).probabilities, model.predict_proba(texts))


def test_an_encoder_in_a_folder(tmp_path: Path) -> None:
    encoder("bert").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    texts, labels = texts_and_labels(20)
    model = StratifiedTextClassifier(tmp_path, epochs=1, batch_size=64, device="cpu").fit(texts, labels)
    assert model.predict(texts).shape == (20,)


@pytest.mark.parametrize(
    ("options", "texts", "labels", "message"),
    [
        ({}, ["good", "bad"], [1], r"labels: expected one for each of 2 texts, got shape \(1,\)"),
        ({}, ["good", "bad"], [1, 1], r"labels: expected at least 2 different ones, got \[1\]"),
        ({}, ["good", ""], [0, 1], "texts: row 1: expected a text, got an empty one"),
        ({"tokenizer": None}, ["good", "bad"], [0, 1], "tokenizer: expected one"),
        ({"epochs": 0}, ["good", "bad"], [0, 1], "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, ["good", "bad"], [0, 1], "batch_size: expected at least 1, got 0"),
        ({"variant": "moe"}, ["good", "bad"], [0, 1], "variant: expected one of"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], texts: list[str], labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(texts, labels)


def test_prediction_needs_a_fit() -> None:
    with pytest.raises(NotFittedError):
        estimator().predict(["good"])
