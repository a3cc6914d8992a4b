"""Columns of text files: `.txt`, `.csv`, `.jsonl` and `.parquet`, by name and in the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stratcore.data.errors import DataError
from stratcore.data.table import check_file
from stratcore.data.table_columns import check_columns, csv_lines

COLUMNS = ("text", "label", "domain")
SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")


def text_columns(path: Path, names: Sequence[str] = COLUMNS) -> dict[str, list[Any]]:
    """Columns of a file that are among `names`; `text` must be there.

    Raises:
        DataError: no such file, another kind of file, a bad line (named), no row, no column `text`.
    """
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file ending in {', '.join(readers)}")
    check_file(path)
    return reader(path, names)


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 ({error.reason})") from None
    lines = [
        (number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not lines:
        raise DataError(f"{path}: every line is blank")
    return lines


def _read_txt(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    return {"text": [line for _, line in _read_lines(path)]}


def _read_csv(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    _check_text_column(path, header)
    columns: dict[str, list[Any]] = {name: [] for name in header if name in names}
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}: line {number}: expected {len(header)} columns, got {len(cells)}")
        for name, cell in zip(header, cells, strict=True):
            if name in columns:
                columns[name].append(cell)
    if not columns["text"]:
        raise DataError(f"{path}: no row below the header")
    return columns


def _read_jsonl(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for number, line in _read_lines(path):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: not JSON ({error})") from None
        if not isinstance(item, dict):
            raise DataError(f"{path}: line {number}: expected an object, got {type(item).__name__}")
        if not columns:
            _check_text_column(path, list(item))
            columns = {name: [] for name in names if name in item}
        for name, column in columns.items():
            if name not in item:
                raise DataError(f"{path}: line {number}: key {name!r} is missing")
            column.append(item[name])
    return columns


def _read_parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            _check_text_column(path, there)
            columns = file.read(columns=[name for name in names if name in there]).to_pydict()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    if not columns["text"]:
        raise DataError(f"{path}: the table has no row")
    return columns


def _check_text_column(path: Path, names: Sequence[str]) -> None:
    check_columns(path, names)
    if "text" not in names:
        raise DataError(f"{path}: column 'text' is missing beside {list(names)}")
