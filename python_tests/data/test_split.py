from __future__ import annotations

import numpy as np
import pytest

from stratcore.data.errors import DataError
from stratcore.data.split import Split, audit, duplicate_groups, split_rows
from stratcore.data.table import EmbeddingTable


def make(num_rows: int = 1000, domains: int = 4, duplicates: int = 0) -> EmbeddingTable:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((num_rows, 3)).astype(np.float32)
    if duplicates:
        values[rng.choice(num_rows, duplicates, replace=False)] = values[0]
    domain = np.arange(num_rows) % domains
    label = rng.permutation(np.arange(num_rows) // domains % 2)
    return EmbeddingTable.from_arrays(values, domain, label=label)


def test_sizes_per_domain() -> None:
    table = make()
    split = split_rows(table, seed=0)
    assert [rows.size for _, rows in split.parts()] == pytest.approx([700, 150, 150], abs=4)
    for _, rows in split.parts():
        assert (np.diff(rows) > 0).all()
    assert np.array_equal(np.sort(np.concatenate([rows for _, rows in split.parts()])), np.arange(1000))
    for share, (_, rows) in zip((0.7, 0.15, 0.15), split.parts(), strict=True):
        counts = np.bincount(table.domain[rows], minlength=4)
        assert (np.abs(counts - share * 250) < 1).all()


def test_seed_decides() -> None:
    table = make()
    first, again, other = (split_rows(table, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.test, again.test)
    assert np.intersect1d(first.test, other.test).size < 60  # 22.5 expected of 150


def test_duplicates_stay_together() -> None:
    table = make(duplicates=200)
    group = duplicate_groups(table.embeddings)
    assert np.unique(group).size in (800, 801)
    for seed in range(5):
        split = split_rows(table, seed=seed)
        report = audit(table, split, duplicate_groups(table.embeddings))
        assert report["shared_rows"] == {"train/validation": 0, "train/test": 0, "validation/test": 0}
        assert report["duplicate_rows"] == 1000 - np.unique(group).size
        assert [rows.size for _, rows in split.parts()] == pytest.approx([700, 150, 150], abs=10)


def test_signed_zero_is_one_value() -> None:
    values = np.float32([[0.0, 1], [-0.0, 1], [2, 1]])
    group = duplicate_groups(values)
    assert group[0] == group[1] != group[2]


def test_zero_share_and_errors() -> None:
    table = make(20, 2)
    split = split_rows(table, (0.5, 0.0, 0.5), seed=0)
    assert (split.train.size, split.validation.size, split.test.size) == (10, 0, 10)
    for bad in ((0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)):
        with pytest.raises(DataError, match="fractions must be three shares"):
            split_rows(table, bad, seed=0)
    with pytest.raises(DataError, match=r"^arrays: 2 rows are too few: the validation part is empty$"):
        split_rows(table.select(np.arange(2)), seed=0)


def test_audit_of_clean_table_is_silent() -> None:
    table = make(4000)
    report = audit(table, split_rows(table, seed=0), duplicate_groups(table.embeddings))
    assert report["warnings"] == []
    assert report["label_domain_bits"] < 0.005
    assert all(0.9 < changes < 1.1 for changes in report["label_changes"].values())


def test_audit_measures_label_domain_confound() -> None:
    table = make(1000, 2)
    confounded = EmbeddingTable.from_arrays(table.embeddings, table.domain, label=table.domain)
    report = audit(confounded, split_rows(confounded, seed=0), duplicate_groups(confounded.embeddings))
    assert report["label_domain_bits"] == pytest.approx(1.0)
    assert report["label_domain_bits_corrected"] == pytest.approx(1.0 - 1 / (2000 * np.log(2)))
    assert "label and domain share 0.999 bits" in report["warnings"][0]
    assert list(report["label_changes"].values()) == [None, None]


def test_audit_finds_sorted_labels_and_one_label_parts() -> None:
    table = make(400, 1)
    table = EmbeddingTable.from_arrays(table.embeddings, label=np.arange(400) // 200, domain_names=("film",))
    first_rows = Split(np.arange(100), np.arange(100, 120), np.arange(300, 400))
    report = audit(table, first_rows, duplicate_groups(table.embeddings))
    assert report["label_changes"]["film"] == pytest.approx(1 / 399 / (0.5 * 400 / 399))
    assert report["warnings"] == [
        "domain 'film' is sorted by label: shuffle before taking its first rows",
        "train rows of domain 'film' hold one label only (0)",
        "validation rows of domain 'film' hold one label only (0)",
        "test rows of domain 'film' hold one label only (1)",
    ]


def test_audit_finds_leaked_rows() -> None:
    table = make(100, 1)
    leaky = Split(np.arange(60), np.arange(60, 80), np.arange(55, 100))
    report = audit(table, leaky, duplicate_groups(table.embeddings))
    assert report["shared_rows"] == {"train/validation": 0, "train/test": 5, "validation/test": 20}
    assert "5 test rows also stand in train" in report["warnings"]


def test_audit_without_labels() -> None:
    table = EmbeddingTable.from_arrays(make(50, 2).embeddings)
    report = audit(table, split_rows(table, seed=0), duplicate_groups(table.embeddings))
    assert report["label_domain_bits"] == 0.0 and report["warnings"] == []


def test_values_do_not_decide_the_split():
    """The same rows in other coordinates (as from another encoder) are split alike."""
    rows = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    parts = [split_rows(EmbeddingTable.from_arrays(x), seed=1) for x in (rows, -3 * rows[:, ::-1])]
    assert np.array_equal(parts[0].train, parts[1].train)
