"""Column files: `.csv` and `.parquet` tables of embeddings."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.table import EmbeddingTable

RESERVED = ("domain", "label", "token_count")
LIST_COLUMN = "embedding"
_NUMBERED = re.compile(r"(?P<family>[A-Za-z_.\- ]*)(?P<number>\d{1,6})")


def read_csv(path: Path) -> EmbeddingTable:
    """Read a CSV file with a header line; cells of `embedding` are JSON lists.

    Raises:
        DataError: names the line and the column.
    """
    lines = csv_lines(path)
    _, header = next(lines, (1, []))
    check_columns(path, header)
    _check_header(path, header)
    plain = [name for name in header if name not in RESERVED]
    chosen = [LIST_COLUMN] if LIST_COLUMN in header else numbered_columns(path, plain) or plain
    positions = [header.index(name) for name in chosen]
    if not positions:
        raise DataError(f"{path}: no embedding column beside {header}")
    rows: list[np.ndarray] = []
    reserved: dict[str, list[str]] = {name: [] for name in RESERVED if name in header}
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}: line {number}: expected {len(header)} columns, got {len(cells)}")
        where = f"{path}: line {number}"
        row = _json_row(where, cells[positions[0]]) if chosen == [LIST_COLUMN] else None
        rows.append(_number_row(where, chosen, [cells[p] for p in positions]) if row is None else row)
        _check_width(where, rows)
        for name, column in reserved.items():
            column.append(cells[header.index(name)])
    if not rows:
        raise DataError(f"{path}: no row below the header")
    return _table(path, np.stack(rows), reserved)


def read_parquet(path: Path) -> EmbeddingTable:
    """Read a parquet file.

    Raises:
        DataError: names the column and the row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_columns(path, schema.names)
            chosen = _parquet_columns(path, schema)
            table = file.read(columns=[*chosen, *(name for name in RESERVED if name in schema.names)])
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
    if table.num_rows == 0:
        raise DataError(f"{path}: the table has no row")
    if chosen == [LIST_COLUMN]:
        values = _list_column(path, table.column(LIST_COLUMN))
    else:
        values = np.stack([table.column(name).to_numpy().astype(np.float64) for name in chosen], axis=1)
    reserved = {name: table.column(name).to_pylist() for name in RESERVED if name in table.column_names}
    return _table(path, values, reserved)


def numbered_columns(path: Path, names: Sequence[str]) -> list[str]:
    """Return the one family of numbered columns (`e0`, `e1`, ...) in the order of their numbers, or nothing.

    Raises:
        DataError: two families, a gap, a number twice.
    """
    families: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            family, number = families[match["family"]], int(match["number"])
            if number in family:
                raise DataError(f"{path}: columns {family[number]!r} and {name!r} have the same number")
            family[number] = name
    families = {name: family for name, family in families.items() if len(family) > 1 or len(names) == 1}
    if not families:
        return []
    if len(families) > 1:
        raise DataError(
            f"{path}: several families of embedding columns, expected one: "
            + ", ".join(repr(next(iter(family.values()))) for family in families.values())
        )
    family = next(iter(families.values()))
    first = min(family)
    gap = next((n for n in range(first, first + len(family)) if n not in family), None)
    if first > 1 or gap is not None:
        missing = first - 1 if first > 1 else gap
        raise DataError(f"{path}: embedding column number {missing} is missing beside {family[first]!r}")
    return [family[number] for number in sorted(family)]


def integer_column(path: Path, name: str, values: Sequence[Any]) -> np.ndarray:
    """Return integers >= -1 as int64; empty cells are -1.

    Raises:
        DataError: names the row.
    """
    out = np.full(len(values), -1, np.int64)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        try:
            number = int(value)
            if isinstance(value, (bool, float)) or number < -1 or number >= 2**63:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{path}: row {row}, column {name!r}: expected an integer >= -1, got {value!r}"
            ) from None
        out[row] = number
    return out


