from __future__ import annotations

import numpy as np
import pytest

from stratcore.data.classification import (
    ClassificationTable,
    SplitOptions,
    audit_split,
    join_classification,
    normalized_text,
    require_no_confound,
    split_texts,
)
from stratcore.data.errors import DataError
from stratcore.data.split import Split

SMALL = SplitOptions(test_rows=20, least_test_rows=40, validation_rows=10)


def make(num_rows: int = 400, domains: int = 2, **changes: object) -> ClassificationTable:
    row = np.arange(num_rows)
    values = {
        "texts": tuple(f"text number {i}" for i in row),
        "label": row // domains % 2,
        "label_names": ("negative", "positive"),
        "domain": row % domains,
        "domain_names": tuple(f"domain {i}" for i in range(domains)),
        "source": "rows",
    }
    return ClassificationTable(**(values | changes))


def test_every_domain_and_label_gets_equally_many_rows() -> None:
    table = make(400)
    unequal = make(400, label=np.where(np.arange(400) < 60, 0, table.label))  # more negatives
    for rows in (table, unequal):
        split = split_texts(rows, SMALL, seed=0)
        for name, part in split.parts():
            counts = np.zeros((2, 2), int)
            np.add.at(counts, (rows.domain[part], rows.label[part]), 1)
            assert counts.min() == counts.max(), name
        assert len(split.test) == 40 and len(split.validation) == 20
        everything = np.concatenate([part for _, part in split.parts()])
        assert np.unique(everything).size == everything.size


def test_test_rows_grow_until_all_domains_together_have_enough() -> None:
    options = SplitOptions(test_rows=10, least_test_rows=100, validation_rows=10)
    assert len(split_texts(make(400, 2), options, seed=0).test) == 100
    assert len(split_texts(make(402, 3), options, seed=0).test) >= 100
    assert (
        len(
            split_texts(
                make(400, 2), SplitOptions(test_rows=60, least_test_rows=1, validation_rows=10), seed=0
            ).test
        )
        == 120
    )


