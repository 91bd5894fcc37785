"""A set of images as it lives in memory: one uint8 tensor, its labels and its attributes."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from flgen.data.labelled_set import LabelledSet, describe
from flgen.errors import UsageError


class ImageSet(LabelledSet):
    """Images with one label and any number of attributes each.

    Args:
        images: uint8 tensor (N, C, H, W), values 0..255; also called `inputs`.
        labels: int64 tensor (N,), class ids from 0.
        attributes: Further values per image by name, each an int64 tensor (N,).

    Raises:
        UsageError: If a tensor has another type or shape.
    """

    noun = "images"

    def __init__(self, images: Tensor, labels: Tensor, attributes: dict[str, Tensor] | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UsageError(f"an image set needs uint8 images (N, C, H, W), not {describe(images)}")
        super().__init__(images, labels, attributes or {})

    @property
    def images(self) -> Tensor:
        """The images, uint8 tensor (N, C, H, W)."""
        return self.inputs


def to_unit_range(images: Tensor) -> Tensor:
    """Map bytes 0..255 to float32 in [-1, 1], the range in which generators draw."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def standardize(images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """Map bytes 0..255 to float32 (x / 255 - mean) / std, channel by channel, or to [-1, 1] without those numbers."""
    if mean is None or std is None:
        return to_unit_range(images)
    return images.to(torch.float32).div_(255.0).sub_(_channels(mean, images.device)).div_(_channels(std, images.device))


@lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return one number per channel as float32 (C, 1, 1); kept, since moving it to a GPU again would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)


def to_bytes(images: Tensor) -> Tensor:
    """Map images in [-1, 1] to uint8 as floor(clamp(255 * (x + 1) / 2 + 0.5, 0, 255)) (PRISM, section 8)."""
    return images.to(torch.float32).add(1.0).mul_(127.5).add_(0.5).clamp_(0.0, 255.0).floor_().to(torch.uint8)
