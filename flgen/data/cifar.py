"""CIFAR-10 and CIFAR-100, through torchvision."""

from __future__ import annotations

import pickle

from flgen.data.downloadable import DownloadableData
from flgen.data.image_data import ImageData, ImageLayout, Pixels, check_image_size
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError

if TYPE_CHECKING:
    from typing import Any

    from flgen.data.image_set import ImageSet

TEN_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
HUNDRED_CLASSES = tuple(FINE_NAMES.split())


class CIFAR10(DownloadableData, ImageData):
    """CIFAR-10: 50,000 training and 10,000 test images of ten kinds of things, 32x32, RGB.

    The folder `cifar-10-batches-py` lies in `root`; torchvision checks its files' hashes and reads them. For images
    in other formats there is `ImageFolder`. Mean and deviation of the channels are those of DisPFL, section 8.2.

    Args:
        root: Folder that holds `cifar-10-batches-py`.
        image_size: Side of the images, pixels; other sizes than 32 are interpolated.
        download: Fetch the files into `root` if they are missing.
        pixels: Whether classifiers get pixels standardised by these numbers, or "centred", in [-1, 1], as in FedKTL
            (section 4).
    """

    torchvision_name = "CIFAR10"

    def __init__(
        self, root: str = "data", image_size: int = 32, download: bool = False, pixels: Pixels = "standardized"
    ) -> None:
        super().__init__(root, download)
        check_image_size(image_size)
        self._image_size = image_size
        self.pixels: Pixels = pixels

    def layout(self) -> ImageLayout:
        """Return name, classes, channels, size and normalisation of the images."""
        mean, std = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)
        layout = ImageLayout("cifar10", TEN_CLASSES, channels=3, image_size=self._image_size, mean=mean, std=std)
        return layout.scaled(self.pixels)

    @property
    def _source(self) -> Any:
        """torchvision's class of the same data."""
        import torchvision.datasets

        return getattr(torchvision.datasets, self.torchvision_name)

    def missing(self) -> str | None:
        """Return which file was not found, and where; None if all are there."""
        source = self._source
        folder = self.root / source.base_folder
        names = [name for name, _ in [*source.train_list, *source.test_list]] + [source.meta["filename"]]
        absent = [name for name in names if not (folder / name).is_file()]
        return f"no {', '.join(absent)} in {folder}" if absent else None

    def fetch(self) -> None:
        """Download the archive into `root` and unpack it."""
        self._source(self.root, download=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the files; return the training and the test images."""
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import one_line, resize

        try:
            source = self._source(self.root, train=train)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            folder = self.root / self._source.base_folder
            raise FlgenError(
                f"{folder} is damaged ({one_line(error)}); remove it and fetch it again with `--data.download true`"
            ) from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(resize(images, self.image_size), torch.tensor(source.targets, dtype=torch.int64))


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of a hundred kinds of things, 32x32, RGB.

    The labels are the hundred fine ones. The folder `cifar-100-python` lies in `root`; torchvision checks its files'
    hashes and reads them. Mean and deviation of the channels are those of DisPFL, section 8.2.

    Args:
        root: Folder that holds `cifar-100-python`.
        image_size: Side of the images, pixels; other sizes than 32 are interpolated.
        download: Fetch the files into `root` if they are missing.
        pixels: Whether classifiers get pixels standardised by these numbers, or "centred", in [-1, 1], as in FedKTL
            (section 4).
    """

    torchvision_name = "CIFAR100"

    def layout(self) -> ImageLayout:
        """Return name, classes, channels, size and normalisation of the images."""
        mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
        layout = ImageLayout("cifar100", HUNDRED_CLASSES, channels=3, image_size=self._image_size, mean=mean, std=std)
        return layout.scaled(self.pixels)
