"""Any folder of images as a data set."""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from pathlib import Path

from flgen.data.holdout import check_fraction, stratified_holdout
from flgen.data.image_data import ImageData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np

    from flgen.data.image_set import ImageSet
else:
    np = deferred_module("numpy")

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Listing = dict[str, list[Path]]
"""Image files by class name, both sorted."""


class ImageFolder(ImageData):
    """Any folder of images: its sub-folders are the classes, or, if it has none, all images are one class.

    `root` may also hold `train/` and `test/`, each such a folder; else the same fraction of every class is held out,
    the same files in every run. Images are searched for in all depths below a class folder; names that begin with a
    dot are skipped. The largest central square is resized.

    Args:
        root: The folder.
        image_size: Side of the images, pixels.
        channels: 1 (grey) or 3 (RGB); images are converted.
        test_fraction: Share of the images to hold out where there is no `test/`.
        called: Name of the data set in metrics and records; two folders that are different data want different names.
    """

    def __init__(
        self,
        root: str = "data",
        image_size: int = 32,
        channels: int = 3,
        test_fraction: float = 0.1,
        called: str = "image_folder",
    ) -> None:
        super().__init__()
        check_image_size(image_size, channels)
        check_fraction(test_fraction)
        self.root = Path(root).expanduser()
        self._image_size = image_size
        self._channels = channels
        self.test_fraction = test_fraction
        self.called = called

    def layout(self) -> ImageLayout:
        """Return name, classes (the sub-folders, sorted), channels and size of the images."""
        return ImageLayout(self.called, tuple(self._listings[0]), self._channels, self._image_size)

    @cached_property
    def _listings(self) -> tuple[Listing, Listing | None]:
        """Training files and, if there is a folder of them, test files."""
        if not self.root.is_dir():
            raise FlgenError(f"the folder of images {self.root} does not exist; give the right one with `--data.root`")
        folder, test_folder = self.root / "train", self.root / "test"
        only_class = self.root.absolute().name
        if not folder.is_dir():
            return list_images(self.root, only_class), None
        listing = list_images(folder, only_class)
        if not test_folder.is_dir():
            return listing, None
        test = list_images(test_folder, only_class)
        if unknown := sorted(set(test) - set(listing)):
            raise FlgenError(f"{test_folder} has the class {unknown[0]}, which {folder} lacks; make the folders agree")
        return listing, test

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Decode the images; return the training and the test images."""
        listing, test = self._listings
        if test is not None:
            return self._decode(*self._labelled(listing)), self._decode(*self._labelled(test))
        paths, labels = self._labelled(listing)
        kept, held_out = stratified_holdout(labels, self.test_fraction)
        if len(held_out) == 0:
            raise FlgenError(f"{self.root} has too few images to hold any out; add more, or a folder `test`")
        return self._decode(paths[kept], labels[kept]), self._decode(paths[held_out], labels[held_out])

    def _labelled(self, listing: Listing) -> tuple[np.ndarray, np.ndarray]:
        """Return the files, an object array (N,), and their labels, int64 (N,)."""
        order = {name: label for label, name in enumerate(self.class_names)}
        paths = np.array([path for files in listing.values() for path in files], dtype=object)
        return paths, np.array([order[name] for name, files in listing.items() for _ in files], dtype=np.int64)

    def _decode(self, paths: np.ndarray, labels: np.ndarray) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import decode_files

        return ImageSet(decode_files(paths.tolist(), self.image_size, self.channels), torch.from_numpy(labels))


def list_images(folder: Path, only_class: str) -> Listing:
    """Return the image files below a folder by class: by sub-folder, where any of them holds images.

    Args:
        folder: Folder to search.
        only_class: Name of the one class if there are no such sub-folders.

    Raises:
        FlgenError: If there is no image at all.
    """
    loose = sorted(path for path in folder.iterdir() if _is_image(path.name) and path.is_file())
    listing = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and (found := _images_below(path)):
            listing[path.name] = found
    if listing and loose:
        warnings.warn(
            f"{folder} has sub-folders, which are the classes; its {len(loose)} loose images are left out", stacklevel=2
        )
    if not listing and not loose:
        raise FlgenError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}); give another with `--data.root`")
    return listing or {only_class: loose}


def _images_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
