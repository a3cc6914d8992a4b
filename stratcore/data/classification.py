"""Labelled texts of one task over several domains, and splits of them on which no trick earns a good number.

Legend: N texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.split import Split, audit
from stratcore.data.table import check_domain_names
from stratcore.data.texts import check_texts

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class ClassificationTable:
    """Texts, or pairs of texts, with labels that mean the same in every domain.

    Args:
        texts: N texts, none empty.
        second: the second texts of N pairs; None where the task is about single texts.
        label: [N] int64, index into `label_names`.
        label_names: at least two different names.
        domain: [N] int64, index into `domain_names`.
        domain_names: different names.
        part: [N] int64, index into `PARTS`, where the rows come with a split; None where they do not.
        source: where the rows come from.

    Raises:
        DataError: one line that names the source and the first offending row, label or domain.
    """

    texts: tuple[str, ...]
    label: np.ndarray
    label_names: tuple[str, ...]
    domain: np.ndarray
    domain_names: tuple[str, ...]
    source: str
    second: tuple[str, ...] | None = None
    part: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_domain_names(self.domain_names, self.source)
        check_texts(self.texts, self.source)
        if self.second is not None:
            check_texts(self.second, f"{self.source}: second texts")
            if len(self.second) != len(self.texts):
                raise DataError(f"{self.source}: {len(self.texts)} texts but {len(self.second)} second texts")
        if len(self.label_names) < 2 or len(set(self.label_names)) != len(self.label_names):
            raise DataError(f"{self.source}: expected at least two different labels, got {self.label_names}")
        limits = {"label": len(self.label_names), "domain": len(self.domain_names)}
        for key, limit in limits.items():
            column = getattr(self, key)
            if column.dtype != np.int64 or column.shape != (len(self.texts),):
                raise DataError(f"{self.source}: key {key!r} must be int64 of shape ({len(self.texts)},)")
            bad = np.flatnonzero((column < 0) | (column >= limit))
            if bad.size:
                raise DataError(
                    f"{self.source}: row {bad[0]}: {key} {column[bad[0]]} is not in 0..{limit - 1}"
                )
        for index, name in enumerate(self.domain_names):
            own = np.unique(self.label[self.domain == index])
            if own.size == 1:
                raise DataError(
                    f"{self.source}: domain {name!r} has one class only ({self.label_names[own[0]]}): "
                    "a model that finds the domain knows the label"
                )

    @property
    def num_rows(self) -> int:
        """Number of texts N."""
        return len(self.texts)

    @cached_property
    def groups(self) -> np.ndarray:
        """A number per row [N] int64; rows with the same normalized text (and second text) share one."""
        numbers: dict[tuple[str, str], int] = {}
        second = self.second or ("",) * self.num_rows
        keys = zip(map(normalized_text, self.texts), map(normalized_text, second), strict=True)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Sizes of a balanced split; every domain gets equally many rows, every label of a domain too.

    Args:
        test_rows: of a domain, at least.
        least_test_rows: of all domains together; `test_rows` grows until it is met.
        validation_rows: of a domain.
        train_rows: of a domain; None: as many as the rarest label of any domain allows.
    """

    test_rows: int = 500
    least_test_rows: int = 2000
    validation_rows: int = 200
    train_rows: int | None = None

    def __post_init__(self) -> None:
        for key in ("test_rows", "least_test_rows", "validation_rows", "train_rows"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.split.{key}: expected a number >= 1, got {value}")


def normalized_text(text: str) -> str:
    """Lower case, letters and digits only: two texts that agree here are one text."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def split_texts(table: ClassificationTable, options: SplitOptions, *, seed: int) -> Split:
    """Shuffle, drop duplicates and split, labels balanced within each domain.

    A text that stands in the table more than once is kept once; if its labels or domains differ, it is dropped
    altogether. Rows that come with a split keep it, and a text in two parts is an error.

    Args:
        table: the rows.
        options: sizes.
        seed: of the shuffle.

    Returns:
        Parts in random order (not ascending), the labels of each domain of a part equally frequent but for
        rounding.

    Raises:
        DataError: too few different texts of a label in a domain, or a given split that shares texts.

    Determinism: a function of the table and the seed.
    """
    if table.part is not None:
        return _given_split(table, table.part, seed)
    kept = _distinct(table)
    labels, domains = len(table.label_names), len(table.domain_names)
    test = max(options.test_rows, -(-options.least_test_rows // domains))
    sizes = [-(-rows // labels) for rows in (test, options.validation_rows)]
    available = np.zeros((domains, labels), np.int64)
    np.add.at(available, (table.domain[kept], table.label[kept]), 1)
    scarce = int(available.min())
    train = scarce - sum(sizes) if options.train_rows is None else -(-options.train_rows // labels)
    if train < 1 or train + sum(sizes) > scarce:
        d, m = np.unravel_index(available.argmin(), available.shape)
        wanted = max(train, 1) + sum(sizes)
        raise DataError(
            f"{table.source}: domain {table.domain_names[d]!r} has {scarce} different texts of label "
            f"{table.label_names[m]!r}, {wanted} are wanted (test {sizes[0]}, validation {sizes[1]})"
        )
    rng = np.random.default_rng(seed)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    bounds = np.cumsum([train, sizes[1], sizes[0]])
    for domain in range(domains):
        for label in range(labels):
            own = kept[(table.domain[kept] == domain) & (table.label[kept] == label)]
            drawn = rng.permutation(own)[: bounds[-1]]
            for part, rows in zip(parts, np.split(drawn, bounds[:-1]), strict=True):
                part.append(rows)
    return Split(*(rng.permutation(np.concatenate(part)) for part in parts))


@dataclass(frozen=True, eq=False)
class _UsedRows:
    label: np.ndarray
    domain: np.ndarray
    domain_names: tuple[str, ...]


def audit_split(table: ClassificationTable, split: Split) -> dict[str, Any]:
    """`audit` of the rows that a split uses, in the order in which it uses them."""
    parts = [rows for _, rows in split.parts()]
    used = np.concatenate(parts)
    ends = np.cumsum([0, *map(len, parts)])
    places = Split(*(np.arange(begin, end) for begin, end in zip(ends, ends[1:], strict=False)))
    rows = _UsedRows(table.label[used], table.domain[used], table.domain_names)
    return audit(rows, places, table.groups[used])


def require_no_confound(table: ClassificationTable, split: Split) -> dict[str, Any]:
    """`audit_split`, or an error where the split lets a trick earn a good number.

    Raises:
        DataError: label and domain go together, a domain is sorted by label, a part of a domain holds one label
            only, or parts share texts.
    """
    report = audit_split(table, split)
    if report["warnings"]:
        raise DataError(f"{table.source}: {'; '.join(report['warnings'])}")
    return report


def _distinct(table: ClassificationTable) -> np.ndarray:
    """The first row of every text whose copies agree on label and domain."""
    group = table.groups
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    agrees = (table.label == table.label[first][inverse]) & (table.domain == table.domain[first][inverse])
    good = np.ones(len(first), bool)
    np.logical_and.at(good, inverse, agrees)
    return np.sort(first[good])


def _given_split(table: ClassificationTable, part: np.ndarray, seed: int) -> Split:
    group = table.groups
    first_part: dict[int, int] = {}
    for row, (number, number_of_part) in enumerate(zip(group.tolist(), part.tolist(), strict=True)):
        before = first_part.setdefault(number, row)
        if part[before] != number_of_part:
            raise DataError(
                f"{table.source}: row {row} ({PARTS[number_of_part]}) repeats row {before} "
                f"({PARTS[part[before]]})"
            )
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(np.flatnonzero(part == index)) for index in range(len(PARTS))]
    for name, rows in zip(PARTS, parts, strict=True):
        if not rows.size:
            raise DataError(f"{table.source}: column 'split': no row is {name!r}")
    return Split(*parts)


def _other_labels(first: ClassificationTable, other: ClassificationTable) -> str:
    words = f"labels {other.label_names} differ from {first.label_names} of {first.source}"
    unknown = [number for number, name in enumerate(other.label_names) if name not in first.label_names]
    if not unknown:
        return f"{other.source}: {words}"
    row = int(np.flatnonzero(np.isin(other.label, unknown))[0])
    name = other.label_names[other.label[row]]
    return f"{other.source}: row {row}: label {name!r} is not in {first.source}; {words}"


def join_classification(tables: Sequence[ClassificationTable]) -> ClassificationTable:
    """Put tables of different domains and the same labels below each other.

    Raises:
        DataError: other labels, a domain twice, pairs beside single texts.
    """
    first = tables[0]
    for other in tables[1:]:
        if other.label_names != first.label_names:
            raise DataError(_other_labels(first, other))
        if (other.second is None) != (first.second is None):
            raise DataError(f"{other.source}: pairs of texts and single texts do not mix")
        if (other.part is None) != (first.part is None):
            raise DataError(f"{other.source}: rows with and without a column 'split' do not mix")
    offsets = np.cumsum([0, *(len(table.domain_names) for table in tables)])
    return ClassificationTable(
        texts=tuple(text for table in tables for text in table.texts),
        second=None if first.second is None else tuple(text for t in tables for text in t.second or ()),
        label=np.concatenate([table.label for table in tables]),
        label_names=first.label_names,
        domain=np.concatenate([table.domain + shift for table, shift in zip(tables, offsets, strict=False)]),
        domain_names=tuple(name for table in tables for name in table.domain_names),
        part=None if first.part is None else np.concatenate([t.part for t in tables if t.part is not None]),
        source=" + ".join(table.source for table in tables),
    )
