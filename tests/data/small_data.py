"""Small image sets and data folders that the data tests build for themselves."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from scipy.io import wavfile

from flgen.data import ImageData, LabelledData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet

Data = TypeVar("Data", bound=LabelledData)


def random_images(count: int, channels: int = 1, side: int = 6, classes: int = 3, seed: int = 0) -> ImageSet:
    """Random pixels and labels, and an attribute `even` that is 1 for every second image."""
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


def write_idx(path: Path, values: np.ndarray, compress: bool = False) -> None:
    """Write an IDX file of bytes; `compress` adds `.gz`."""
    content = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content += values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".gz" * compress).write_bytes(gzip.compress(content) if compress else content)


def write_mnist_split(folder: Path, split: str, count: int, compress: bool = False) -> np.ndarray:
    """Write the images and labels of `train` or `t10k`; return the images, (count, 28, 28). Labels are 0..9 in turn."""
    images = np.random.default_rng([count, len(split)]).integers(0, 256, (count, 28, 28))
    write_idx(folder / f"{split}-images-idx3-ubyte", images, compress)
    write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(count) % 10, compress)
    return images.astype(np.uint8)


def write_image(path: Path, pixels: np.ndarray, **options: object) -> None:
    """Write an image file, its folder with it; pixels are (H, W) or (H, W, 3), uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def plain(colour: int | tuple[int, int, int], height: int = 8, width: int = 8) -> np.ndarray:
    """An image of one colour."""
    channels = () if isinstance(colour, int) else (3,)
    return np.full((height, width, *channels), colour, dtype=np.uint8)


def tone(hertz: float, seconds: float, rate: int = 16_000, amplitude: float = 0.5) -> np.ndarray:
    """A sine, int16 (T,)."""
    times = np.arange(round(seconds * rate)) / rate
    return np.rint(amplitude * 32767 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


def write_wav(path: Path, waveform: np.ndarray, rate: int = 16_000) -> None:
    """Write a WAV file, its folder with it; the waveform is (T,) or (T, channels) of any type that WAV knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, waveform)


def read(data: Data) -> Data:
    """Prepare and set up a data set; return it."""
    data.prepare_data()
    data.setup()
    return data


def assert_one_line(error: BaseException, *parts: str) -> None:
    """The message of an error is one line and has every part in it."""
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)
