from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from stratcore.training.augmentation import AugmentationOptions, mixed, random_views

NOTHING = AugmentationOptions(crop=0, flip=0.0)


def images(count: int = 64, channels: int = 2) -> Tensor:
    return torch.randint(1, 256, (count, channels, 6, 5), dtype=torch.uint8)


def test_no_augmentation_is_the_image() -> None:
    x, rows = images(), torch.tensor([5, 3, 3])
    assert torch.equal(random_views(x, rows, NOTHING), x[rows].float() / 255)


def test_every_view_is_a_crop_of_the_padded_image_and_all_crops_come() -> None:
    x = images(1)
    rows = torch.zeros(400, dtype=torch.long)
    views = random_views(x, rows, replace(NOTHING, crop=2, flip=0.5))
    wide = pad(x[0].float() / 255, (2, 2, 2, 2))
    known = {}
    for flip in (False, True):
        for dy in range(5):
            for dx in range(5):
                source = pad(x[0].flip(-1).float() / 255, (2, 2, 2, 2)) if flip else wide
                known[source[:, dy : dy + 6, dx : dx + 5].numpy().tobytes()] = (flip, dy, dx)
    found = [known[view.numpy().tobytes()] for view in views.contiguous()]
    assert len(set(found)) == 50
    assert 0.4 < sum(flip for flip, _, _ in found) / 400 < 0.6


def test_erasing_and_colors() -> None:
    x = torch.full((500, 1, 16, 16), 128, dtype=torch.uint8)
    rows = torch.arange(500)
    views = random_views(x, rows, replace(NOTHING, erase=0.5, erase_share=0.3))
    changed = (views != 128 / 255).float().mean((1, 2, 3))
    assert 0.42 < float((changed > 0).float().mean()) < 0.55 and float(changed.max()) < 0.35
    bright = random_views(x, rows, replace(NOTHING, brightness=0.2))
    assert (bright.amax((1, 2, 3)) == bright.amin((1, 2, 3))).all()
    assert float((bright - 128 / 255).abs().max()) == pytest.approx(0.2, abs=0.01)
    one = images(1).expand(300, -1, -1, -1)
    views = random_views(one, torch.arange(300), replace(NOTHING, contrast=0.5))
    inside = views[(views > 0).all((1, 2, 3)) & (views < 1).all((1, 2, 3)).expand(300)]
    torch.testing.assert_close(inside.mean((1, 2, 3)), (one[0] / 255).mean().expand(len(inside)))


def test_views_follow_the_seed() -> None:
    x, rows, options = images(), torch.arange(20), AugmentationOptions(erase=0.5, contrast=0.1)
    views = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(random_views(x, rows, options))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


@pytest.mark.parametrize("kind", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_targets_are_mixed_by_the_share_of_the_pixels(kind: dict) -> None:
    """Image i is i everywhere and its target is class i: the mean pixel is the target's mean class."""
    count = 200
    x = torch.arange(count).float()[:, None, None, None].expand(-1, 1, 8, 8)
    for _ in range(3):
        mixture, targets = mixed(x, one_hot(torch.arange(count), count).float(), replace(NOTHING, **kind))
        torch.testing.assert_close(targets.sum(1), torch.ones(count))
        expected = targets @ torch.arange(count).float()
        torch.testing.assert_close(mixture.mean((1, 2, 3)), expected, rtol=1e-4, atol=1e-3)
        assert float(targets.amax(1).min()) < 0.9
    assert mixed(x, targets, NOTHING) == (x, targets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": -1}, "augmentation.crop: expected a number >= 0, got -1"),
        ({"flip": 1.5}, r"augmentation.flip: expected a number in \[0, 1\], got 1.5"),
        ({"erase_share": 0.0}, "augmentation.erase_share: expected a share"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AugmentationOptions(**changes)
