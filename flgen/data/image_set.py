"""A set of images as it lives in memory: one uint8 tensor, its labels and its attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from flgen.errors import UsageError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with one label and any number of attributes each.

    Args:
        images: uint8 tensor (N, C, H, W), values 0..255.
        labels: int64 tensor (N,), class ids from 0.
        attributes: Further values per image by name, each an int64 tensor (N,).

    Raises:
        UsageError: If a tensor has another type or shape.
    """

    images: Tensor
    labels: Tensor
    attributes: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UsageError(f"an image set needs uint8 images (N, C, H, W), not {describe(self.images)}")
        for name, values in {"labels": self.labels, **self.attributes}.items():
            if values.dtype != torch.int64 or values.shape != (len(self.images),):
                raise UsageError(f"{len(self.images)} images need {name} as int64 (N,), not {describe(values)}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> ImageSet:
        """Return a copy of the images at `indices` (int64 tensor), in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return ImageSet(
            self.images.index_select(0, rows),
            self.labels.index_select(0, rows),
            {name: values.index_select(0, rows) for name, values in self.attributes.items()},
        )

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on `device`; tensors that are there already are shared, not copied."""
        return ImageSet(
            self.images.to(device),
            self.labels.to(device),
            {name: values.to(device) for name, values in self.attributes.items()},
        )


def describe(tensor: Tensor) -> str:
    """Return a tensor's type and shape for a message, such as `float32 (3, 4)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


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
