from __future__ import annotations

import numpy as np
import pytest

from stratcore.data import SplitOptions, require_no_confound, split_texts
from stratcore.data.token_strata import TokenStrataOptions, best_accuracy, token_strata, vocabulary

OPTIONS = TokenStrataOptions(texts=6000, noise=0.1)


def test_the_rule_with_the_stratum_reaches_the_best_accuracy_and_without_it_does_not() -> None:
    """A linear rule of word counts, one a stratum against one for all."""
    from sklearn.linear_model import LogisticRegression

    table = token_strata(OPTIONS)
    names = {word: index for index, word in enumerate(vocabulary(OPTIONS))}
    counts = np.zeros((table.num_rows, len(names)), np.float32)
    for row, text in enumerate(table.texts):
        for word in text.split():
            counts[row, names[word]] += 1
    train = np.arange(table.num_rows) < 4500

    def accuracy(rows: np.ndarray) -> float:
        fit, test = rows & train, rows & ~train
        rule = LogisticRegression(C=0.1, max_iter=500).fit(counts[fit], table.label[fit])
        return float((rule.predict(counts[test]) == table.label[test]).mean())

    strata = [accuracy(table.domain == index) for index in range(OPTIONS.strata)]
    assert best_accuracy(OPTIONS) == 0.9
    assert 0.75 < np.mean(strata) <= 0.93
    assert accuracy(np.ones(table.num_rows, bool)) < np.mean(strata) - 0.1


def test_labels_are_balanced_and_flipped_at_the_rate_of_the_noise() -> None:
    table = token_strata(OPTIONS)
    for index in range(OPTIONS.strata):
        assert abs(table.label[table.domain == index].mean() - 0.5) < 0.03
    clean = token_strata(TokenStrataOptions(texts=6000, noise=0.0))
    assert clean.texts == table.texts
    assert (clean.label != table.label).mean() == pytest.approx(0.1, abs=0.015)


def test_every_text_has_one_marker_and_splits_are_clean() -> None:
    table = token_strata(OPTIONS)
    for text, stratum in zip(table.texts[:200], table.domain[:200], strict=True):
        words = text.split()
        assert len(words) == 13 and [w for w in words if w.startswith("m")] == [f"m{stratum}"]
    assert set(" ".join(table.texts).split()) == set(vocabulary(OPTIONS))
    split = split_texts(table, SplitOptions(), seed=0)
    assert require_no_confound(table, split)["label_domain_bits"] < 1e-6 and len(split.test) == 2000
    assert token_strata(OPTIONS).texts == table.texts
    assert token_strata(TokenStrataOptions(texts=6000, seed=1)).texts != table.texts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"texts": 0}, "expected at least 1, 1, 2 and 1, got 0"),
        ({"dims": (1, 2)}, "dims: expected 4 numbers >= 1"),
        ({"noise": 0.5}, r"noise: expected a share in \[0, .5\), got 0.5"),
    ],
)
def test_bad_options(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenStrataOptions(**settings)
