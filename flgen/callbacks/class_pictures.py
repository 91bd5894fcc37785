"""Class pictures: what clients are sent of each class, as a PNG in the run folder and an image in every logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flgen.callbacks.base import Callback
from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.trainer import FederatedTrainer


class ClassPictures(Callback):
    """Writes `pairs/round-NNNNN.png` at each evaluation, for methods whose server sends clients a picture per class.

    The picture is one row of them pixel by pixel, in the order of the classes; where a class has none it is
    transparent. Loggers get the same as a grid, enlarged, with grey in place of a class that has none.
    """

    def on_class_pictures(
        self, trainer: FederatedTrainer, round: int, pictures: Mapping[int, Tensor], class_names: Sequence[str]
    ) -> None:
        """Write the row; it is rank 0 that has the pictures."""
        from flgen.callbacks.loggers import log_image_grid
        from flgen.figures.picture_row import picture_grid, picture_row
        from flgen.figures.sample_grid import save_png

        save_png(picture_row(pictures, len(class_names)), trainer.folder.pairs / f"round-{round:05d}.png")
        if trainer.loggers:
            grid = picture_grid(pictures, len(class_names))
            for logger in trainer.loggers:
                log_image_grid(logger, "pairs", grid, round)
