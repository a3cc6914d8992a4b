from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_tests.data import image_cases as cases
from stratcore.data import DataError, load_emoji, load_images
from stratcore.data.registry import IMAGE_SETS


def test_digits() -> None:
    found = load_images("digits").train
    assert found.images.shape == (1797, 1, 8, 8) and found.images.max() == 255
    assert np.bincount(found.label).sum() == 1797 and found.label_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fashion", "fashion: no such file or folder, and none of the sets digits, fashion_mnist"),
        ("a.png", "a.png: expected a folder or an archive of images, got a file"),
    ],
)
def test_unknown_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(cases.png(np.zeros((4, 4), np.uint8)))
    with pytest.raises(DataError, match=words):
        load_images(name)


class Rows:
    """As much of a set of `datasets` as is read."""

    def __init__(self, **columns: list[Any]) -> None:
        self._columns, self.column_names = columns, list(columns)

    def __getitem__(self, name: str) -> list[Any]:
        return self._columns[name]


def test_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    asked = []

    def load(name: str, split: str) -> Rows:
        asked.append((name, split))
        return Rows(img=pictures, label=[3, 9])

    monkeypatch.setattr("datasets.load_dataset", load)
    found = load_images("cifar10")
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]
    assert np.array_equal(found.train.images, pixels.transpose(0, 3, 1, 2))
    assert found.test.label.tolist() == [3, 9] and found.train.label_names[3] == "cat"
    with pytest.raises(DataError, match="'mnist', train: column 'image' is missing beside"):
        load_images("mnist")


def test_no_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> None:
        raise ConnectionError("offline\nand more")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError, match=r"'uoft-cs/cifar10' is not to be had from the hub \(offline\)"):
        load_images("cifar10")
    assert all(len(facts.label_names) == 10 for facts in IMAGE_SETS.values())


def test_emoji(tmp_path: Path) -> None:
    found = load_images(cases.write_emoji(tmp_path)).train
    assert found.label_names == ("Faces", "Tools") and found.label.tolist() == [0, 0, 1]
    assert found.item.tolist() == [1, 1, 0]  # A, B, C, D: the variant goes with its face
    assert found.images.shape == (3, 3, 32, 32)
    assert found.images[1, :, 16, 16].tolist() == [50, 0, 200]  # second row, first column of the sheet
    assert found.images[1, :, 0, 0].tolist() == [255, 255, 255]
    twitter = load_emoji(cases.write_emoji(tmp_path, "twitter"), skin_tones=False)
    assert twitter.item.tolist() == [1, 0]


def test_bad_emoji_packages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a package of one of the styles google, twitter"):
        load_emoji(tmp_path / "emoji-datasource-other.tgz")
    empty = cases.write_tar(tmp_path / "emoji-datasource-google.tgz", {"package/emoji.json": b"[]"})
    with pytest.raises(DataError, match="holds no package/img/google/sheets/32.png"):
        load_images(empty)
    empty.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable archive"):
        load_images(empty)
