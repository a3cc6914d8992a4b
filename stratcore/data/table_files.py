"""Array files: `.npy` and `.safetensors`, checked against their headers before any value is read."""

from __future__ import annotations

import json
import tokenize
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.table import EmbeddingTable, check_shape

FLOAT_TYPES = ("F16", "BF16", "F32", "F64")
INTEGER_TYPES = ("I8", "I16", "I32", "I64", "U8", "U16", "U32")
# NumPy parses the header as Python literals, so a damaged one fails in any of these ways.
HEADER_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def read_npy(path: Path) -> EmbeddingTable:
    """Read a 2-D array of floats; the header is checked against the size of the file first.

    An .npy file has no place for domains: a file `NAME.domains.txt` beside `NAME.npy`, one domain a line, names them.

    Raises:
        DataError: not an .npy file, wrong type or shape, truncated, bytes after the array, rows not finite, or
            another number of domains than of rows.
    """
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read_header(file)
        except KeyError:
            raise DataError(f"{path}: .npy format version {version} is not for plain arrays") from None
        except HEADER_ERRORS as error:
            raise DataError(f"{path}: not a readable .npy file ({error})") from None
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise DataError(f"{path}: embeddings must be float16, float32 or float64, got {dtype}")
        check_shape(shape, str(path))
        expected, got = prod(shape) * dtype.itemsize, path.stat().st_size - file.tell()
        if got != expected:
            state = "truncated" if got < expected else "too long"
            raise DataError(
                f"{path}: {state}: {shape} {dtype} values take {expected} bytes, the file holds {got}"
            )
        flat = np.fromfile(file, dtype=dtype, count=prod(shape))
    values = flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
    domains = path.with_suffix(".domains.txt")
    if not domains.is_file():
        return EmbeddingTable.from_arrays(values, source=str(path))
    lines = [line.strip() for line in domains.read_text(encoding="utf-8").splitlines()]
    if len(lines) != len(values) or "" in lines:
        filled = sum(bool(line) for line in lines)
        raise DataError(f"{domains}: expected one domain a line for {len(values)} rows, got {filled}")
    names = tuple(dict.fromkeys(lines))
    domain = np.array([names.index(line) for line in lines], np.int64)
    return EmbeddingTable.from_arrays(values, domain, names, source=str(path))


def read_safetensors(path: Path) -> EmbeddingTable:
    """Read `embeddings` and the optional `domain`, `label` and `token_count`.

    Raises:
        DataError: unreadable or truncated file, missing key, wrong type or shape, bad `domain_names`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
            if "embeddings" not in keys:
                raise DataError(f"{path}: key 'embeddings' is missing, the file holds {sorted(keys)[:8]}")
            values = _read_floats(path, file)
            columns = {key: _read_integers(path, file, key, len(values)) for key in _columns(keys)}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from None
    names = _domain_names(path, metadata["domain_names"]) if "domain_names" in metadata else None
    return EmbeddingTable.from_arrays(values, domain_names=names, source=str(path), **columns)


def save_table(table: EmbeddingTable, path: str | Path, half: bool = False) -> None:
    """Write a table as safetensors, each column in the narrowest integer type that holds it.

    Args:
        table: the rows.
        path: file to write.
        half: store embeddings as float16 (relative error up to 2^-11).

    Raises:
        DataError: `half` and a value outside float16.

    Determinism: the same table gives the same bytes.
    """
    from safetensors.numpy import save

    values = table.embeddings
    if half:
        largest = float(np.abs(values).max())
        if largest > float(np.finfo(np.float16).max):
            raise DataError(f"{table.source}: {largest:g} does not fit float16, save with half=False")
        values = values.astype(np.float16)
    arrays = {"embeddings": np.ascontiguousarray(values)}
    for key in _columns(["domain", "label", "token_count"]):
        column = getattr(table, key)
        smallest = next(
            t for t in (np.int8, np.int16, np.int32, np.int64) if column.max(initial=0) <= np.iinfo(t).max
        )
        arrays[key] = column.astype(smallest)
    # One metadata key and no more: safetensors writes several in an order that changes from run to run.
    header = {"domain_names": json.dumps(list(table.domain_names))}
    Path(path).write_bytes(save(arrays, metadata=header))


def _columns(keys: list[str]) -> list[str]:
    return [key for key in ("domain", "label", "token_count") if key in keys]


def _read_floats(path: Path, file: Any) -> np.ndarray:
    header = file.get_slice("embeddings")
    kind = header.get_dtype()
    if kind not in FLOAT_TYPES:
        raise DataError(f"{path}: key 'embeddings' must be one of {', '.join(FLOAT_TYPES)}, got {kind}")
    check_shape(tuple(header.get_shape()), f"{path}: key 'embeddings'")
    if kind != "BF16":
        return file.get_tensor("embeddings")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as torch_file:  # numpy has no bfloat16
        return torch_file.get_tensor("embeddings").float().numpy()


def _read_integers(path: Path, file: Any, key: str, num_rows: int) -> np.ndarray:
    header = file.get_slice(key)
    kind, shape = header.get_dtype(), tuple(header.get_shape())
    if kind not in INTEGER_TYPES or shape != (num_rows,):
        raise DataError(
            f"{path}: key {key!r} must hold integers of shape ({num_rows},), got {kind} of shape {shape}"
        )
    return file.get_tensor(key)


def _domain_names(path: Path, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise DataError(
            f"{path}: metadata key 'domain_names' must be a JSON list of strings, got {text[:60]!r}"
        )
    return tuple(names)
