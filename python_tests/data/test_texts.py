from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratcore.data.errors import DataError
from stratcore.data.registry import TEXT_SETS
from stratcore.data.texts import TextTable, join_texts, load_texts


def make_set(name: str, rows: int = 200) -> datasets.Dataset:
    """A label-sorted set with the columns of the real one."""
    facts = TEXT_SETS[name]
    label = np.sort(np.arange(rows) % len(facts.label_names))
    return datasets.Dataset.from_dict(
        {facts.label_column: label.tolist(), facts.text_column: [f"{name} text {i}" for i in range(rows)]}
    )


@pytest.fixture
def hub_sets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []
    names = {(facts.hub_name, facts.config): name for name, facts in TEXT_SETS.items()}

    def load(path: str, config: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((path, config, split))
        return make_set(names[path, config])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def error_of(*arguments: Any, **keywords: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_texts(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_six_sets_by_name(hub_sets: list[tuple[Any, ...]]) -> None:
    tables = [load_texts(name, rows=60) for name in TEXT_SETS]
    assert hub_sets == [
        ("stanfordnlp/imdb", None, "train"),
        ("cornell-movie-review-data/rotten_tomatoes", None, "train"),
        ("fancyzhx/amazon_polarity", None, "train"),
        ("nyu-mll/glue", "sst2", "train"),
        ("cardiffnlp/tweet_eval", "sentiment", "train"),
        ("fancyzhx/ag_news", None, "train"),
    ]
    joined = join_texts(tables)
    assert joined.num_rows == 360 and joined.domain_names == tuple(TEXT_SETS)
    assert np.bincount(joined.domain).tolist() == [60] * 6
    # Two-way sentiment is one task over four sets; three-way sentiment and topics are others.
    by_domain = [set(joined.task_labels()[joined.domain == i].tolist()) for i in range(6)]
    assert by_domain == [{0, 1}] * 4 + [{2, 3, 4}, {5, 6, 7, 8}]
    assert set(joined.label[joined.domain == 5].tolist()) == {0, 1, 2, 3}


def test_shuffled_before_the_first_rows_are_taken(hub_sets: list[tuple[Any, ...]]) -> None:
    first = load_texts("imdb", rows=50, seed=1)
    assert 15 <= first.label.sum() <= 35, "the first rows of the file hold one label only (artefact A4)"
    assert all(text == f"imdb text {int(text.split()[-1])}" for text in first.texts)
    labels = {int(text.split()[-1]): label for text, label in zip(first.texts, first.label, strict=True)}
    assert all(label == (i >= 100) for i, label in labels.items())
    assert load_texts("imdb", rows=50, seed=1).texts == first.texts
    assert load_texts("imdb", rows=50, seed=2).texts != first.texts
    assert load_texts("imdb", rows=20, seed=1).texts == first.texts[:20]


def test_offline_and_wrong_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert error_of("imdb") == (
        "text set 'imdb': 'stanfordnlp/imdb' is not to be had from the hub (Couldn't reach the hub); "
        "go online once, or give a local .txt, .csv, .jsonl or .parquet file"
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: make_set("sst2"))
    assert error_of("imdb") == "text set 'imdb': column 'text' is missing beside ['label', 'sentence']"
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: make_set("ag_news"))
    assert "label 2 is not one of ('negative', 'positive')" in error_of("imdb") or "label 3" in error_of(
        "imdb"
    )
    assert error_of("ag_news", rows=201) == "text set 'ag_news': 201 rows are wanted, 200 are there"
    assert error_of("ag_news", rows=0) == "ag_news: rows must be at least 1, got 0"


ROWS = [
    {"text": 'good, "really"', "label": "pos", "domain": "film"},
    {"text": "bad\u2028line", "label": "neg", "domain": "film"},
    {"text": "goal", "label": "sports", "domain": "news"},
    {"text": "who knows", "label": None, "domain": "news"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        cells = [list(rows[0])] + [["" if v is None else v for v in row.values()] for row in rows]
        quoted = [[f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in line] for line in cells]
        path.write_text("\r\n".join(",".join(line) for line in quoted), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_local_files(tmp_path: Path, suffix: str) -> None:
    table = load_texts(write(tmp_path / f"mine{suffix}", ROWS))
    order = [table.texts.index(row["text"]) for row in ROWS]
    assert table.domain_names == ("film", "news")
    assert table.label_names == (("neg", "pos"), ("sports",))
    assert table.domain[order].tolist() == [0, 0, 1, 1]
    assert table.label[order].tolist() == [1, 0, 0, -1]
    assert table.task_labels()[order].tolist() == [1, 0, 2, -1]


def test_numbers_are_no_shared_task(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 2, "domain": "ab"[i // 2]} for i in range(4)]
    table = load_texts(write(tmp_path / "x.jsonl", rows))
    order = [table.texts.index(row["text"]) for row in rows]
    assert table.label[order].tolist() == [0, 1, 0, 1]
    assert table.task_labels()[order].tolist() == [0, 1, 2, 3]


def test_txt(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n\n two \r\nthree", encoding="utf-8")
    table = load_texts(path, rows=3)
    assert sorted(table.texts) == [" two ", "one", "three"]
    assert table.domain_names == ("notes",) and (table.label == -1).all() and table.label_names == ((),)
    assert load_texts(path, domain="mine").domain_names == ("mine",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "body\na\n", ": column 'text' is missing beside ['body']"),
        ("x.csv", "text,label\na\n", ": line 2: expected 2 columns, got 1"),
        ("x.csv", "text,text\na,b\n", ": duplicate column name 'text'"),
        ("x.csv", "text,label\n", ": no row below the header"),
        ("x.csv", "text,label\na,1\n ,0\n", ": row 1: the text is empty"),
        ("x.csv", "text,domain\na,\n", ": row 0, column 'domain': expected a name, got ''"),
        (
            "x.jsonl",
            '{"text": "a"}\n{"text": \n',
            ": line 2: not JSON (Expecting value: line 1 column 10 (char 9))",
        ),
        ("x.jsonl", '["a"]\n', ": line 1: expected an object, got list"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', ": line 2: key 'label' is missing"),
        ("x.jsonl", '{"text": 3}\n', ": row 0: expected a string, got int"),
        ("x.jsonl", '{"text": "a", "label": 0.5}\n', ": row 0, column 'label': expected a name, got 0.5"),
        ("x.txt", "\n \n", ": every line is blank"),
        ("x.txt", b"a\n\xff\n", ": byte 2: not UTF-8 (invalid start byte)"),
        ("x.txt", "", ": the file is empty (0 bytes)"),
        ("x.parquet", "PAR1", ": not a readable parquet file"),
    ],
)
def test_rejects_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert error_of(path).startswith(f"{path}{message}")


def test_rejects_names(tmp_path: Path) -> None:
    assert error_of("yelp").startswith("yelp: expected one of imdb, rotten_tomatoes, amazon_polarity, sst2, ")
    assert error_of(tmp_path / "no.txt") == f"{tmp_path / 'no.txt'}: no such file"


def test_rejects_tables() -> None:
    def table(**change: Any) -> TextTable:
        fields = {
            "texts": ("a", "b"),
            "domain": np.array([0, 0]),
            "domain_names": ("x",),
            "label": np.array([0, -1]),
            "label_names": (("yes",),),
            "source": "here",
        }
        return TextTable(**(fields | change))

    assert table().num_rows == 2
    for change, message in (
        ({"texts": ("a", "")}, "here: row 1: the text is empty"),
        ({"label": np.array([0, 1])}, "here: row 1: label 1 is not one of ('yes',)"),
        ({"label": np.array([0.0, 1.0])}, "here: key 'label' must be int64 of shape (2,)"),
        ({"domain": np.array([0, 1])}, "here: a domain index is outside 0..0"),
        ({"label_names": ()}, "here: expected label names for 1 domains, got 0"),
    ):
        with pytest.raises(DataError) as caught:
            table(**change)
        assert str(caught.value) == message
    with pytest.raises(DataError, match="duplicate name 'x'"):
        join_texts([table(), table()])
