"""Embedding tables: the rows that every analysis and every dictionary model starts from.

Legend: N rows, d embedding dimensions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data.errors import DataError

MAX_UNNAMED_DOMAINS = 100_000


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """Embeddings with what is known about each row.

    Args:
        embeddings: [N, d] float32, finite, N >= 1, d >= 1.
        domain: [N] int64, index into `domain_names`.
        domain_names: different, non-empty names.
        label: [N] int64, -1 where unknown.
        token_count: [N] int64, tokens the embedding was made of, -1 where unknown.
        source: where the rows come from; error messages begin with it.

    Raises:
        DataError: one line that names the source and the first offending row or name.
    """

    embeddings: np.ndarray
    domain: np.ndarray
    domain_names: tuple[str, ...]
    label: np.ndarray
    token_count: np.ndarray
    source: str

    def __post_init__(self) -> None:
        check_embeddings(self.embeddings, self.source)
        check_domain_names(self.domain_names, self.source)
        for key in ("domain", "label", "token_count"):
            _check_column(getattr(self, key), key, len(self.embeddings), self.source)
        _check_range(self.domain, "domain", 0, len(self.domain_names) - 1, self.source)
        _check_range(self.label, "label", -1, None, self.source)
        _check_range(self.token_count, "token_count", -1, None, self.source)

    @classmethod
    def from_arrays(
        cls,
        embeddings: Any,
        domain: Any = None,
        domain_names: tuple[str, ...] | None = None,
        label: Any = None,
        token_count: Any = None,
        source: str = "arrays",
    ) -> EmbeddingTable:
        """Build a table from arrays of any float and integer width.

        Args:
            embeddings: [N, d] float16, float32 or float64.
            domain: [N] integers; one domain when omitted.
            domain_names: names of the domains; `domain 0`, `domain 1`, ... when omitted.
            label: [N] integers, unknown when omitted.
            token_count: [N] integers, unknown when omitted.
            source: where the rows come from.

        Raises:
            DataError: see `EmbeddingTable`.
        """
        values = as_float32(np.asarray(embeddings), source)
        num_rows = len(values)
        columns = {
            key: np.full(num_rows, default, np.int64) if column is None else as_int64(column, key, source)
            for key, column, default in (
                ("domain", domain, 0),
                ("label", label, -1),
                ("token_count", token_count, -1),
            )
        }
        if domain_names is None:
            count = int(columns["domain"].max(initial=0)) + 1
            if count > MAX_UNNAMED_DOMAINS:
                raise DataError(f"{source}: key 'domain': {count - 1} is not an index of an unnamed domain")
            domain_names = tuple(f"domain {i}" for i in range(count))
        return cls(embeddings=values, domain_names=tuple(domain_names), source=source, **columns)

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return int(self.embeddings.shape[0])

    @property
    def dim(self) -> int:
        """Embedding dimension d."""
        return int(self.embeddings.shape[1])

    def select(self, rows: np.ndarray) -> EmbeddingTable:
        """Return the table of the given rows, in the given order.

        Args:
            rows: indices [M] integer, or mask [N] bool.

        Raises:
            DataError: an index out of range, a mask of another length, no row.
        """
        rows = np.asarray(rows)
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iub"
            or (rows.dtype.kind == "b" and rows.size != self.num_rows)
        ):
            raise DataError(
                f"{self.source}: select: expected 1-D row indices or a mask of {self.num_rows} rows, "
                f"got {rows.dtype} of shape {rows.shape}"
            )
        if rows.dtype.kind != "b" and rows.size and not (0 <= rows.min() and rows.max() < self.num_rows):
            raise DataError(
                f"{self.source}: select: row index outside 0..{self.num_rows - 1}: {rows.min()}..{rows.max()}"
            )
        return EmbeddingTable(
            self.embeddings[rows],
            self.domain[rows],
            self.domain_names,
            self.label[rows],
            self.token_count[rows],
            self.source,
        )

    def content_hash(self) -> str:
        """Return the SHA-256 of all values and domain names; `source` is left out."""
        digest = hashlib.sha256()
        for key in ("embeddings", "domain", "label", "token_count"):
            array = np.ascontiguousarray(getattr(self, key))
            digest.update(f"{key}:{array.dtype.str}:{array.shape};".encode())
            digest.update(array.data)
        for name in self.domain_names:
            encoded = name.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


def load_table(path_or_name: str | Path) -> EmbeddingTable:
    """Load an embedding table from a file, or the one inside the package.

    Rows are counted from 0, lines of a CSV file from 1.

    Args:
        path_or_name: `"bundled"`, or a file:
            `.npy` (2-D array of floats);
            `.safetensors` (key `embeddings`; optional `domain`, `label`, `token_count`; metadata
            `domain_names`, a JSON list);
            `.parquet` or `.csv` (a list column `embedding`, or one family of numbered columns such as `e0`,
            `e1`, ... or `dim_1`, `dim_2`, ..., or else only numeric columns; optional `domain`, `label`,
            `token_count`).

    Raises:
        DataError: one line that names the file and the row, column or key.
    """
    from stratcore.data import table_columns, table_files

    if str(path_or_name) == "bundled":
        from stratcore.data.bundled import load_bundled

        return load_bundled()
    path = Path(path_or_name)
    readers = {
        ".npy": table_files.read_npy,
        ".safetensors": table_files.read_safetensors,
        ".parquet": table_columns.read_parquet,
        ".csv": table_columns.read_csv,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        expected = ", ".join(readers)
        raise DataError(
            f"{path}: unknown kind of file {path.suffix!r}, expected 'bundled' or one of {expected}"
        )
    check_file(path)
    return reader(path)


def require_domains(table: EmbeddingTable, minimum: int = 2) -> None:
    """Raise `DataError` unless rows of at least `minimum` domains are there."""
    present = np.unique(table.domain)
    if present.size < minimum:
        names = ", ".join(repr(table.domain_names[i]) for i in present)
        raise DataError(
            f"{table.source}: at least {minimum} domains are needed, got {present.size} ({names})"
        )


def require_rows(table: EmbeddingTable, minimum: int) -> None:
    """Raise `DataError` unless the table has at least `minimum` rows."""
    if table.num_rows < minimum:
        raise DataError(f"{table.source}: at least {minimum} rows are needed, got {table.num_rows}")


def check_file(path: Path) -> None:
    """Raise `DataError` unless `path` is a file with at least one byte."""
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")


def check_shape(shape: tuple[int, ...], source: str) -> None:
    """Raise `DataError` unless the shape is [N, d] with N >= 1 and d >= 1."""
    if len(shape) != 2:
        raise DataError(
            f"{source}: embeddings must be 2-D [rows, dimensions], got {len(shape)}-D of shape {shape}"
        )
    if shape[0] < 1 or shape[1] < 1:
        raise DataError(f"{source}: embeddings need at least one row and one dimension, got shape {shape}")


def check_embeddings(values: np.ndarray, source: str) -> None:
    """Raise `DataError` unless `values` is a finite float32 array [N, d]."""
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        got = getattr(values, "dtype", type(values).__name__)
        raise DataError(f"{source}: embeddings must be a float32 array, got {got}")
    check_shape(values.shape, source)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        column = int(np.flatnonzero(~np.isfinite(values[bad[0]]))[0])
        raise DataError(
            f"{source}: row {bad[0]}, column {column}: {values[bad[0], column]} is not a finite float32; "
            f"{bad.size} of {len(values)} rows are not finite"
        )


def check_domain_names(names: tuple[str, ...], source: str) -> None:
    """Raise `DataError` unless the names are different, non-empty strings."""
    if not names:
        raise DataError(f"{source}: domain_names is empty")
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{source}: domain_names[{i}] must be a non-empty string, got {name!r}")
        if name in seen:
            raise DataError(f"{source}: domain_names[{i}]: duplicate name {name!r}")
        seen.add(name)


def as_float32(values: np.ndarray, source: str) -> np.ndarray:
    """Return a contiguous float32 copy of a float16, float32 or float64 array; refuse what it cannot hold."""
    if values.dtype.kind != "f" or values.dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{source}: embeddings must be float16, float32 or float64, got {values.dtype}")
    check_shape(values.shape, source)
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.array(values, dtype=np.float32, order="C")
    if values.dtype.itemsize == 8:
        large = np.isinf(narrow) & np.isfinite(values)
        if large.any():
            row, column = np.argwhere(large)[0]
            raise DataError(
                f"{source}: row {row}, column {column}: {values[row, column]:g} is too large for float32; "
                "scale the rows"
            )
        lost = np.flatnonzero((values != 0).any(axis=1) & (narrow == 0).all(axis=1))
        if lost.size:
            raise DataError(
                f"{source}: row {lost[0]}: every number is too small for float32, such as "
                f"{np.abs(values[lost[0]]).max():g}; scale the rows"
            )
    return narrow


def as_int64(values: Any, key: str, source: str) -> np.ndarray:
    """Return integers of any width as int64; refuse any other type."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise DataError(f"{source}: key {key!r} must hold integers, got {array.dtype}")
    return array.astype(np.int64)


def _check_column(values: np.ndarray, key: str, num_rows: int, source: str) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.shape != (num_rows,):
        got = f"{getattr(values, 'dtype', type(values).__name__)} of shape {np.shape(values)}"
        raise DataError(f"{source}: key {key!r} must be int64 of shape ({num_rows},), got {got}")


def _check_range(values: np.ndarray, key: str, low: int, high: int | None, source: str) -> None:
    bad = np.flatnonzero((values < low) | (values > high if high is not None else False))
    if bad.size:
        expected = f">= {low}" if high is None else f"in {low}..{high}"
        raise DataError(f"{source}: row {bad[0]}, key {key!r}: expected {expected}, got {values[bad[0]]}")
