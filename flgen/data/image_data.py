"""Image data sets as LightningDataModules that also know how to split themselves over clients."""

from __future__ import annotations

import math
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flgen.data.partition import Partitioner, label_table
from flgen.deferred import TYPE_CHECKING, LightningDataModule, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import filelock
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    from flgen.data.client_data import ClientData
    from flgen.data.image_set import ImageSet
else:
    filelock = deferred_module("filelock")
    np = deferred_module("numpy")

DOWNLOAD_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class ImageLayout:
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

    name: str
    class_names: tuple[str, ...]
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.channels, self.image_size, self.image_size


class ImageData(LightningDataModule):
    """A set of training images and a set of test images, all of one size, in memory as uint8 tensors.

    A data set of your own derives from it and defines two methods, `layout()` and `load()`. `batch_size` and
    `shuffle_seed` matter to the loaders of an ordinary Trainer only: federated training takes its batches from
    `client_data`.
    """

    batch_size: int = 64
    shuffle_seed: int = 0

    def __init__(self) -> None:
        super().__init__()
        self._loaded: tuple[ImageSet, ImageSet] | None = None

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images; nothing is decoded for it."""
        raise TypeError(f"{type(self).__name__} is not a complete data set: it needs a method layout")

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the data from where they are; return the training and the test images."""
        raise TypeError(f"{type(self).__name__} is not a complete data set: it needs a method load")

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning declares a plain attribute
        """Name of the data set."""
        return self.layout().name

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        return self.layout().class_names

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.layout().class_names)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.layout().channels

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.layout().image_size

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory, once; `stage` makes no difference.

        Raises:
            UsageError: If what `load()` returns is not what `layout()` says.
            FlgenError: If files are missing or damaged, or a split is empty.
        """
        if self._loaded is not None:
            return
        train, test = self.load()
        for images in (train, test):
            if len(images) == 0:
                raise FlgenError(f"{self.name} has a split without images; give other data with `--data.root`")
            if images.images.shape[1:] != self.layout().shape or not 0 <= images.labels.max() < self.classes:
                raise UsageError(
                    f"{self.name} has images {tuple(images.images.shape)} with labels up to {images.labels.max()}, "
                    f"but its layout says {self.layout().shape} and {self.classes} classes"
                )
        self._loaded = train, test

    @property
    def train(self) -> ImageSet:
        """The training images, in the order that partitions refer to."""
        return self._after_setup()[0]

    @property
    def test(self) -> ImageSet:
        """The held-out images."""
        return self._after_setup()[1]

    def _after_setup(self) -> tuple[ImageSet, ImageSet]:
        if self._loaded is None:
            raise FlgenError(f"{type(self).__name__} holds no data yet; call its setup() first")
        return self._loaded

    def split_clients(self, partitioner: Partitioner, generator: np.random.Generator) -> list[np.ndarray]:
        """Deal the training images out to clients.

        Args:
            partitioner: The rule.
            generator: Source of the rule's random choices.

        Returns:
            Rows of `train`, one int64 array per client.

        Raises:
            UsageError: If the rule cannot be met with these data.
        """
        attributes = {name: values.numpy(force=True) for name, values in self.train.attributes.items()}
        return partitioner.split(self.train.labels.numpy(force=True), attributes, generator)

    def label_table(self, partition: Sequence[np.ndarray]) -> np.ndarray:
        """Count each client's images of each class: int64 array (clients, classes)."""
        return label_table(partition, self.train.labels.numpy(force=True), self.classes)

    def client_data(self, client: int, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's data.

        Args:
            client: The client's number.
            rows: The client's entry of `split_clients`.
            device: Where batches are wanted.
        """
        from flgen.data.client_data import TensorClientData

        return TensorClientData(self.train, rows, device, self.classes)

    def client_test_data(self, rows: np.ndarray, device: torch.device | str = "cpu") -> ClientData:
        """Return one client's share of the held-out images.

        Args:
            rows: Rows of `test`, int64 array, such as the client's entry of `local_test_rows`.
            device: Where batches are wanted.
        """
        from flgen.data.client_data import TensorClientData

        return TensorClientData(self.test, rows, device, self.classes)

    def standardize(self, images: torch.Tensor) -> torch.Tensor:
        """Return images as a classifier takes them: (x / 255 - mean) / std by the layout's numbers for each channel.

        Where the layout has none, they are mapped to [-1, 1].

        Args:
            images: uint8 tensor (B, C, H, W), on any device.

        Returns:
            float32 tensor (B, C, H, W) on the same device.
        """
        from flgen.data.image_set import standardize

        layout = self.layout()
        return standardize(images, layout.mean, layout.std)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches (float32 images in [-1, 1], labels) for an ordinary Lightning Trainer."""
        from flgen.data.unit_range_loader import unit_range_loader

        return unit_range_loader(self.train, self.batch_size, shuffle_seed=self.shuffle_seed)

    def test_dataloader(self) -> DataLoader:
        """Return batches (float32 images in [-1, 1], labels) of the held-out images, in order."""
        from flgen.data.unit_range_loader import unit_range_loader

        return unit_range_loader(self.test, self.batch_size)


class DownloadableData(ImageData):
    """A data set whose files lie under a folder, and can be fetched into it if torchvision knows where from.

    Args:
        root: Folder of the files.
        download: Fetch the files into `root` if they are missing.
    """

    def __init__(self, root: str = "data", download: bool = False) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.download = download

    def missing(self) -> str | None:
        """Return what was looked for and not found, and where; None if the data are complete."""
        raise TypeError(f"{type(self).__name__} is not a complete data set: it needs a method missing")

    def fetch(self) -> None:
        """Download the files into `root`."""
        raise TypeError(f"{type(self).__name__} is not a complete data set: it needs a method fetch")

    def prepare_data(self) -> None:
        """Download the files if that was asked for and they are missing; one process at a time does it.

        Raises:
            FlgenError: If the download fails, or another process holds it up for more than an hour.
        """
        if not self.download or self.missing() is None:
            return
        lock = self.root / ".flgen-download.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(lock, timeout=DOWNLOAD_TIMEOUT_S):
                if self.missing() is not None:
                    self.fetch()
        except filelock.Timeout:
            raise FlgenError(
                f"another process has held {lock} for {DOWNLOAD_TIMEOUT_S:.0f} s; "
                "if none is downloading, remove that file"
            ) from None
        except (OSError, RuntimeError, ImportError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            from flgen.data.pixels import one_line

            raise FlgenError(
                f"{self.name} could not be downloaded to {self.root} ({one_line(error)}); "
                "check the network, or put the files there and set `--data.download false`"
            ) from error

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory, once; `stage` makes no difference.

        Raises:
            FlgenError: If files are missing or damaged.
        """
        if self._loaded is None and (missing := self.missing()) is not None:
            raise FlgenError(
                f"{self.name}: {missing}; give the right folder with `--data.root`, "
                "or let the files be fetched with `--data.download true`"
            )
        super().setup(stage)


def check_image_size(image_size: int, channels: int = 3) -> None:
    """Refuse an image size below 4 pixels and other numbers of channels than 1 and 3.

    Raises:
        UsageError: If one of them is out of range.
    """
    if image_size < 4:
        raise UsageError(f"`--data.image_size` is {image_size}; it must be at least 4 pixels")
    if channels not in (1, 3):
        raise UsageError(f"`--data.channels` is {channels}; it must be 1 (grey) or 3 (RGB)")
