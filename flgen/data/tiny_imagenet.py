"""Tiny-ImageNet, from its official folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from flgen.data.image_data import ImageData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError

if TYPE_CHECKING:
    from flgen.data.image_set import ImageSet

FOLDER = "tiny-imagenet-200"
ORIGIN = f"{FOLDER}, as published by Stanford's CS231n course"
PARTS = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")


class TinyImageNet(ImageData):
    """Tiny-ImageNet: 100,000 training and 10,000 test images of two hundred kinds of things, 64x64, RGB.

    The folder `tiny-imagenet-200` lies in `root`, or is `root` itself. Its validation images are the test set, since
    those of its test set have no labels. Classes are ordered by their WordNet ids; each has the first of its names in
    `words.txt`. All images are decoded into memory (1.4 GB). Mean and deviation of the channels are 1/2 (DisPFL,
    section 8.2).

    Args:
        root: Folder that holds `tiny-imagenet-200`.
        image_size: Side of the images, pixels; other sizes than 64 are interpolated.
    """

    def __init__(self, root: str = "data", image_size: int = 64) -> None:
        super().__init__()
        check_image_size(image_size)
        self.root = Path(root).expanduser()
        self._image_size = image_size

    def layout(self) -> ImageLayout:
        """Return name, classes, channels, size and normalisation of the images; the names come from the folder."""
        half = (0.5, 0.5, 0.5)
        return ImageLayout("tiny_imagenet", tuple(self._names.values()), 3, self._image_size, mean=half, std=half)

    @property
    def _folder(self) -> Path:
        return self.root if (self.root / "wnids.txt").is_file() else self.root / FOLDER

    @cached_property
    def _names(self) -> dict[str, str]:
        """The classes' names by WordNet id, in the order of the labels."""
        if absent := [part for part in PARTS if not (self._folder / part).exists()]:
            raise _absent(f"no {', '.join(absent)} in {self._folder}")
        wnids = sorted({line.strip() for line in _lines(self._folder / "wnids.txt")})
        words = self._folder / "words.txt"
        synonyms = dict(line.split("\t", 1) for line in _lines(words) if "\t" in line)
        if nameless := [wnid for wnid in wnids if wnid not in synonyms]:
            raise _damaged(words, f"no name of {nameless[0]}")
        return {wnid: synonyms[wnid].split(",")[0].strip() for wnid in wnids}

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Decode the images; return the training and the validation images."""
        return self._decode(*self._training_files()), self._decode(*self._validation_files())

    def _training_files(self) -> tuple[list[Path], list[int]]:
        """Return the files, sorted by class and name, and their labels."""
        paths: list[Path] = []
        labels: list[int] = []
        for label, wnid in enumerate(self._names):
            folder = self._folder / "train" / wnid / "images"
            found = sorted(folder.glob("*.JPEG"))
            if not found:
                raise _absent(f"no *.JPEG in {folder}")
            paths += found
            labels += [label] * len(found)
        return paths, labels

    def _validation_files(self) -> tuple[list[Path], list[int]]:
        """Return the files in the order of their annotations, and their labels."""
        annotations = self._folder / "val" / "val_annotations.txt"
        label_of = {wnid: label for label, wnid in enumerate(self._names)}
        paths: list[Path] = []
        labels: list[int] = []
        for line in _lines(annotations):
            name, _, rest = line.partition("\t")  # further columns: a box, which nothing here uses
            wnid = rest.partition("\t")[0].strip()
            if wnid not in label_of:
                raise _damaged(annotations, f"{name[:40]} has the class {wnid[:40] or 'nothing'}, not in wnids.txt")
            paths.append(self._folder / "val" / "images" / name)
            labels.append(label_of[wnid])
        return paths, labels

    def _decode(self, paths: Sequence[Path], labels: list[int]) -> ImageSet:
        import torch

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import decode_files

        try:
            images = decode_files(paths, self.image_size, self.channels, fast_jpeg=False)
        except FlgenError as error:
            raise FlgenError(f"{error}; the data set is {ORIGIN}") from error
        return ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        from flgen.data.pixels import one_line

        raise _damaged(path, one_line(error)) from error
    if not lines:
        raise _damaged(path, "it is empty")
    return lines


def _absent(what: str) -> FlgenError:
    return FlgenError(f"tiny_imagenet: {what}; give the folder that holds {ORIGIN}, with `--data.root`")


def _damaged(path: Path, reason: str) -> FlgenError:
    return FlgenError(f"{path} is damaged ({reason}); unpack {ORIGIN}, again")
