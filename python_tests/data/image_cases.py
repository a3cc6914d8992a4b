"""Tiny files of images that tests write themselves."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from stratcore.data import ImageTable


def table(count: int = 40, classes: int = 4, channels: int = 1, size: int = 8, seed: int = 0) -> ImageTable:
    """Noise with bright rows, columns, checks or all over: up to four classes, easily told apart."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % classes
    images = rng.integers(0, 60, (count, channels, size, size), dtype=np.uint8)
    y, x = np.mgrid[:size, :size]
    patterns = np.stack([y % 2, x % 2, (x + y) % 2, np.ones_like(x)]).astype(np.uint8)
    images += 180 * patterns[label][:, None]
    return ImageTable(images, label.astype(np.int64), tuple(f"class {i}" for i in range(classes)), "images")


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.tobytes()


def write_idx(folder: Path, packed: bool = False, count: int = 12, **changes: bytes) -> Path:
    """The four files of MNIST; `changes`: contents by name, with _ for -."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, rows in (("train", count), ("t10k", 4)):
        images = rng.integers(0, 256, (rows, 6, 5), dtype=np.uint8)
        for name, values in (
            ("images-idx3-ubyte", images),
            ("labels-idx1-ubyte", np.arange(rows, dtype=np.uint8) % 3),
        ):
            content = changes.get(f"{stem}_{name}".replace("-", "_"), idx(values))
            path = folder / f"{stem}-{name}{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    """[H, W] or [H, W, C] as a picture."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "PNG") if mode else Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    for name, pixels in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def cifar_records(count: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records.tobytes()


def write_emoji(folder: Path, style: str = "google") -> Path:
    """A sheet of 2 x 2 cells: a face, its variant, a tool, and a component."""
    sheet = np.zeros((68, 68, 4), np.uint8)
    for index, (x, y) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        cell = sheet[34 * y + 1 : 34 * y + 33, 34 * x + 1 : 34 * x + 33]
        cell[4:28, 4:28] = (50 * index, 0, 200, 255)
    drawn = {f"has_img_{style}": True}
    entries = [
        {
            "unified": "B", "category": "Faces", "sheet_x": 0, "sheet_y": 0, **drawn,
            "skin_variations": {"x": {"unified": "B-x", "sheet_x": 0, "sheet_y": 1, **drawn}},
        },
        {"unified": "A", "category": "Tools", "sheet_x": 1, "sheet_y": 0, **drawn},
        {"unified": "C", "category": "Component", "sheet_x": 1, "sheet_y": 1, **drawn},
        {"unified": "D", "category": "Tools", "sheet_x": 1, "sheet_y": 1, f"has_img_{style}": False},
    ]  # fmt: skip
    return write_tar(
        folder / f"emoji-datasource-{style}-1.0.0.tgz",
        {
            "package/emoji.json": json.dumps(entries).encode(),
            f"package/img/{style}/sheets/32.png": png(sheet),
        },
    )
