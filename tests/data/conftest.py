"""Small image sets and data folders that the data tests build for themselves."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet


def random_images(count: int, channels: int = 1, side: int = 6, classes: int = 3, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return ImageSet(images, labels, {"even": (torch.arange(count) % 2 == 0).to(torch.int64)})


class RandomImages(ImageData):
    """A data set of random pixels: three classes, `count` training and 12 test images of 6x6 pixels."""

    def __init__(self, count: int = 90, channels: int = 1) -> None:
        super().__init__()
        self._count = count
        self._channels = channels

    def layout(self) -> ImageLayout:
        return ImageLayout("random", ("a", "b", "c"), channels=self._channels, image_size=6)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return random_images(self._count, self._channels), random_images(12, self._channels, seed=1)


@pytest.fixture
def random_data() -> RandomImages:
    data = RandomImages()
    data.setup()
    return data


def write_idx(path: Path, values: np.ndarray, compress: bool = False) -> None:
    content = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content += values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".gz" * compress).write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def write_mnist() -> Callable[..., np.ndarray]:
    """Return a function that writes one split of IDX files and returns its images."""

    def write(folder: Path, split: str, count: int, compress: bool = False, side: int = 28) -> np.ndarray:
        rng = np.random.default_rng([count, len(split)])
        images = rng.integers(0, 256, (count, side, side))
        write_idx(folder / f"{split}-images-idx3-ubyte", images, compress)
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(count) % 10, compress)
        return images

    return write
