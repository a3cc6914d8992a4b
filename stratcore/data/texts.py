"""Text tables: texts with their domain and the label of their own task, from the hub or from local files.

Legend: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.registry import PAPER_MODELS, TEXT_SETS, PaperModel, TextSet
from stratcore.data.table import check_domain_names
from stratcore.data.table_columns import name_column
from stratcore.data.text_files import SUFFIXES, text_columns

__all__ = ["PAPER_MODELS", "TEXT_SETS", "PaperModel", "TextSet", "TextTable", "join_texts", "load_texts"]

MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True, eq=False)
class TextTable:
    """Texts with domain and label. Labels count within the task of their domain only.

    Args:
        texts: N texts, none empty.
        domain: [N] int64, index into `domain_names`.
        domain_names: different names.
        label: [N] int64, index into the label names of the row's domain, -1 unknown.
        label_names: per domain, the names of its labels; empty where it has none.
        source: where the rows come from.

    Raises:
        DataError: one line that names the source and the first offending row.
    """

    texts: tuple[str, ...]
    domain: np.ndarray
    domain_names: tuple[str, ...]
    label: np.ndarray
    label_names: tuple[tuple[str, ...], ...]
    source: str

    def __post_init__(self) -> None:
        check_domain_names(self.domain_names, self.source)
        if len(self.label_names) != len(self.domain_names):
            raise DataError(
                f"{self.source}: expected label names for {len(self.domain_names)} domains, "
                f"got {len(self.label_names)}"
            )
        check_texts(self.texts, self.source)
        for key in ("domain", "label"):
            column = getattr(self, key)
            if column.dtype != np.int64 or column.shape != (len(self.texts),):
                raise DataError(f"{self.source}: key {key!r} must be int64 of shape ({len(self.texts)},)")
        limits = np.array([len(names) for names in self.label_names])
        if self.domain.min() < 0 or self.domain.max() >= len(self.domain_names):
            raise DataError(f"{self.source}: a domain index is outside 0..{len(self.domain_names) - 1}")
        bad = np.flatnonzero((self.label < -1) | (self.label >= limits[self.domain]))
        if bad.size:
            names = self.label_names[self.domain[bad[0]]]
            raise DataError(f"{self.source}: row {bad[0]}: label {self.label[bad[0]]} is not one of {names}")

    @property
    def num_rows(self) -> int:
        """Number of texts N."""
        return len(self.texts)

    def task_labels(self) -> np.ndarray:
        """Return labels [N] int64 that mean the same wherever they are equal.

        Domains with the same label names share a task and its numbers. Labels that are mere numbers have no
        meaning outside their domain, so they are never shared.
        """
        first_number: dict[tuple[str, ...] | int, int] = {}
        tasks: list[tuple[str, ...] | int] = []
        used = 0
        for domain, names in enumerate(self.label_names):
            tasks.append(domain if all(name.isdigit() for name in names) else names)
            if tasks[-1] not in first_number:
                first_number[tasks[-1]] = used
                used += len(names)
        shift = np.array([first_number[task] for task in tasks], np.int64)
        return np.where(self.label >= 0, self.label + shift[self.domain], -1)


def load_texts(
    name_or_path: str | Path, rows: int | None = None, seed: int = 0, domain: str | None = None
) -> TextTable:
    """Load a text set, shuffled with a seed before its first rows are taken.

    Public sets are often sorted by label, so the first rows of a file hold one label only.

    Args:
        name_or_path: a name of `TEXT_SETS`; `bundled` (the texts of seven domains behind the bundled embeddings,
            fetched with pip and npm); or a file: `.txt` (one text a line), `.csv`, `.jsonl` or
            `.parquet` with a column `text` and optional columns `label` (numbers or names) and `domain`.
        rows: how many rows to take after the shuffle, all by default.
        seed: of the shuffle.
        domain: domain name for rows without one; the name of the set or file by default.

    Raises:
        DataError: unknown name, set not to be had offline, fewer rows than wanted, bad file (names the line).
    """
    name = str(name_or_path)
    if rows is not None and rows < 1:
        raise DataError(f"{name}: rows must be at least 1, got {rows}")
    if name in TEXT_SETS:
        return _load_hub_set(name, rows, seed, domain or name)
    if name == "bundled":
        return _load_bundled_texts(rows, seed)
    path = Path(name_or_path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name}: expected one of {', '.join(TEXT_SETS)}, or a file ending in {', '.join(SUFFIXES)}"
        )
    columns = text_columns(path)
    return _text_table(path, columns, domain or path.stem, _draw(name, len(columns["text"]), rows, seed))


def join_texts(tables: Sequence[TextTable]) -> TextTable:
    """Put tables of different domains below each other; their labels stay apart.

    Raises:
        DataError: a domain name twice.
    """
    offsets = np.cumsum([0, *(len(table.domain_names) for table in tables)])
    return TextTable(
        texts=tuple(text for table in tables for text in table.texts),
        domain=np.concatenate([table.domain + shift for table, shift in zip(tables, offsets, strict=False)]),
        domain_names=tuple(name for table in tables for name in table.domain_names),
        label=np.concatenate([table.label for table in tables]),
        label_names=tuple(names for table in tables for names in table.label_names),
        source=" + ".join(table.source for table in tables),
    )


def check_texts(texts: Sequence[str], source: str) -> None:
    """Raise `DataError`, naming the row, unless there are texts and each has 1 to `MAX_CHARACTERS` characters."""
    if isinstance(texts, str) or len(texts) == 0:
        raise DataError(f"{source}: expected a list of at least one text, got {str(texts)[:40]!r}")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{source}: row {row}: expected a string, got {type(text).__name__}")
        if not text.strip():
            raise DataError(f"{source}: row {row}: the text is empty")
        if len(text) > MAX_CHARACTERS:
            raise DataError(f"{source}: row {row}: {len(text)} characters, at most {MAX_CHARACTERS}")


def _draw(source: str, available: int, rows: int | None, seed: int) -> np.ndarray:
    if rows is not None and rows > available:
        raise DataError(f"{source}: {rows} rows are wanted, {available} are there")
    return np.random.default_rng(seed).permutation(available)[:rows]


def hub_columns(name: str, facts: TextSet, rows: int | None, seed: int) -> dict[str, list[Any]]:
    """Columns of a set of the hub, by their names there; rows drawn at random.

    Raises:
        DataError: the set is not to be had, lacks a column, or has fewer rows than wanted.
    """
    from datasets import load_dataset

    try:
        dataset = load_dataset(facts.hub_name, facts.config, split=facts.split)
    except Exception as error:  # the client raises a different type for each way of being offline
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"text set {name!r}: {facts.hub_name!r} is not to be had from the hub ({first_line}); "
            "go online once, or give a local .txt, .csv, .jsonl or .parquet file"
        ) from error
    columns = [facts.text_column, facts.label_column]
    if facts.pair_column is not None:
        columns.append(facts.pair_column)
    for column in columns:
        if column not in dataset.column_names:
            raise DataError(f"text set {name!r}: column {column!r} is missing beside {dataset.column_names}")
    drawn = dataset.select(_draw(f"text set {name!r}", len(dataset), rows, seed))
    return {column: list(drawn[column]) for column in columns}


def _load_hub_set(name: str, rows: int | None, seed: int, domain: str) -> TextTable:
    facts = TEXT_SETS[name]
    columns = hub_columns(name, facts, rows, seed)
    texts = tuple(columns[facts.text_column])
    return TextTable(
        texts=texts,
        domain=np.zeros(len(texts), np.int64),
        domain_names=(domain,),
        label=np.asarray(columns[facts.label_column], np.int64),
        label_names=(facts.label_names,),
        source=f"text set {name!r}",
    )


def _load_bundled_texts(rows: int | None, seed: int) -> TextTable:
    from stratcore.data.bundled.build import bundled_texts

    table = bundled_texts()
    if rows is None:
        return table  # in the order of the bundled embeddings
    drawn = _draw("text set 'bundled'", table.num_rows, rows, seed)
    texts = tuple(table.texts[row] for row in drawn)
    return replace(table, texts=texts, domain=table.domain[drawn], label=table.label[drawn])


def _text_table(path: Path, columns: dict[str, list[Any]], domain: str, drawn: np.ndarray) -> TextTable:
    texts = columns["text"]
    check_texts(texts, str(path))
    if "domain" in columns:
        domains, names = name_column(path, "domain", columns["domain"])
    else:
        domains, names = np.zeros(len(texts), np.int64), (domain,)
    labels = np.full(len(texts), -1, np.int64)
    label_names: list[tuple[str, ...]] = []
    for index in range(len(names)):
        values = columns.get("label", [None] * len(texts))
        known = [row for row in np.flatnonzero(domains == index) if values[row] not in (None, "", -1, "-1")]
        labels[known], found = name_column(path, "label", [values[row] for row in known])
        label_names.append(found)
    return TextTable(
        tuple(texts[row] for row in drawn),
        domains[drawn],
        names,
        labels[drawn],
        tuple(label_names),
        str(path),
    )
