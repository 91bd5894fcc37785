"""Sample grids: what the model draws, as a PNG in the run folder and an image in every logger."""

from __future__ import annotations

from collections.abc import Mapping

from flgen.callbacks.base import Callback
from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flgen.trainer import FederatedTrainer


class SampleGrids(Callback):
    """Draws `samples/round-NNNNN.png` at each evaluation: the headline kind of model.

    Args:
        images: Number of images in a grid.
    """

    def __init__(self, images: int = 64) -> None:
        self.images = images

    def on_evaluation_end(
        self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float], images: Mapping[str, Tensor]
    ) -> None:
        """Write the first kind's grid; rank 0 has the images."""
        if not images:
            return
        from flgen.callbacks.loggers import log_image_grid
        from flgen.figures.sample_grid import sample_grid, save_png

        headline = next(iter(images.values()))
        grid = sample_grid(headline[: self.images], columns=None)
        save_png(grid, trainer.folder.samples / f"round-{round:05d}.png")
        for logger in trainer.loggers:
            log_image_grid(logger, "samples", grid, round)
