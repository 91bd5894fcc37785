"""How a client trains on its own data, as options that every method with local epochs shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flgen.errors import UsageError

Augmentation = Literal["none", "crop_flip", "resized_crop_flip"]


@dataclass(frozen=True)
class LocalTraining:
    """One client's local training in one round; optimiser, learning rate and weight decay are the module's own.

    Args:
        epochs: Passes over its data that a client makes per round, E.
        batch_size: Samples per local step, B; the last batch of a pass may be smaller.
        learning_rate_decay: Factor per round of the module's learning rate: in round t it is multiplied by
            learning_rate_decay^(t - 1).
        clip_norm: Largest global L2 norm of a step's gradient, before weight decay is added; null does not clip.
        augmentation: "crop_flip" shifts every image by up to 4 pixels and mirrors half of them, "resized_crop_flip"
            takes a random part of every image for the whole and mirrors half of them, "none" leaves them as they are.

    Raises:
        UsageError: A number is out of its range.
    """

    epochs: int = 1
    batch_size: int = 10
    learning_rate_decay: float = 1.0
    clip_norm: float | None = None
    augmentation: Augmentation = "none"

    def __post_init__(self) -> None:
        for option in ("epochs", "batch_size"):
            if getattr(self, option) < 1:
                raise UsageError(f"--method.training.{option} is {getattr(self, option)}: give 1 or more")
        if not 0 < self.learning_rate_decay <= 1:
            raise UsageError(
                f"--method.training.learning_rate_decay is {self.learning_rate_decay}: give a factor above 0, at most 1"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"--method.training.clip_norm is {self.clip_norm}: give a number above 0, or null")


# What the DisPFL paper and its baselines train with (dispfl.md, section 4).
PUBLISHED = LocalTraining(epochs=5, batch_size=128, learning_rate_decay=0.998, clip_norm=10.0)
