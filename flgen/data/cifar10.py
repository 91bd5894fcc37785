"""CIFAR-10, through torchvision."""

from __future__ import annotations

import pickle

from flgen.data.image_data import DownloadableData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError

if TYPE_CHECKING:
    from flgen.data.image_set import ImageSet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(DownloadableData):
    """CIFAR-10: 50,000 training and 10,000 test images of ten kinds of things, 32x32, RGB.

    The folder `cifar-10-batches-py` lies in `root`; torchvision checks its files' hashes and reads them. For images
    in other formats there is `ImageFolder`.

    Args:
        root: Folder that holds `cifar-10-batches-py`.
        image_size: Side of the images, pixels; other sizes than 32 are interpolated.
        download: Fetch the files into `root` if they are missing.
    """

    def __init__(self, root: str = "data", image_size: int = 32, download: bool = False) -> None:
        super().__init__(root, download)
        check_image_size(image_size)
        self._image_size = image_size

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images."""
        return ImageLayout("cifar10", CLASSES, channels=3, image_size=self._image_size)

    def missing(self) -> str | None:
        """Return which file was not found, and where; None if all are there."""
        import torchvision.datasets

        source = torchvision.datasets.CIFAR10
        folder = self.root / source.base_folder
        names = [name for name, _ in [*source.train_list, *source.test_list]] + [source.meta["filename"]]
        absent = [name for name in names if not (folder / name).is_file()]
        return f"no {', '.join(absent)} in {folder}" if absent else None

    def fetch(self) -> None:
        """Download the archive into `root` and unpack it."""
        import torchvision.datasets

        torchvision.datasets.CIFAR10(self.root, download=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the files; return the training and the test images."""
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool) -> ImageSet:
        import torch
        import torchvision.datasets

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import one_line, resize

        try:
            source = torchvision.datasets.CIFAR10(self.root, train=train)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            folder = self.root / torchvision.datasets.CIFAR10.base_folder
            raise FlgenError(
                f"{folder} is damaged ({one_line(error)}); remove it and fetch it again with `--data.download true`"
            ) from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(resize(images, self.image_size), torch.tensor(source.targets, dtype=torch.int64))
