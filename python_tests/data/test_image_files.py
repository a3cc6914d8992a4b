from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from python_tests.data import image_cases as cases
from stratcore.data import DataError, load_images
from stratcore.data.image_files import load_cifar10_binary, read_idx, read_picture

GREY = np.arange(30, dtype=np.uint8).reshape(6, 5)
RGB = np.arange(90, dtype=np.uint8).reshape(6, 5, 3)
LABELS = np.arange(12, dtype=np.uint8) % 3


# ---- idx


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    found = load_images(cases.write_idx(tmp_path / "mnist", packed))
    assert found.train.shape == (1, 6, 5) and found.train.label.tolist() == LABELS.tolist()
    expected = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
    assert np.array_equal(found.train.images[:, 0], expected)
    assert found.train.images.flags.writeable  # torch warns of arrays that are not
    assert found.test.num_images == 4 and found.train.label_names == tuple("0123456789")
    fashion = load_images(cases.write_idx(tmp_path / "fashion-mnist", packed))
    assert fashion.train.label_names[9] == "ankle boot"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "train-labels-idx1-ubyte: expected an idx file of bytes with 1 axes .*got an empty file"),
        (b"\x00\x00\x0d\x01\x00", r"begins with 00000801\), got 00000d01"),
        (b"\x00\x00\x08\x01\x00", "cut short in its header"),
        (
            cases.idx(LABELS)[:-1],
            r"expected 12 bytes for the shape \[12\] of its header, got 11",
        ),
        (cases.idx(LABELS) + b"\x00", "got more"),
        (b"\x00\x00\x08\x01\xff\xff\xff\xff", "got 0"),
        (cases.idx(LABELS[:-1]), "expected 12 labels as train-images-idx3-ubyte has images, got 11"),
        (cases.idx(np.r_[LABELS[:-1], np.uint8(10)]), r"label 11: expected one in \[0, 9\], got 10"),
    ],
)
def test_a_bad_idx_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        load_images(cases.write_idx(tmp_path / "a", train_labels_idx1_ubyte=content))
    assert "\n" not in str(error.value) and "labels-idx1-ubyte" in str(error.value)


def test_idx_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = cases.write_idx(tmp_path / "a", packed=True)
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: not a readable idx file"):
        load_images(folder)
    packed.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="not a readable idx file"):
        load_images(folder)
    packed.unlink()
    with pytest.raises(DataError, match="train-images-idx3-ubyte: no such file"):
        load_images(folder)
    huge = tmp_path / "huge"
    huge.write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12)
    with pytest.raises(DataError, match="huge: expected at most"):
        read_idx(huge, 3)


# ---- CIFAR-10


def batches(folder: str = "cifar-10-batches-bin/") -> dict[str, bytes]:
    files = {f"{folder}data_batch_{index}.bin": cases.cifar_records(3, index) for index in range(1, 6)}
    return files | {f"{folder}test_batch.bin": cases.cifar_records(4)}


def test_cifar10_archive_and_folder(tmp_path: Path) -> None:
    found = load_images(cases.write_tar(tmp_path / "cifar-10-binary.tar.gz", batches()))
    assert found.train.images.shape == (15, 3, 32, 32) and found.test.num_images == 4
    assert found.test.images.flags.writeable
    record = np.frombuffer(cases.cifar_records(3, 2), np.uint8).reshape(3, 3073)[1]
    assert np.array_equal(found.train.images[4].reshape(-1), record[1:])
    assert found.train.label[4] == record[0] == 1 and found.train.label_names[1] == "automobile"
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, content in batches("").items():
        (folder / name).write_bytes(content)
    assert np.array_equal(load_images(folder).train.images, found.train.images)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cifar-10-batches-py/data_batch_1": b"\x80"}, "holds pickles, which can run code"),
        ({"other": b"1"}, "holds no data_batch_1.bin"),
        (
            batches() | {"x/data_batch_2.bin": b"123"},
            "data_batch_2.bin: expected records of 3073 bytes, got 3 bytes",
        ),
        (
            batches() | {"x/data_batch_3.bin": b"\x0b" * 3073},
            r"data_batch_3.bin: image 0: expected a label in \[0, 9\], got 11",
        ),
    ],
)
def test_a_bad_cifar10_archive_is_named(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_cifar10_binary(cases.write_tar(tmp_path / "cifar.tar.gz", files))


def test_pickles_and_broken_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80")
    with pytest.raises(DataError, match="holds pickles"):
        load_images(tmp_path)
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match=r"cut\.tar\.gz: not a readable archive"):
        load_images(tmp_path / "cut.tar.gz")


# ---- pictures


def test_image_folder(tmp_path: Path) -> None:
    flat = load_images(cases.write_pictures(tmp_path / "flat", {"b/1.png": GREY, "a/1.png": GREY + 1}))
    assert flat.train.label_names == ("a", "b") and flat.test is None
    assert np.array_equal(flat.train.images[1, 0], GREY) and flat.train.label.tolist() == [0, 1]
    pictures = {"train/b/1.png": RGB, "train/a/1.png": RGB + 1, "test/b/1.png": RGB + 2}
    parted = load_images(cases.write_pictures(tmp_path / "parted", pictures))
    assert np.array_equal(parted.train.images[1], RGB.transpose(2, 0, 1))
    assert parted.test.label.tolist() == [1] and parted.test.label_names == ("a", "b")


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ({"a/1.png": RGB, "b/1.png": GREY}, r"b/1.png: expected RGB, 5 x 6 pixels.* got grey, 5 x 6"),
        ({"a/1.png": RGB, "b/1.png": RGB[:4]}, r"b/1.png: expected RGB, 5 x 6 .*got RGB, 5 x 4 pixels"),
        (
            {"train/a/1.png": RGB, "train/b/1.png": RGB, "test/c/1.png": RGB},
            r"test/c: expected a class of train \(a, b\)",
        ),
    ],
)
def test_a_bad_picture_is_named(tmp_path: Path, pictures: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_images(cases.write_pictures(tmp_path, pictures))


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder for each class, got none"):
        load_images(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"a: expected pictures \(.png"):
        load_images(tmp_path)
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a/1\.png: not a readable picture"):
        load_images(tmp_path)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 1, 4), np.uint8)
    pixels[1] = (10, 20, 30, 255)
    (tmp_path / "1.png").write_bytes(cases.png(pixels))
    assert read_picture(tmp_path / "1.png")[:, :, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
