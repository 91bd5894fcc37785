"""CelebA: faces with forty attributes."""

from __future__ import annotations

from pathlib import Path

from flgen.data.downloadable import DownloadableData
from flgen.data.image_data import ImageData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from flgen.data.image_set import ImageSet
else:
    np = deferred_module("numpy")

CROP = 160
TRAIN, TEST = "0", "2"


class CelebA(DownloadableData, ImageData):
    """CelebA: aligned faces of 178x218 pixels, RGB, with forty binary attributes; the label is `Male`.

    `img_align_celeba/`, `list_attr_celeba.txt` and `list_eval_partition.txt` lie in `root/celeba` (torchvision's
    place) or in `root` itself. The official training and test splits are used (162,770 and 19,962 images), a central
    crop of 160x160 is resized. All images are decoded into memory; `flgen partition` stores them in that size.

    Args:
        root: Folder of the files.
        image_size: Side of the images, pixels.
        download: Fetch the files into `root` if they are missing (needs the package `gdown`).
    """

    def __init__(self, root: str = "data", image_size: int = 32, download: bool = False) -> None:
        super().__init__(root, download)
        check_image_size(image_size)
        self._image_size = image_size

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images."""
        return ImageLayout("celeba", ("Female", "Male"), channels=3, image_size=self._image_size)

    @property
    def _folder(self) -> Path:
        return self.root if (self.root / "list_attr_celeba.txt").is_file() else self.root / "celeba"

    def missing(self) -> str | None:
        """Return what was not found, and where; None if the data are complete."""
        folder = self._folder
        files = [name for name in ("list_attr_celeba.txt", "list_eval_partition.txt") if not (folder / name).is_file()]
        folders = [] if (folder / "img_align_celeba").is_dir() else ["img_align_celeba/"]
        return f"no {', '.join(files + folders)} in {folder}" if files or folders else None

    def fetch(self) -> None:
        """Download the files into `root/celeba` and unpack them."""
        import torchvision.datasets

        torchvision.datasets.CelebA(self.root, download=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Decode the images; return the official training and test splits."""
        files, names, attributes, splits = self._read_tables()
        return (
            self._decode(files[splits == TRAIN], names, attributes[splits == TRAIN]),
            self._decode(files[splits == TEST], names, attributes[splits == TEST]),
        )

    def _read_tables(self) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
        """Return file names (N,), attribute names, attributes (N, 40) as 0 and 1, and the splits' codes (N,)."""
        # torchvision's reader also demands and parses boxes, landmarks and identities, which nothing here uses.
        attribute_file, split_file = self._folder / "list_attr_celeba.txt", self._folder / "list_eval_partition.txt"
        try:
            with attribute_file.open() as lines:
                names = [line.split() for _, line in zip(range(2), lines, strict=False)][1]
            if "Male" not in names:
                raise ValueError("no attribute Male")
            columns = range(1, len(names) + 1)
            signs = np.loadtxt(attribute_file, dtype=np.int8, skiprows=2, usecols=columns, ndmin=2)
            files = np.loadtxt(attribute_file, dtype=str, skiprows=2, usecols=0, ndmin=1)
        except (OSError, ValueError, IndexError) as error:
            raise _damaged(attribute_file, error) from error
        try:
            split_of = dict(np.loadtxt(split_file, dtype=str, usecols=(0, 1), ndmin=2).tolist())
            splits = np.array([split_of[file] for file in files])
        except (OSError, ValueError) as error:
            raise _damaged(split_file, error) from error
        except KeyError as error:
            raise _damaged(split_file, f"{error.args[0]} has no split") from error
        return files, names, (signs == 1).astype(np.int64), splits

    def _decode(self, files: np.ndarray, names: list[str], attributes: np.ndarray) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import decode_files

        if len(files) == 0:
            raise _damaged(self._folder / "list_eval_partition.txt", "a split without images")
        paths = [self._folder / "img_align_celeba" / file for file in files]
        images = decode_files(paths, self.image_size, self.channels, central_crop, fast_jpeg=False)
        columns = {name: torch.from_numpy(attributes[:, i].copy()) for i, name in enumerate(names)}
        return ImageSet(images, columns["Male"].clone(), columns)


def central_crop(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the central 160x160 pixels of a face; an image smaller than that counts as damaged."""
    if min(image.size) < CROP:
        raise ValueError(f"{image.width}x{image.height} pixels are too few for a crop of {CROP}")
    left, upper = round((image.width - CROP) / 2), round((image.height - CROP) / 2)
    return left, upper, left + CROP, upper + CROP


def _damaged(path: Path, reason: BaseException | str) -> FlgenError:
    from flgen.data.pixels import one_line

    text = one_line(reason) if isinstance(reason, BaseException) else reason
    return FlgenError(f"{path} is damaged ({text}); fetch it again")
