"""Image data sets: labelled data whose samples are uint8 images of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

from flgen.data.labelled_data import LabelledData, Layout
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from flgen.data.image_set import ImageSet
else:
    torch = deferred_module("torch")


Pixels = Literal["standardized", "centred"]
"""How classifiers get pixels: by the data set's mean and deviation of each channel, or mapped to [-1, 1]."""


@dataclass(frozen=True)
class ImageLayout(Layout):
    """What is known of a data set before it is read.

    Args:
        name: Name of the data set, as it appears in file names and metrics.
        class_names: One name per class, in the order of the labels.
        channels: 1 (grey) or 3 (RGB).
        image_size: Side of the images, pixels.
        mean: Mean of the pixel values in [0, 1] per channel, by which classifiers normalise; None if there is none.
        std: Their standard deviation per channel.

    Raises:
        UsageError: If `mean` and `std` are not one number per channel each, `std` positive.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.mean is None and self.std is None:
            return
        mean, std = self.mean or (), self.std or ()
        numbers = all(math.isfinite(value) for value in (*mean, *std)) and min(std, default=0.0) > 0.0
        if not (len(mean) == len(std) == self.channels and numbers):
            raise UsageError(
                f"the layout of {self.name} has mean {self.mean} and std {self.std}; it needs both or neither, "
                f"one number for each of {self.channels} channels, std above 0"
            )

    def scaled(self, pixels: Pixels) -> ImageLayout:
        """Return the same layout, without mean and deviation where pixels are only centred."""
        return self if pixels == "standardized" else replace(self, mean=None, std=None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.channels, self.image_size, self.image_size

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8


class ImageData(LabelledData):
    """A set of training images and a set of test images, all of one size, in memory as uint8 tensors.

    A data set of your own derives from it and defines two methods, `layout()` and `load()`. `batch_size` and
    `shuffle_seed` matter to the loaders of an ordinary Trainer only: federated training takes its batches from
    `client_data`.
    """

    noun = "images"

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images; nothing is decoded for it."""
        raise self._incomplete("layout")

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the data from where they are; return the training and the test images."""
        raise self._incomplete("load")

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.layout().channels

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.layout().image_size

    @property
    def train(self) -> ImageSet:
        """The training images, in the order that partitions refer to."""
        return cast("ImageSet", super().train)

    @property
    def test(self) -> ImageSet:
        """The held-out images."""
        return cast("ImageSet", super().test)

    def standardize(self, stored: torch.Tensor) -> torch.Tensor:
        """Return images as a classifier takes them: (x / 255 - mean) / std by the layout's numbers for each channel.

        Where the layout has none, they are mapped to [-1, 1].

        Args:
            stored: uint8 tensor (B, C, H, W), on any device.

        Returns:
            float32 tensor (B, C, H, W) on the same device.
        """
        from flgen.data.image_set import standardize

        layout = self.layout()
        return standardize(stored, layout.mean, layout.std)

    def decode_sample(self, content: bytes, extension: str) -> torch.Tensor:
        """Return one PNG or JPEG file in the size and the channels of this data set.

        The largest central square is resized.

        Args:
            content: The file's bytes.
            extension: `.png`, `.jpg` or `.jpeg`; the dot may be missing.

        Returns:
            uint8 tensor (C, H, W).

        Raises:
            FlgenError: If the file is of another kind, or damaged.
        """
        from flgen.data.pixels import decode_image

        return decode_image(content, extension, self.image_size, self.channels)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches (float32 images in [-1, 1], labels) for an ordinary Lightning Trainer."""
        from flgen.data.batch_loader import batch_loader
        from flgen.data.image_set import to_unit_range

        return batch_loader(self.train, to_unit_range, self.batch_size, shuffle_seed=self.shuffle_seed)

    def test_dataloader(self) -> DataLoader:
        """Return batches (float32 images in [-1, 1], labels) of the held-out images, in order."""
        from flgen.data.batch_loader import batch_loader
        from flgen.data.image_set import to_unit_range

        return batch_loader(self.test, to_unit_range, self.batch_size)


def check_image_size(image_size: int, channels: int = 3) -> None:
    """Refuse an image size below 4 pixels and other numbers of channels than 1 and 3.

    Raises:
        UsageError: If one of them is out of range.
    """
    if image_size < 4:
        raise UsageError(f"`--data.image_size` is {image_size}; it must be at least 4 pixels")
    if channels not in (1, 3):
        raise UsageError(f"`--data.channels` is {channels}; it must be 1 (grey) or 3 (RGB)")
