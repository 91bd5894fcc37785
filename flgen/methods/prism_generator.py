"""A generator that PRISM trained, as a frozen map from noise to images: what FedKTL needs, and offline.

w, m, BatchNorm <- a checkpoint, or a ticket
z ~ N(0, I_H) ; image = (G(z; w m) + 1) / 2
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment import option_ranges
from flgen.methods.finished_prism import CheckpointGenerator, FinishedGenerator, TicketGenerator
from flgen.synthesis.latent_generator import OPTION, LatentGenerator

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData


class PrismGenerator(LatentGenerator):
    """The generator of a PRISM run's checkpoint, or of its ticket (FedKTL's specification, section 2.2).

    It draws the images that `flgen sample` draws from the same on a CPU, with BatchNorm recalibrated, given the same
    noise. The data set of the run must not be the clients': train it on other data, or on the public part.

    Args:
        checkpoint: Folder of the checkpoint, such as runs/x/checkpoints/last; config.yaml of the run is read as well.
        masks: The mask: "sampled_once" from the probabilities, or "threshold", what is kept more likely than not. A
            ticket has its own.
        recalibration_batches: Noise batches of 64 that measure BatchNorm's statistics; null takes the run's number. A
            ticket has been measured.
        batch_size: Images drawn at once; it limits memory alone.
        ticket: A file that `flgen export` wrote, in place of a checkpoint.

    Raises:
        UsageError: An option is out of its range or has no place, or checkpoint and ticket are both given or both not.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        masks: Literal["sampled_once", "threshold"] = "sampled_once",
        recalibration_batches: int | None = None,
        batch_size: int = 64,
        ticket: str | None = None,
    ) -> None:
        option_ranges.at_least(
            "method.generator", 1, recalibration_batches=recalibration_batches, batch_size=batch_size
        )
        if (checkpoint is None) == (ticket is None):
            raise UsageError(f"{OPTION} PrismGenerator: give one of {OPTION}.checkpoint and {OPTION}.ticket")
        if ticket is not None and (masks != "sampled_once" or recalibration_batches is not None):
            raise UsageError(
                f"{OPTION}.ticket {ticket}: a ticket has a mask and statistics of its own; leave out masks and "
                "recalibration_batches, and give them when you export"
            )
        self.checkpoint = checkpoint
        self.masks = masks
        self.recalibration_batches = recalibration_batches
        self.batch_size = batch_size
        self.ticket = ticket
        self._source: FinishedGenerator
        if ticket is not None:
            self._source = TicketGenerator(f"{OPTION}.ticket", ticket)
        elif checkpoint is not None:
            self._source = CheckpointGenerator(f"{OPTION}.checkpoint", checkpoint, masks, recalibration_batches)

    @property
    def latent_dim(self) -> int:
        """Length of the noise."""
        return int(self._generator.latent)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the run was trained on."""
        return self._generator.channels, self._generator.image_size, self._generator.image_size

    def learned_from(self) -> str:
        """Return the data set of the run."""
        return self._source.origin().data

    def provenance(self) -> dict[str, str | None]:
        """Return run, round, data set and the digest of what was learnt; with the seed they are all weights."""
        origin = self._source.origin()
        return {
            **super().provenance(),
            "name": f"PRISM {type(self._generator).__name__}",
            "data_class": origin.data_class or None,
            "run": origin.run,
            "round": str(origin.round),
            "seed": str(origin.seed),
            "masks": origin.masks,
            "sha256": self._source.digest(),
        }

    def check(self, data: LabelledData) -> None:
        """Make sure that the checkpoint or ticket is whole, is one of PRISM's, and fits the generator that it names.

        Raises:
            UsageError: It is of another method, or its run was trained on the clients' data.
            FlgenError: It is missing or damaged.
        """
        self._generator  # noqa: B018  (building it is the check)
        super().check(data)

    @cached_property
    def _generator(self) -> Any:
        """The generator with its frozen weights, on the CPU until it is loaded."""
        return self._source.network

    def networks(self) -> list[nn.Module]:
        """Return the generator."""
        return [self._generator]

    def load(self, device: torch.device | str) -> None:
        """Put the generator on a device, with its mask, and with what BatchNorm normalises by."""
        super().load(device)
        self._source.finish()

    def draw(self, w: Tensor) -> Tensor:
        """Return (G(z) + 1) / 2."""
        images: Tensor = self._generator(w[:, :, None, None])
        return (images + 1.0) / 2.0
