"""Files of images: idx, the binary CIFAR-10 archive, folders of pictures. Nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.images import ImageSet, ImageTable
from stratcore.data.registry import CIFAR10_NAMES

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TEST_FOLDERS = ("test", "val", "validation")
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR10_FILES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_MAX_BYTES = 2**32
_READ_ERRORS = (OSError, EOFError, zlib.error, tarfile.TarError)


# ---- idx


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Unsigned bytes of an idx file, plain or .gz, with the number of axes expected.

    Raises:
        DataError: not an idx file of unsigned bytes, another number of axes, too few or too many bytes.
    """
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            return _idx(path, file, axes)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable idx file ({error or type(error).__name__})") from error


def _idx(path: Path, file: IO[bytes], axes: int) -> np.ndarray:
    magic = file.read(4)
    if magic != bytes([0, 0, 8, axes]):
        raise DataError(
            f"{path}: expected an idx file of bytes with {axes} axes (it begins with "
            f"{bytes([0, 0, 8, axes]).hex()}), got {magic.hex() or 'an empty file'}"
        )
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise DataError(f"{path}: cut short in its header")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(0, 4 * axes, 4)]
    size = 1
    for length in shape:
        size *= length
    if size > _MAX_BYTES:
        raise DataError(f"{path}: expected at most {_MAX_BYTES} bytes, its header promises {size}")
    data = file.read(size + 1)
    if len(data) != size:
        got = "more" if len(data) > size else str(len(data))
        raise DataError(f"{path}: expected {size} bytes for the shape {shape} of its header, got {got}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def load_idx(folder: Path, label_names: tuple[str, ...]) -> ImageSet:
    """The four files of MNIST and its like: {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or .gz."""

    def table(stem: str) -> ImageTable:
        images_path, labels_path = (
            _plain_or_packed(folder / f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        )
        images, label = read_idx(images_path, 3), read_idx(labels_path, 1)
        if len(images) != len(label):
            raise DataError(
                f"{labels_path}: expected {len(images)} labels as {images_path.name} has images, got {len(label)}"
            )
        bad = np.flatnonzero(label >= len(label_names))
        if bad.size:
            raise DataError(
                f"{labels_path}: label {bad[0]}: expected one in [0, {len(label_names) - 1}], got {label[bad[0]]}"
            )
        return ImageTable(images[:, None], label.astype(np.int64), label_names, str(images_path))

    return ImageSet(table("train"), table("t10k"))


def holds_idx(folder: Path) -> bool:
    """Whether a folder has a file of the names that `load_idx` reads."""
    return any(folder.glob("*-images-idx3-ubyte*"))


def _plain_or_packed(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


# ---- CIFAR-10


def load_cifar10_binary(path: Path) -> ImageSet:
    """CIFAR-10 from `cifar-10-binary.tar.gz` or a folder with its .bin files; the pickled archive is refused."""
    if path.is_dir():
        contents = {name: _bytes(path / name) for name in _CIFAR10_FILES}
    else:
        contents = _members(path)
    tables = {name: _cifar10_table(f"{path}: {name}", data) for name, data in contents.items()}
    train = [tables[name] for name in _CIFAR10_FILES[:-1]]
    joined = ImageTable(
        np.concatenate([table.images for table in train]),
        np.concatenate([table.label for table in train]),
        CIFAR10_NAMES,
        str(path),
    )
    return ImageSet(joined, tables[_CIFAR10_FILES[-1]])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _members(path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in ("data_batch_1", "batches.meta"):
                    raise DataError(
                        f"{path}: holds pickles, which can run code; expected {CIFAR10_ARCHIVE}, the binary version"
                    )
                if name not in _CIFAR10_FILES or not member.isfile() or member.size > _MAX_BYTES:
                    continue
                file = archive.extractfile(member)
                contents[name] = b"" if file is None else file.read()
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable archive ({error})") from error
    missing = [name for name in _CIFAR10_FILES if name not in contents]
    if missing:
        raise DataError(f"{path}: holds no {missing[0]}")
    return {name: contents[name] for name in _CIFAR10_FILES}


def _cifar10_table(where: str, data: bytes) -> ImageTable:
    if not data or len(data) % _CIFAR10_RECORD:
        raise DataError(f"{where}: expected records of {_CIFAR10_RECORD} bytes, got {len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR10_RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).copy()
    return ImageTable(images, records[:, 0].astype(np.int64), CIFAR10_NAMES, where)


def holds_cifar10(path: Path) -> bool:
    """Whether a path is an archive by its name, or a folder with a .bin file or a pickle of CIFAR-10."""
    if path.is_dir():
        if (path / "data_batch_1").is_file():
            raise DataError(
                f"{path}: holds pickles, which can run code; expected the files of {CIFAR10_ARCHIVE}"
            )
        return (path / _CIFAR10_FILES[0]).is_file()
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))


# ---- folders of pictures


def load_image_folder(folder: Path) -> ImageSet:
    """Pictures CLASS/NAME.png, or train/CLASS/NAME.png and test/CLASS/NAME.png; grey or RGB, all of one size.

    Raises:
        DataError: no class, an empty class, a picture that cannot be read or differs in size or color, by its name.
    """
    if (folder / "train").is_dir():
        train = _folder_table(folder / "train", None)
        test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
        return ImageSet(train, None if test is None else _folder_table(test, train))
    return ImageSet(_folder_table(folder, None))


def _folder_table(folder: Path, like: ImageTable | None) -> ImageTable:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder}: expected a folder for each class, got none")
    names = tuple(classes) if like is None else like.label_names
    strange = [name for name in classes if name not in names]
    if strange:
        raise DataError(f"{folder / strange[0]}: expected a class of train ({', '.join(names)})")
    paths, label = [], []
    for name in classes:
        own = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in PICTURES)
        if not own:
            raise DataError(f"{folder / name}: expected pictures ({', '.join(PICTURES)}), got none")
        paths += own
        label += [names.index(name)] * len(own)
    images = np.stack(list(_alike(paths, None if like is None else like.shape)))
    return ImageTable(images, np.array(label, np.int64), names, str(folder))


def _alike(paths: list[Path], shape: tuple[int, ...] | None) -> Iterator[np.ndarray]:
    """Pictures of one shape, that of the first if none is given."""
    words = {1: "grey", 3: "RGB"}
    for path in paths:
        image = read_picture(path)
        shape = image.shape if shape is None else shape
        if image.shape != shape:
            expected, got = (f"{words[s[0]]}, {s[2]} x {s[1]} pixels" for s in (shape, image.shape))
            raise DataError(f"{path}: expected {expected}, as the pictures before, got {got}")
        yield image


def read_picture(source: Path | IO[bytes], name: str = "") -> np.ndarray:
    """One picture, [1, H, W] if it is grey and [3, H, W] else, uint8; transparent parts are white.

    Raises:
        DataError: Pillow is not installed, or the picture cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{name or source}: Pillow reads pictures and is not installed: pip install pillow"
        ) from error
    try:
        with Image.open(source) as picture:
            if picture.mode in ("1", "L"):
                return np.asarray(picture.convert("L"))[None].copy()
            if picture.mode == "RGB":
                return np.asarray(picture).transpose(2, 0, 1).copy()
            whole = picture.convert("RGBA")
        page = Image.new("RGBA", whole.size, (255, 255, 255, 255))
        page.alpha_composite(whole)
        return np.asarray(page.convert("RGB")).transpose(2, 0, 1).copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name or source}: not a readable picture ({error})") from error
