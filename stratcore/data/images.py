"""Labelled images: the table that every image model starts from, its checks and its split.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stratcore.data.errors import DataError

LEAST_CLASSES = 2


@dataclass(frozen=True, eq=False)
class ImageTable:
    """Images of one size with the class of each.

    Args:
        images: [N, C, H, W] uint8, N >= 1, C 1 (grey) or 3 (RGB).
        label: [N] int64, index into `label_names`.
        label_names: different, non-empty names.
        source: where the images come from; error messages begin with it.
        item: [N] int64, the same number for images of one thing (variants of one emoji), which a split must not
            tear apart; None: every image is a thing of its own.

    Raises:
        DataError: one line that names the source and the first offending image.
    """

    images: np.ndarray
    label: np.ndarray
    label_names: tuple[str, ...]
    source: str
    item: np.ndarray | None = None

    def __post_init__(self) -> None:
        where, shape = self.source, self.images.shape
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(
                f"{where}: expected images [N, C, H, W] uint8, got {[*shape]} {self.images.dtype}"
            )
        if shape[0] == 0:
            raise DataError(f"{where}: holds no image")
        if shape[1] not in (1, 3) or min(shape[2:]) < 1:
            raise DataError(
                f"{where}: expected 1 or 3 channels and at least 1 x 1 pixels, got {[*shape[1:]]}"
            )
        names = self.label_names
        if not names or not all(names) or len(set(names)) != len(names):
            raise DataError(f"{where}: expected different, non-empty names of labels, got {list(names)}")
        if self.label.shape != shape[:1] or self.label.dtype != np.int64:
            raise DataError(
                f"{where}: expected {shape[0]} labels int64, got {[*self.label.shape]} {self.label.dtype}"
            )
        bad = np.flatnonzero((self.label < 0) | (self.label >= len(names)))
        if bad.size:
            raise DataError(
                f"{where}: image {bad[0]}: expected a label in [0, {len(names) - 1}], got {self.label[bad[0]]}"
            )
        if self.item is not None and (self.item.shape != shape[:1] or self.item.dtype != np.int64):
            raise DataError(
                f"{where}: expected {shape[0]} items int64, got {[*self.item.shape]} {self.item.dtype}"
            )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, rows: np.ndarray) -> ImageTable:
        """The images with these numbers, in this order."""
        return replace(
            self,
            images=self.images[rows],
            label=self.label[rows],
            item=None if self.item is None else self.item[rows],
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to learn from and, where the source keeps some apart, images to test on."""

    train: ImageTable
    test: ImageTable | None = None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        for name in ("shape", "label_names"):
            expected, got = getattr(self.train, name), getattr(self.test, name)
            if expected != got:
                raise DataError(f"{self.test.source}: expected {name} {expected} as in train, got {got}")


def adapted(table: ImageTable, channels: int, size: int) -> ImageTable:
    """Images in another form: grey by the luma of RGB, RGB by grey thrice, resized with antialiasing.

    Args:
        table: any images.
        channels: 1 or 3.
        size: height and width, pixels.
    """
    import torch
    from torch.nn.functional import interpolate

    images = torch.from_numpy(table.images).float()
    if images.shape[1] == 3 and channels == 1:
        images = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    elif images.shape[1] != channels:
        images = images.expand(-1, channels, -1, -1)
    if images.shape[2:] != (size, size):
        images = interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return replace(table, images=images.round().clamp(0, 255).to(torch.uint8).contiguous().numpy())


def require_images(table: ImageTable, *, channels: int, size: int, num_classes: int) -> None:
    """Refuse images that a model of square images cannot learn from.

    Args:
        table: to be checked.
        channels: that the model reads.
        size: height and width that the model reads.
        num_classes: that the model tells apart.

    Raises:
        DataError: grey for RGB or the other way round, another size, one class only, another number of classes.
    """
    found = table.shape
    kinds = {1: "grey", 3: "RGB"}
    if found[0] != channels:
        raise DataError(
            f"{table.source}: expected {kinds.get(channels, 'unknown')} images (model.channels = {channels}), "
            f"got {kinds[found[0]]} ones"
        )
    if found[1:] != (size, size):
        raise DataError(
            f"{table.source}: expected images of {size} x {size} pixels (model.image_size), "
            f"got {found[1]} x {found[2]}"
        )
    require_classes(table)
    if len(table.label_names) != num_classes:
        raise DataError(
            f"{table.source}: expected {num_classes} classes (model.num_classes), got {len(table.label_names)}"
        )


def require_classes(table: ImageTable) -> None:
    """Refuse images of one class only.

    Raises:
        DataError: one class.
    """
    present = np.unique(table.label)
    if len(present) < LEAST_CLASSES:
        raise DataError(
            f"{table.source}: expected at least {LEAST_CLASSES} classes, got only "
            f"{table.label_names[present[0]]!r}"
        )


def split_images(table: ImageTable, shares: Sequence[float], *, seed: int) -> list[np.ndarray]:
    """Row numbers of disjoint parts of a table, each with its share of every class; items are never torn apart.

    Args:
        table: N images.
        shares: of the parts, >= 0, together at most 1; rows beyond them are in no part.
        seed: of the draw.

    Returns:
        For each share the sorted row numbers, int64.

    Raises:
        DataError: a part of a share > 0 that gets no image.
    """
    if min(shares) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares: expected numbers >= 0 that sum to at most 1, got {list(shares)}")
    item = np.arange(table.num_images) if table.item is None else table.item
    _, first, group = np.unique(item, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    label = table.label[first[order]]
    part = np.full(len(first), -1)
    for name in np.unique(label):
        own = order[label == name]
        ends = np.floor(np.cumsum(shares) * len(own) + 0.5).astype(int)
        for index, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            part[own[begin:end]] = index
    rows = [np.flatnonzero(part[group] == index) for index in range(len(shares))]
    for index, (share, own) in enumerate(zip(shares, rows, strict=True)):
        if share > 0 and not own.size:
            raise DataError(
                f"{table.source}: part {index} with a share of {share:g} of {table.num_images} images is empty"
            )
    return rows
