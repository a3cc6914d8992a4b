"""Random views of images, made on the device for a whole batch at once.

Legend: N images, B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_ERASED = 0.02


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """What happens to an image on its way to the model.

    Args:
        crop: pixels of black border that an image is shifted into, at most, in each direction; 0: no shift.
        flip: probability that left and right change places.
        contrast: the contrast about the image's mean is scaled by a factor in [1 - contrast, 1 + contrast].
        brightness: a number in [-brightness, brightness] is added to all pixels, which are in [0, 1].
        erase: probability that a rectangle is made noise.
        erase_share: most of the area that is erased.
        mixup: parameter alpha of Beta(alpha, alpha), the share of an image against another one; 0: none.
        cutmix: likewise, of a rectangle that comes from another image; where both are given, half of the batches
            get one and half the other.
    """

    crop: int = 4
    flip: float = 0.5
    contrast: float = 0.0
    brightness: float = 0.0
    erase: float = 0.0
    erase_share: float = 0.25
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop", "mixup", "cutmix", "brightness"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"augmentation.{name}: expected a number >= 0, got {getattr(self, name)}")
        for name in ("flip", "erase", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"augmentation.{name}: expected a number in [0, 1], got {getattr(self, name)}"
                )
        if not _LEAST_ERASED < self.erase_share < 1:
            raise ValueError(
                f"augmentation.erase_share: expected a share in ({_LEAST_ERASED}, 1), got {self.erase_share}"
            )

    @property
    def mixes(self) -> bool:
        """Whether images, and so labels, are mixed."""
        return self.mixup > 0 or self.cutmix > 0


def random_views(images_NCHW: Tensor, rows_B: Tensor, options: AugmentationOptions) -> Tensor:
    """Random views of some images, drawn from torch's generator.

    Args:
        images_NCHW: all images, bytes.
        rows_B: numbers of those wanted.
        options: what is done; mixing is not (`mixed`).

    Returns:
        [B, C, H, W] float32 in [0, 1].
    """
    height, width = images_NCHW.shape[2:]
    count, device = rows_B.shape[0], images_NCHW.device
    shift_2B = torch.randint(-options.crop, options.crop + 1, (2, count), device=device)
    y_BH = torch.arange(height, device=device) + shift_2B[0, :, None]
    x_BW = torch.arange(width, device=device).expand(count, width)
    if options.flip:
        x_BW = torch.where(torch.rand(count, 1, device=device) < options.flip, x_BW.flip(-1), x_BW)
    x_BW = x_BW + shift_2B[1, :, None]
    inside_BHW = ((y_BH >= 0) & (y_BH < height))[:, :, None] & ((x_BW >= 0) & (x_BW < width))[:, None]
    y_BH, x_BW = y_BH.clamp(0, height - 1), x_BW.clamp(0, width - 1)
    taken_BHWC = images_NCHW[rows_B[:, None, None], :, y_BH[:, :, None], x_BW[:, None]]
    views = taken_BHWC.permute(0, 3, 1, 2).float() / 255 * inside_BHW[:, None]
    if options.contrast or options.brightness:
        draw_2B = 2 * torch.rand(2, count, 1, 1, 1, device=device) - 1
        mean = views.mean((1, 2, 3), keepdim=True)
        views = mean + (1 + options.contrast * draw_2B[0]) * (views - mean)
        views = (views + options.brightness * draw_2B[1]).clamp(0, 1)
    if options.erase:
        share_B = _LEAST_ERASED + (options.erase_share - _LEAST_ERASED) * torch.rand(count, device=device)
        share_B = share_B * (torch.rand(count, device=device) < options.erase)
        erased = _rectangles(share_B, height, width)[:, None]
        views = torch.where(erased, torch.rand_like(views), views)
    return views


def mixed(images_BCHW: Tensor, targets_BK: Tensor, options: AugmentationOptions) -> tuple[Tensor, Tensor]:
    """Images mixed with others of the batch, and their targets by the same shares.

    Args:
        images_BCHW: views.
        targets_BK: shares of the classes.
        options: mixup and cutmix; without either, all is returned as it is.
    """
    if not options.mixes:
        return images_BCHW, targets_BK
    count, (height, width), device = images_BCHW.shape[0], images_BCHW.shape[2:], images_BCHW.device
    other_B = torch.randperm(count, device=device)
    results = []
    if options.mixup:
        share_B = _beta(options.mixup, count, device)
        share = share_B[:, None, None, None]
        results.append((share * images_BCHW + (1 - share) * images_BCHW[other_B], share_B))
    if options.cutmix:
        foreign_BHW = _rectangles(1 - _beta(options.cutmix, count, device), height, width)
        images = torch.where(foreign_BHW[:, None], images_BCHW[other_B], images_BCHW)
        results.append((images, 1 - foreign_BHW.float().mean((1, 2))))
    images, share_B = results[0]
    if len(results) == 2:
        first = torch.rand((), device=device) < 0.5
        images, share_B = (torch.where(first, a, b) for a, b in zip(*results, strict=True))
    share_B1 = share_B[:, None].to(targets_BK.dtype)
    return images, share_B1 * targets_BK + (1 - share_B1) * targets_BK[other_B]


def _beta(alpha: float, count: int, device: torch.device) -> Tensor:
    """Draws of Beta(alpha, alpha), [count]."""
    pair_B2 = torch._standard_gamma(torch.full((count, 2), alpha, device=device))
    return pair_B2[:, 0] / pair_B2.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)


def _rectangles(share_B: Tensor, height: int, width: int) -> Tensor:
    """Masks [B, H, W] of one rectangle each, of the image's proportions and this share of its area.

    The center is anywhere; what lies outside the image is lost.
    """
    count, device = share_B.shape[0], share_B.device
    side_B = share_B.sqrt()
    inside = []
    for length in (height, width):
        center_B = torch.rand(count, device=device) * length
        half_B = 0.5 * side_B * length
        place = torch.arange(length, device=device) + 0.5
        inside.append((place - center_B[:, None]).abs() < half_B[:, None])
    return inside[0][:, :, None] & inside[1][:, None]
