"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that need no download."""

from __future__ import annotations

from typing import Literal

from flgen.data.holdout import check_fraction, stratified_holdout
from flgen.data.image_data import ImageData, ImageLayout, check_image_size
from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import numpy as np

    from flgen.data.image_set import ImageSet
    from flgen.data.labelled_data import LabelledData
else:
    np = deferred_module("numpy")

TEST_FRACTION = 0.2


class Digits(ImageData):
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn; nothing is downloaded.

    The grey levels 0..16 become 0..255. The same fraction of every digit is held out, the same images in every run.

    Args:
        image_size: Side of the images, pixels; null is their own, 8, others are interpolated.
        test_fraction: Share of the images to hold out.
        part: Which training images there are: "all", or one half of every digit, the "public" one, on which a
            generator may be trained, or the "private" one, which is left to the clients; the test images are the same.
    """

    def __init__(
        self,
        image_size: int | None = None,
        test_fraction: float = TEST_FRACTION,
        part: Literal["all", "public", "private"] = "all",
    ) -> None:
        super().__init__()
        # Null by default: the parser hands the values of this default data set on to another that is named instead.
        image_size = 8 if image_size is None else image_size
        check_image_size(image_size)
        check_fraction(test_fraction)
        self._image_size = image_size
        self.test_fraction = test_fraction
        self.part = part

    def layout(self) -> ImageLayout:
        """Return name, classes, channels and size of the images."""
        name = "digits" if self.test_fraction == TEST_FRACTION else f"digits-{self.test_fraction:g}"
        if self.part != "all":  # the halves depend on which images are held out: the name says so
            name = f"{name}-{self.part}"
        return ImageLayout(name, tuple("0123456789"), channels=1, image_size=self._image_size)

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Read the images; return the training and the test images."""
        import torch
        from sklearn.datasets import load_digits

        from flgen.data.image_set import ImageSet
        from flgen.data.pixels import resize

        grey_levels, targets = load_digits(return_X_y=True)
        images = torch.from_numpy(grey_levels).mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
        digits = ImageSet(resize(images, self.image_size), torch.from_numpy(targets).to(torch.int64))
        kept, held_out = self._rows(targets)
        return digits.subset(torch.from_numpy(kept)), digits.subset(torch.from_numpy(held_out))

    def shares_samples_with(self, other: LabelledData) -> bool:
        """Return whether a training image is one of another data set's; digits of any size are known by number."""
        if not isinstance(other, Digits):
            return super().shares_samples_with(other)
        from sklearn.datasets import load_digits

        _, targets = load_digits(return_X_y=True)
        (ours, _), theirs = self._rows(targets), np.concatenate(other._rows(targets))
        return bool(np.isin(ours, theirs).any())

    def _rows(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the training and of the held-out images, int64, by the digits of all."""
        kept, held_out = stratified_holdout(targets, self.test_fraction)
        if self.part != "all":
            private, public = stratified_holdout(targets[kept], 0.5)
            kept = kept[public if self.part == "public" else private]
        return kept, held_out
