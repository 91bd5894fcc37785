"""Oxford Flowers-102, in the layout in which torchvision keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flgen.data.downloadable import DownloadableData
from flgen.data.image_data import ImageData, ImageLayout, Pixels, check_image_size
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from flgen.data.image_set import ImageSet
else:
    np = deferred_module("numpy")
    torch = deferred_module("torch")

FOLDER = "flowers-102"
LABELS, SPLITS, IMAGES = "imagelabels.mat", "setid.mat", "jpg"
TRAIN, VALIDATION, TEST = "trnid", "valid", "tstid"
KEPT = 224 / 256  # of the shorter side: resized to 256 pixels, of which the central 224 are cut out

# The published list, in natural words: without its question mark, its trailing blank and two joining hyphens.
FLOWERS = """
pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold; tiger lily; moon orchid;
bird of paradise; monkshood; globe thistle; snapdragon; colt's foot; king protea; spear thistle; yellow iris;
globe flower; purple coneflower; peruvian lily; balloon flower; giant white arum lily; fire lily; pincushion flower;
fritillary; red ginger; grape hyacinth; corn poppy; prince of wales feathers; stemless gentian; artichoke;
sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly; ruby-lipped cattleya;
cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy; daffodil; sword lily; poinsettia;
bolero deep blue; wallflower; marigold; buttercup; oxeye daisy; common dandelion; petunia; wild pansy; primula;
sunflower; pelargonium; bishop of llandaff; gaura; geranium; orange dahlia; pink-yellow dahlia; cautleya spicata;
japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum; spring crocus; bearded iris;
windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple; morning glory; passion flower; lotus;
toad lily; anthurium; frangipani; clematis; hibiscus; columbine; desert rose; tree mallow; magnolia; cyclamen;
watercress; canna lily; hippeastrum; bee balm; ball moss; foxglove; bougainvillea; camellia; mallow;
mexican petunia; bromelia; blanket flower; trumpet creeper; blackberry lily
"""
CLASSES = tuple(name.strip() for name in FLOWERS.replace("\n", " ").split(";"))


class Flowers102(DownloadableData, ImageData):
    """Oxford Flowers-102: photographs of 102 kinds of flowers, RGB; the official 1,020 training and 6,149 test images.

    The folder `flowers-102` lies in `root`, or is `root` itself: `jpg/`, `imagelabels.mat`, `setid.mat`. Every image is
    scaled so that its shorter side is 8/7 of `image_size`, and its centre is kept: 256 and 224 pixels, the transform of
    GPT-FL. FedKTL has all 8,189 images with nothing cut off, 64x64. All images are decoded into memory (1.1 GB at 224
    pixels). Mean and deviation of the channels are those of ImageNet.

    Args:
        root: Folder that holds `flowers-102`.
        image_size: Side of the images, pixels.
        download: Fetch the files into `root` if they are missing.
        with_validation: Whether the official 1,020 validation images are training images, too, or left unused.
        whole: Whether the whole photograph is pressed into the square, in place of its centre.
        pixels: Whether classifiers get pixels standardised by these numbers, or "centred", in [-1, 1], as in FedKTL
            (section 4).

    Source: Nilsback and Zisserman, ICVGIP 2008; GPT-FL, sections 4.1 and 5.1; FedKTL, section 4.
    """

    def __init__(
        self,
        root: str = "data",
        image_size: int = 224,
        download: bool = False,
        with_validation: bool = False,
        whole: bool = False,
        pixels: Pixels = "standardized",
    ) -> None:
        super().__init__(root, download)
        check_image_size(image_size)
        self._image_size = image_size
        self.with_validation = with_validation
        self.whole = whole
        self.pixels: Pixels = pixels

    def layout(self) -> ImageLayout:
        """Return name, classes, channels, size and normalisation of the images."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        layout = ImageLayout("flowers102", CLASSES, channels=3, image_size=self._image_size, mean=mean, std=std)
        return layout.scaled(self.pixels)

    @property
    def _folder(self) -> Path:
        return self.root if (self.root / LABELS).is_file() else self.root / FOLDER

    def missing(self) -> str | None:
        """Return what was not found, and where; None if the data are complete."""
        absent = [name for name in (LABELS, SPLITS) if not (self._folder / name).is_file()]
        absent += [f"{IMAGES}/"] * (not (self._folder / IMAGES).is_dir())
        return f"no {', '.join(absent)} in {self._folder}" if absent else None

    def fetch(self) -> None:
        """Download the files into `root/flowers-102` and unpack them."""
        import torchvision.datasets

        torchvision.datasets.Flowers102(self.root, download=True)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Decode the images; return the official training (and validation) images, and the test images."""
        labels = self._table(LABELS, "labels")
        parts = [TRAIN, VALIDATION] if self.with_validation else [TRAIN]
        training = np.concatenate([self._table(SPLITS, part) for part in parts])
        return self._decode(labels, training), self._decode(labels, self._table(SPLITS, TEST))

    def decode_sample(self, content: bytes, extension: str) -> torch.Tensor:
        """Return one PNG or JPEG file as this data set stores its photographs: scaled, its centre or all of it kept.

        Args:
            content: The file's bytes.
            extension: `.png`, `.jpg` or `.jpeg`; the dot may be missing.

        Returns:
            uint8 tensor (3, H, W).

        Raises:
            FlgenError: If the file is of another kind, or damaged.
        """
        from flgen.data.pixels import decode_image

        return decode_image(content, extension, self.image_size, self.channels, self._framing)

    @property
    def _framing(self) -> Callable[[Image.Image], tuple[float, float, float, float]]:
        return whole_image if self.whole else central_part

    def _table(self, file: str, variable: str) -> np.ndarray:
        """Return a variable of a MATLAB file, numbers from 1, int64 (N,)."""
        from flgen.data.matlab_numbers import read_numbers
        from flgen.data.pixels import one_line

        path = self._folder / file
        try:
            values = read_numbers(path, variable)
            if len(values) == 0 or values.min() < 1:
                raise ValueError(f"{variable} must count from 1")
        except (OSError, ValueError) as error:
            raise FlgenError(
                f"{path} is damaged ({one_line(error)}); remove it and fetch it again with `--data.download true`"
            ) from error
        return values

    def _decode(self, labels: np.ndarray, numbers: np.ndarray) -> ImageSet:
        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import decode_files

        if numbers.max() > len(labels):
            raise FlgenError(
                f"{self._folder / SPLITS} names image {numbers.max()}, but {LABELS} has {len(labels)} labels; "
                "remove both and fetch them again with `--data.download true`"
            )
        paths = [self._folder / IMAGES / f"image_{number:05d}.jpg" for number in numbers]
        images = decode_files(paths, self.image_size, self.channels, self._framing, fast_jpeg=False)
        return ImageSet(images, torch.from_numpy(labels[numbers - 1] - 1))


def central_part(image: Image.Image) -> tuple[float, float, float, float]:
    """Return the square in the middle of an image whose side is 7/8 of the image's shorter side."""
    side = min(image.size) * KEPT
    left, upper = (image.width - side) / 2, (image.height - side) / 2
    return left, upper, left + side, upper + side


def whole_image(image: Image.Image) -> tuple[float, float, float, float]:
    """Return all of an image."""
    return 0.0, 0.0, image.width, image.height
