from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratcore.data.errors import DataError
from stratcore.data.text_files import text_columns


def test_only_named_columns_are_read(tmp_path: Path) -> None:
    csv, jsonl, parquet, txt = (tmp_path / f"a.{kind}" for kind in ("csv", "jsonl", "parquet", "txt"))
    csv.write_text('text,extra,label\n"one, two",x,bad\nthree,y,good\n')
    jsonl.write_text(
        '{"text": "one, two", "extra": "x", "label": "bad"}\n\n{"label": "good", "text": "three"}\n'
    )
    pq.write_table(
        pa.table({"text": ["one, two", "three"], "extra": [1, 2], "label": ["bad", "good"]}), parquet
    )
    txt.write_text("one, two\n\nthree\n")
    wanted = {"text": ["one, two", "three"], "label": ["bad", "good"]}
    for path in (csv, jsonl, parquet):
        assert text_columns(path, ("text", "label", "absent")) == wanted
    assert text_columns(txt) == {"text": wanted["text"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na\n", "line 2: expected 2 columns, got 1"),
        ("a.csv", "text\n", "no row below the header"),
        ("a.csv", "words\na\n", "column 'text' is missing beside ['words']"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: key 'label' is missing"),
        ("a.jsonl", "[1]\n", "line 1: expected an object, got list"),
        ("a.parquet", "no parquet", "not a readable parquet file"),
        ("a.txt", " \n\n", "every line is blank"),
        ("a.doc", "words", "expected a file ending in .txt, .csv, .jsonl, .parquet"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as found:
        text_columns(path)
    assert str(found.value).startswith(f"{path}: ") and message in str(found.value)


def test_missing_file_and_bad_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no_such"):
        text_columns(tmp_path / "no_such.csv")
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(DataError, match="byte 2: not UTF-8"):
        text_columns(tmp_path / "a.txt")
