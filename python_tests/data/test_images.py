from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from python_tests.data.image_cases import table
from stratcore.data import DataError, ImageSet, require_images, split_images
from stratcore.data.images import adapted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((40, 8, 8), np.uint8)}, r"images: expected images \[N, C, H, W\] uint8, got"),
        ({"images": np.zeros((40, 1, 8, 8), np.float32)}, "uint8, got .* float32"),
        ({"images": np.zeros((0, 1, 8, 8), np.uint8)}, "images: holds no image"),
        ({"images": np.zeros((40, 2, 8, 8), np.uint8)}, "expected 1 or 3 channels"),
        ({"label_names": ("a", "a", "b", "c")}, "expected different, non-empty names"),
        ({"label": np.zeros(39, np.int64)}, "expected 40 labels int64, got"),
        ({"label": np.r_[np.zeros(39, np.int64), 4]}, r"image 39: expected a label in \[0, 3\], got 4"),
        ({"label": np.r_[-1, np.zeros(39, np.int64)]}, r"image 0: expected a label in \[0, 3\], got -1"),
        ({"item": np.zeros(3, np.int64)}, "expected 40 items int64"),
    ],
)
def test_a_bad_table_is_one_line(changes: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        replace(table(), **changes)


def test_train_and_test_fit_together() -> None:
    with pytest.raises(DataError, match=r"expected shape \(1, 8, 8\) as in train, got \(1, 9, 9\)"):
        ImageSet(table(), table(size=9))
    with pytest.raises(DataError, match="expected label_names"):
        ImageSet(table(), table(classes=3))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"channels": 3}, r"expected RGB images \(model.channels = 3\), got grey ones"),
        ({"size": 32}, r"expected images of 32 x 32 pixels \(model.image_size\), got 8 x 8"),
        ({"num_classes": 10}, r"expected 10 classes \(model.num_classes\), got 4"),
    ],
)
def test_images_that_do_not_fit_the_model(wanted: dict, words: str) -> None:
    good = {"channels": 1, "size": 8, "num_classes": 4}
    require_images(table(), **good)
    with pytest.raises(DataError, match=words):
        require_images(table(), **(good | wanted))


def test_one_class_is_refused() -> None:
    alone = table().take(np.arange(0, 40, 4))
    with pytest.raises(DataError, match="expected at least 2 classes, got only 'class 0'"):
        require_images(alone, channels=1, size=8, num_classes=4)


def test_split_keeps_the_classes_and_tears_no_item_apart() -> None:
    whole = table(400)
    parts = split_images(whole, (0.7, 0.1, 0.2), seed=0)
    for part, count in zip(parts, (280, 40, 80), strict=True):
        assert np.bincount(whole.label[part]).tolist() == [count // 4] * 4
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(400))
    assert not np.array_equal(parts[0], split_images(whole, (0.7, 0.1, 0.2), seed=1)[0])
    pairs = replace(whole, item=np.arange(400) // 8)  # eight images, all four classes, one item
    for part in split_images(pairs, (0.5, 0.5), seed=0):
        assert np.unique(pairs.item[part], return_counts=True)[1].tolist() == [8] * 25


def test_split_refuses_an_empty_part_and_bad_shares() -> None:
    with pytest.raises(DataError, match="part 1 with a share of 0.01 of 40 images is empty"):
        split_images(table(), (0.9, 0.01), seed=0)
    with pytest.raises(ValueError, match="shares: expected numbers >= 0 that sum to at most 1"):
        split_images(table(), (0.9, 0.2), seed=0)
    assert split_images(table(), (1.0, 0.0), seed=0)[1].size == 0


def test_images_in_another_form() -> None:
    colors = table(4, channels=3, size=8)
    grey = adapted(colors, 1, 8)
    luma = (colors.images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert np.abs(grey.images[:, 0].astype(float) - luma).max() <= 0.5001
    back = adapted(grey, 3, 8)
    assert back.shape == (3, 8, 8) and all(
        np.array_equal(back.images[:, i], grey.images[:, 0]) for i in range(3)
    )
    assert adapted(back, 3, 8).images is not colors.images and np.array_equal(
        adapted(back, 3, 8).images, back.images
    )
    # Antialiased: fine checks become their mean, flat images keep their value.
    checks = replace(colors, images=np.tile(np.array([[0, 200], [200, 0]], np.uint8), (4, 3, 8, 8)))
    assert np.abs(adapted(checks, 3, 4).images[:, :, 1:-1, 1:-1].astype(int) - 100).max() <= 3
    flat = replace(colors, images=np.full((4, 3, 8, 8), 77, np.uint8))
    assert (adapted(flat, 1, 28).images == 77).all() and adapted(flat, 1, 28).shape == (1, 28, 28)
