"""Image sets by name: digits, Fashion-MNIST, MNIST, CIFAR-10, emoji; and whatever a path holds."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from stratcore.data.errors import DataError
from stratcore.data.image_files import (
    holds_cifar10,
    holds_idx,
    load_cifar10_binary,
    load_idx,
    load_image_folder,
    read_picture,
)
from stratcore.data.images import ImageSet, ImageTable
from stratcore.data.registry import FASHION_NAMES, IMAGE_SETS

EMOJI_SIZE = 32
_EMOJI_STYLES = ("google", "twitter")
_DIGITS = tuple("0123456789")


def load_images(source: str | Path) -> ImageSet:
    """Images by name, or of a path.

    Args:
        source: `digits` (1,797 of 8 x 8, in scikit-learn); `fashion_mnist`, `mnist`, `cifar10` (from the hub through
            `datasets`; `fashion_mnist` first from where Debian's dataset-fashion-mnist puts it); or a path: a folder
            with idx files, the binary CIFAR-10 archive or a folder with its .bin files, an npm package of emoji
            (`emoji-datasource-google-16.0.0.tgz`), or a folder of pictures.

    Returns:
        ImageSet; `test` is None where the source keeps no test images apart.

    Raises:
        DataError: unknown name, a set that is not to be had, or a bad file, named.
    """
    name = str(source)
    if name == "digits":
        return _digits()
    if name in IMAGE_SETS:
        facts = IMAGE_SETS[name]
        if facts.folder is not None and holds_idx(Path(facts.folder)):
            return load_idx(Path(facts.folder), facts.label_names)
        return _of_hub(name)
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(("digits", *IMAGE_SETS))
        raise DataError(f"{name}: no such file or folder, and none of the sets {known}")
    if path.name.startswith("emoji-datasource-"):
        return ImageSet(load_emoji(path))
    if holds_cifar10(path):
        return load_cifar10_binary(path)
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder or an archive of images, got a file")
    if holds_idx(path):
        return load_idx(path, FASHION_NAMES if "fashion" in path.name.lower() else _DIGITS)
    return load_image_folder(path)


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageSet(ImageTable(images, found.target.astype(np.int64), _DIGITS, "digits"))


def _of_hub(name: str) -> ImageSet:
    from datasets import load_dataset

    facts = IMAGE_SETS[name]
    try:
        parts = {part: load_dataset(facts.hub_name, split=part) for part in ("train", "test")}
    except Exception as error:  # the client raises a different type for each way of being offline
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"image set {name!r}: {facts.hub_name!r} is not to be had from the hub ({first_line}); go online "
            "once, or give a folder of idx files, the binary CIFAR-10 archive or a folder of pictures"
        ) from error
    tables = [
        _hub_table(f"image set {name!r}, {part}", rows, facts.image_column, facts.label_names)
        for part, rows in parts.items()
    ]
    return ImageSet(*tables)


def _hub_table(where: str, rows: Any, column: str, names: tuple[str, ...]) -> ImageTable:
    for needed in (column, "label"):
        if needed not in rows.column_names:
            raise DataError(f"{where}: column {needed!r} is missing beside {rows.column_names}")
    images = np.stack([np.asarray(picture, np.uint8) for picture in rows[column]])
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return ImageTable(np.ascontiguousarray(images), np.asarray(rows["label"], np.int64), names, where)


def load_emoji(archive: str | Path, *, skin_tones: bool = True) -> ImageTable:
    """Emoji of one style, 32 x 32 RGB on white, labelled with their category.

    Args:
        archive: npm package emoji-datasource-google or -twitter.
        skin_tones: variants of an emoji too; they share its `item`.

    Returns:
        ImageTable whose `item` is the emoji, the same number in both styles: its place among the sorted code points.

    Raises:
        DataError: another package, or one that lacks the sheet or its list.
    """
    path = Path(archive)
    style = next((name for name in _EMOJI_STYLES if name in path.name), None)
    if style is None:
        raise DataError(f"{path}: expected a package of one of the styles {', '.join(_EMOJI_STYLES)}")
    sheet_name = f"package/img/{style}/sheets/{EMOJI_SIZE}.png"
    found = _emoji_members(path, ("package/emoji.json", sheet_name))
    try:
        entries = json.loads(found["package/emoji.json"])
    except ValueError as error:
        raise DataError(f"{path}: package/emoji.json is not JSON ({error})") from error
    sheet = read_picture(io.BytesIO(found[sheet_name]), f"{path}: {sheet_name}")
    number = {code: index for index, code in enumerate(sorted(entry["unified"] for entry in entries))}
    images, categories, items = [], [], []
    for entry in entries:
        if entry["category"] == "Component":  # bare hair and skin: five, no emoji
            continue
        variants = entry.get("skin_variations", {}).values() if skin_tones else ()
        for picture in (entry, *variants):
            if not picture.get(f"has_img_{style}"):
                continue
            x, y = (picture[key] * (EMOJI_SIZE + 2) + 1 for key in ("sheet_x", "sheet_y"))
            images.append(sheet[:, y : y + EMOJI_SIZE, x : x + EMOJI_SIZE])
            categories.append(entry["category"])
            items.append(number[entry["unified"]])
    names = tuple(sorted({entry["category"] for entry in entries} - {"Component"}))
    label = np.array([names.index(category) for category in categories], np.int64)
    return ImageTable(np.stack(images), label, names, str(path), np.array(items, np.int64))


def _emoji_members(path: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name in names and member.isfile():
                    file = archive.extractfile(member)
                    found[member.name] = b"" if file is None else file.read()
                if len(found) == len(names):
                    return found
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path}: not a readable archive ({error})") from error
    raise DataError(f"{path}: holds no {next(name for name in names if name not in found)}")
