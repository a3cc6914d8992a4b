"""Train, validation and test rows without leaks, and an audit for the confounds that fake good results.

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.table import EmbeddingTable

MUTUAL_INFORMATION_LIMIT = 0.05  # bits
SORTEDNESS_LIMIT = 0.5  # share of the label changes that shuffled rows would show


class LabeledRows(Protocol):
    """What `audit` looks at: of each row its label (-1 unknown) and its domain, both [N] int64."""

    @property
    def label(self) -> np.ndarray:
        """[N]."""
        ...

    @property
    def domain(self) -> np.ndarray:
        """[N]."""
        ...

    @property
    def domain_names(self) -> tuple[str, ...]:
        """One a domain."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Row indices of the three parts, each [M] int64; what makes a split says in which order."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, rows) of each part."""
        yield "train", self.train
        yield "validation", self.validation
        yield "test", self.test


def split_rows(
    table: EmbeddingTable, fractions: tuple[float, float, float] = (0.7, 0.15, 0.15), *, seed: int
) -> Split:
    """Split the rows at random, each domain by itself, identical rows always on one side.

    Args:
        table: the rows.
        fractions: shares of train, validation and test; they sum to 1; a share of 0 leaves its part empty.
        seed: of the shuffle.

    Returns:
        Parts that are disjoint, hold every row and ascend. Without duplicates the size of each part in each domain is
        its share, rounded up or down.

    Raises:
        DataError: bad fractions; too few rows to give every part one.

    Determinism: a function of values, domains and seed only.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise DataError(f"fractions must be three shares >= 0 that sum to 1, got {fractions}")
    group = duplicate_groups(table.embeddings)
    _, first_row, group_size = np.unique(group, return_index=True, return_counts=True)
    part_of_group = np.empty(len(group_size), np.int64)
    for domain in range(len(table.domain_names)):
        members = np.flatnonzero(table.domain[first_row] == domain)
        members = np.random.default_rng([seed, domain]).permutation(members)
        # Large groups first: the single rows after them fill the parts to their shares.
        members = members[np.argsort(-group_size[members], kind="stable")]
        part_of_group[members] = _fill(group_size[members], shares)
    part = part_of_group[group]
    split = Split(*(np.flatnonzero(part == i) for i in range(3)))
    for (name, rows), share in zip(split.parts(), shares, strict=True):
        if share > 0 and rows.size == 0:
            raise DataError(f"{table.source}: {table.num_rows} rows are too few: the {name} part is empty")
    return split


def duplicate_groups(embeddings: np.ndarray) -> np.ndarray:
    """Return a group number per row [N] int64; identical rows, and only they, share one.

    Groups are numbered in the order of their first row, so that the values decide nothing: the same texts under
    two encoders are split alike.
    """
    rows = np.ascontiguousarray(embeddings + np.float32(0))  # -0 becomes +0: equal values, equal bytes
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    _, first_row, group = np.unique(keys, return_index=True, return_inverse=True)
    number = np.empty(len(first_row), np.int64)
    number[np.argsort(first_row)] = np.arange(len(first_row))
    return number[group.reshape(-1)]


def audit(table: LabeledRows, split: Split, group: np.ndarray) -> dict[str, Any]:
    """Measure the confounds of a labelled, split table. Never raises.

    Args:
        table: labels and domains of N rows.
        split: row numbers of each part, in the order in which they are used.
        group: [N] int64, the same number for rows that are the same (`duplicate_groups`).

    Returns:
        label_domain_bits: plug-in mutual information of label and domain where the label is known, in bits.
        label_domain_bits_corrected: the same less its expected value under independence,
            (domains - 1)(labels - 1) / (2 N ln 2), not below 0.
        label_changes: per domain, how often the label changes from row to row, relative to shuffled rows
            (0 sorted, about 1 shuffled); None where a domain has fewer than two known labels.
        duplicate_rows: rows that repeat an earlier row.
        shared_rows: per pair of parts, rows of the second part that also stand in the first.
        warnings: texts.
    """
    known = np.flatnonzero(table.label >= 0)
    bits, corrected = _mutual_information(table.label[known], table.domain[known])
    changes = {
        name: _label_changes(table.label[known[table.domain[known] == i]])
        for i, name in enumerate(table.domain_names)
    }
    parts = list(split.parts())
    shared = {
        f"{first}/{second}": int(np.isin(group[rows_second], group[rows_first]).sum())
        for i, (first, rows_first) in enumerate(parts)
        for second, rows_second in parts[i + 1 :]
    }
    report = {
        "label_domain_bits": bits,
        "label_domain_bits_corrected": corrected,
        "label_changes": changes,
        "duplicate_rows": int(len(group) - np.unique(group).size),
        "shared_rows": shared,
    }
    return report | {"warnings": list(_warnings(report, table, parts))}


def _fill(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Give each group, in order, to the part that is furthest below its share."""
    missing = shares * sizes.sum()
    part = np.empty(len(sizes), np.int64)
    for i, size in enumerate(sizes):
        part[i] = np.argmax(missing)
        missing[part[i]] -= size
    return part


def _mutual_information(label: np.ndarray, domain: np.ndarray) -> tuple[float, float]:
    if label.size == 0:
        return 0.0, 0.0
    labels, label_index = np.unique(label, return_inverse=True)
    domains, domain_index = np.unique(domain, return_inverse=True)
    joint = np.zeros((len(labels), len(domains)))
    np.add.at(joint, (label_index, domain_index), 1.0 / label.size)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    here = joint > 0
    bits = float((joint[here] * np.log2(joint[here] / independent[here])).sum())
    bias = (len(labels) - 1) * (len(domains) - 1) / (2 * label.size * np.log(2))
    return max(bits, 0.0), max(bits - bias, 0.0)


def _label_changes(label: np.ndarray) -> float | None:
    share = np.unique(label, return_counts=True)[1] / max(label.size, 1)
    if share.size < 2:
        return None
    expected = (1 - (share**2).sum()) * label.size / (label.size - 1)  # of neighbors in a random order
    return float((label[1:] != label[:-1]).mean() / expected)


def _warnings(
    report: dict[str, Any], table: LabeledRows, parts: list[tuple[str, np.ndarray]]
) -> Iterator[str]:
    if report["label_domain_bits_corrected"] > MUTUAL_INFORMATION_LIMIT:
        yield (
            f"label and domain share {report['label_domain_bits_corrected']:.3f} bits: "
            "a model that only finds the domain predicts the label"
        )
    for name, changes in report["label_changes"].items():
        if changes is not None and changes < SORTEDNESS_LIMIT:
            yield f"domain {name!r} is sorted by label: shuffle before taking its first rows"
    for part, rows in parts:
        for i, name in enumerate(table.domain_names):
            whole = table.label[(table.domain == i) & (table.label >= 0)]
            here = table.label[rows[(table.domain[rows] == i) & (table.label[rows] >= 0)]]
            if here.size and np.unique(whole).size > 1 and np.unique(here).size == 1:
                yield f"{part} rows of domain {name!r} hold one label only ({here[0]})"
    for pair, count in report["shared_rows"].items():
        if count:
            first, second = pair.split("/")
            yield f"{count} {second} rows also stand in {first}"