def test_rows_are_shuffled_and_the_seed_decides() -> None:
    table = make(400, label=np.sort(make().label))  # sorted by label, as files of the hub are
    first, again, other = (split_texts(table, SMALL, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train, again.train) and not np.array_equal(first.train, other.train)
    assert audit_split(table, first)["warnings"] == []
    changes = audit_split(table, first)["label_changes"]
    assert all(0.7 < value < 1.3 for value in changes.values())


def test_copies_are_kept_once_and_contradictions_not_at_all() -> None:
    texts = list(make().texts)
    texts[4] = "  TEXT, number 0! "  # a copy of row 0: same label? rows 0 and 4 have labels 0 and 0
    texts[2] = "text number 1"  # of another domain than row 1
    texts[6] = "text number 8"  # of another label than row 8
    table = make(texts=tuple(texts))
    assert table.label[0] == table.label[4] and table.domain[0] == table.domain[4]
    assert table.domain[2] != table.domain[1] and table.label[6] != table.label[8]
    whole = SplitOptions(test_rows=1, least_test_rows=1, validation_rows=1)
    used = np.concatenate([part for _, part in split_texts(table, whole, seed=0).parts()])
    assert not np.isin([1, 2, 4, 6, 8], used).any()
    assert np.unique(table.groups[used]).size == used.size


def test_groups_ignore_case_and_punctuation_and_know_pairs() -> None:
    assert normalized_text("Who's there, _now_?") == "who s there now"
    pairs = make(
        4, 1, texts=("a", "A!", "a", "b"), second=("x", "x.", "y", "x"), label=np.array([0, 1, 0, 1])
    )
    assert pairs.groups.tolist() == [0, 0, 1, 2]


def test_confounds_are_refused() -> None:
    table = make(400)
    sliced = Split(np.arange(0, 400, 4), np.arange(1, 200, 4), np.arange(2, 400, 4))
    with pytest.raises(DataError, match=r"^rows: .*train rows of domain 'domain 0' hold one label only"):
        require_no_confound(table, sliced)
    sentiment = np.where(np.arange(400) % 20 < 18, np.arange(400) % 2, 1 - np.arange(400) % 2)
    confounded = make(400, label=sentiment)
    every = Split(np.arange(300), np.arange(300, 340), np.arange(340, 400))
    with pytest.raises(DataError, match=r"label and domain share 0\.\d+ bits"):
        require_no_confound(confounded, every)
    leaky = Split(np.arange(300), np.arange(300, 340), np.arange(290, 400))
    with pytest.raises(DataError, match="10 test rows also stand in train"):
        require_no_confound(table, leaky)
    split = split_texts(table, SMALL, seed=0)
    assert require_no_confound(table, split)["label_domain_bits"] < 0.01


def test_a_given_split_is_kept_and_must_not_share_texts() -> None:
    part = np.arange(400) % 3
    table = make(part=part)
    split = split_texts(table, SMALL, seed=0)
    for index, (_, rows) in enumerate(split.parts()):
        assert np.array_equal(np.sort(rows), np.flatnonzero(part == index))
    texts = list(table.texts)
    texts[7] = "Text number 2."
    with pytest.raises(DataError, match=r"^rows: row 7 \(validation\) repeats row 2 \(test\)$"):
        split_texts(make(part=part, texts=tuple(texts)), SMALL, seed=0)
    with pytest.raises(DataError, match=r"^rows: column 'split': no row is 'test'$"):
        split_texts(make(part=np.arange(400) % 2), SMALL, seed=0)


def test_too_few_rows_are_named() -> None:
    with pytest.raises(DataError) as found:
        split_texts(make(400), SplitOptions(), seed=0)
    assert str(found.value) == (
        "rows: domain 'domain 0' has 100 different texts of label 'negative', 601 are wanted "
        "(test 500, validation 100)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(400, np.int64)}, "domain 'domain 0' has one class only (negative)"),
        ({"label": np.arange(400) % 2}, "domain 'domain 0' has one class only (negative)"),
        ({"label": np.arange(400) % 3}, "row 2: label 2 is not in 0..1"),
        ({"label": np.arange(400) % 2 / 1}, "key 'label' must be int64 of shape (400,)"),
        ({"texts": (" ",) * 400}, "row 0: the text is empty"),
        ({"texts": ("a" * 10_000_000,) * 400}, "row 0: 10000000 characters, at most 1000000"),
        ({"second": ("a",)}, "400 texts but 1 second texts"),
        ({"label_names": ("same", "same")}, "expected at least two different labels"),
    ],
)
def test_bad_rows_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as found:
        make(**changes)
    assert message in str(found.value) and str(found.value).startswith("rows: ")


def test_join() -> None:
    first, second = make(40, 1), make(60, 1, domain_names=("other",))
    joined = join_classification([first, second])
    assert joined.num_rows == 100 and joined.domain_names == ("domain 0", "other")
    assert joined.domain.tolist() == [0] * 40 + [1] * 60
    with pytest.raises(DataError, match=r"rows: row 0: label .no. is not in rows; labels .* differ from"):
        join_classification([first, make(60, 1, label_names=("no", "yes"), domain_names=("other",))])
    with pytest.raises(DataError, match="pairs of texts and single texts do not mix"):
        join_classification([first, make(40, 1, second=first.texts, domain_names=("other",))])
    with pytest.raises(DataError, match="with and without a column 'split'"):
        join_classification([first, make(60, 1, part=np.arange(60) % 3, domain_names=("other",))])


@pytest.mark.parametrize("key", ["test_rows", "least_test_rows", "validation_rows", "train_rows"])
def test_sizes_are_checked(key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.split\.{key}: expected a number >= 1, got 0"):
        SplitOptions(**{key: 0})