def name_column(path: Path, name: str, values: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn a column of names or numbers into indices and the sorted different names.

    Raises:
        DataError: an empty cell, named by row.
    """
    for row, value in enumerate(values):
        if value is None or value == "" or isinstance(value, float):
            raise DataError(f"{path}: row {row}, column {name!r}: expected a name, got {value!r}")
    texts = [str(value) for value in values]
    different = set(texts)
    numeric = all(re.fullmatch(r"\d+", text) for text in different)
    names = sorted(different, key=(lambda text: (int(text), text)) if numeric else None)
    index = {text: i for i, text in enumerate(names)}
    return np.array([index[text] for text in texts], np.int64), tuple(names)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV file, header first; blank lines are left out.

    Raises:
        DataError: bad quoting or bytes that are not UTF-8, named by line.
    """
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: after line {reader.line_num}: not UTF-8 ({error.reason})") from None
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}") from None


def check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise `DataError` if two columns have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: duplicate column name {name!r}")
        seen.add(name)


def _check_header(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise DataError(f"{path}: no header line")
    # Columns named 0, 1, 2, ... are a header that data frames write; other numbers are a first row of values.
    if list(names) != [str(i) for i in range(len(names))] and all(_is_number(name) for name in names):
        raise DataError(f"{path}: line 1 holds numbers, expected a header with column names")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number_row(where: str, names: Sequence[str], cells: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        name, cell = next((n, c) for n, c in zip(names, cells, strict=True) if not _is_number(c))
        raise DataError(f"{where}, column {name!r}: expected a number, got {cell[:40]!r}") from None


def _json_row(where: str, cell: str) -> np.ndarray:
    try:
        values = json.loads(cell)
        if not isinstance(values, list) or not values:
            raise ValueError
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            raise ValueError
        return np.array(values, dtype=np.float64)
    except (ValueError, RecursionError, OverflowError):
        raise DataError(
            f"{where}, column {LIST_COLUMN!r}: expected a list of numbers, got {cell[:40]!r}"
        ) from None


def _check_width(where: str, rows: list[np.ndarray]) -> None:
    if rows[-1].size != rows[0].size:
        raise DataError(f"{where}: ragged: {rows[-1].size} dimensions, the first row has {rows[0].size}")


def _parquet_columns(path: Path, schema: Any) -> list[str]:
    import pyarrow.types as types

    def is_list(kind: Any) -> bool:
        return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)

    if LIST_COLUMN in schema.names:
        kind = schema.field(LIST_COLUMN).type
        if not is_list(kind) or not types.is_floating(kind.value_type):
            raise DataError(f"{path}: column {LIST_COLUMN!r} must be a list of floats, got {kind}")
        return [LIST_COLUMN]
    plain = [name for name in schema.names if name not in RESERVED]
    chosen = numbered_columns(path, plain) or plain
    if not chosen:
        raise DataError(f"{path}: no embedding column beside {schema.names}")
    for name in chosen:
        if not types.is_floating(schema.field(name).type):
            raise DataError(f"{path}: column {name!r} must hold floats, got {schema.field(name).type}")
    return chosen


def _list_column(path: Path, column: Any) -> np.ndarray:
    rows = [np.asarray(row or [], np.float64) for row in column.to_pylist()]
    for i, row in enumerate(rows):
        if row.size == 0:
            raise DataError(f"{path}: row {i}, column {LIST_COLUMN!r}: the list is empty")
        if row.size != rows[0].size:
            raise DataError(f"{path}: row {i}: ragged: {row.size} dimensions, row 0 has {rows[0].size}")
    return np.stack(rows)


def _table(path: Path, values: np.ndarray, reserved: dict[str, list[Any]]) -> EmbeddingTable:
    columns: dict[str, Any] = {
        name: integer_column(path, name, reserved[name])
        for name in ("label", "token_count")
        if name in reserved
    }
    if "domain" in reserved:
        columns["domain"], columns["domain_names"] = name_column(path, "domain", reserved["domain"])
    return EmbeddingTable.from_arrays(values, source=str(path), **columns)
