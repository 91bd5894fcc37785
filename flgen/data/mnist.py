"""MNIST and Fashion-MNIST, read from their IDX files."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from pathlib import Path

from flgen.data.downloadable import DownloadableData
from flgen.data.holdout import shuffled_holdout
from flgen.data.image_data import ImageData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np

    from flgen.data.image_set import ImageSet
else:
    np = deferred_module("numpy")

LARGEST = 1 << 30
"""Bytes of an IDX file; a compressed one can stand for a thousand times its own size."""

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class MNIST(DownloadableData, ImageData):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28x28, grey.

    The four IDX files, with or without `.gz`, lie in `root/MNIST/raw` (torchvision's place) or in `root` itself. Where
    only the 10,000 test images are there, a warning says so and they are split: shuffled once with a fixed seed, the
    first 80 % train and the last 20 % test.

    Args:
        root: Folder of the files.
        image_size: Side of the images, pixels; bilinear interpolation from 28.
        download: Fetch the files into `root` if they are missing.
    """

    torchvision_name = "MNIST"

    def __init__(self, root: str = "data", image_size: int = 32, download: bool = False) -> None:
        super().__init__(root, download)
        check_image_size(image_size)
        self._image_size = image_size

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images."""
        return ImageLayout("mnist", tuple("0123456789"), channels=1, image_size=self._image_size)

    def missing(self) -> str | None:
        """Return which of the four files was not found, and where; None if the data can be read."""
        train = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
        test = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
        test_only = all(map(self._find, test)) and not any(map(self._find, train))
        needed = test if test_only and not self.download else train + test
        absent = [name for name in needed if self._find(name) is None]
        if not absent:
            return None
        return f"no {', '.join(f'{name}(.gz)' for name in absent)} in {self.root} or {self._torchvision_folder}"

    def fetch(self) -> None:
        """Download the files into `root/MNIST/raw`, or `root/FashionMNIST/raw`."""
        import torchvision.datasets

        getattr(torchvision.datasets, self.torchvision_name)(self.root, download=True)

    @property
    def _torchvision_folder(self) -> Path:
        return self.root / self.torchvision_name / "raw"

    def _find(self, name: str) -> Path | None:
        places = [folder / file for folder in (self._torchvision_folder, self.root) for file in (name, f"{name}.gz")]
        return next((path for path in places if path.is_file()), None)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the files; return the training and the test images."""
        import torch

        test = self._read("t10k")
        if self._find("train-images-idx3-ubyte") is not None:
            return self._read("train"), test
        train_rows, test_rows = shuffled_holdout(len(test), fraction=0.2)
        warnings.warn(
            f"{self.name}: {self.root} holds the test images only; of these {len(test)}, shuffled with a fixed seed, "
            f"{len(train_rows)} are used for training and {len(test_rows)} for testing",
            stacklevel=2,
        )
        return test.subset(torch.from_numpy(train_rows)), test.subset(torch.from_numpy(test_rows))

    def _read(self, split: str) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import resize

        image_file, label_file = self._find(f"{split}-images-idx3-ubyte"), self._find(f"{split}-labels-idx1-ubyte")
        assert image_file is not None
        assert label_file is not None
        images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
        if len(images) != len(labels):
            raise FlgenError(f"{image_file} has {len(images)} images but {label_file} has {len(labels)} labels")
        if len(labels) and labels.max() >= self.classes:
            raise FlgenError(f"{label_file} is damaged (label {labels.max()} of {self.classes} classes)")
        resized = resize(torch.from_numpy(images).unsqueeze(1), self.image_size)
        return ImageSet(resized, torch.from_numpy(labels).to(torch.int64))


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28, grey.

    The files have the same names as MNIST's and lie in `root/FashionMNIST/raw` or in `root` itself.

    Args:
        root: Folder of the files.
        image_size: Side of the images, pixels; bilinear interpolation from 28.
        download: Fetch the files into `root` if they are missing.
    """

    torchvision_name = "FashionMNIST"

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images."""
        return ImageLayout("fashion_mnist", CLOTHES, channels=1, image_size=self._image_size)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes, with or without gzip.

    Args:
        path: The file.
        dimensions: Number of dimensions that it must have.

    Returns:
        uint8 array of that many dimensions.

    Raises:
        FlgenError: If the file is truncated, not IDX, or of another type or number of dimensions.
    """
    from flgen.data.pixels import one_line

    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OSError(f"it has more than {LARGEST} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise FlgenError(f"{path} is damaged ({one_line(error)}); fetch it again") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise FlgenError(f"{path} is damaged (no IDX file of bytes in {dimensions} dimensions); fetch it again")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        raise FlgenError(f"{path} is damaged ({len(content)} bytes for the shape {tuple(shape)}); fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
