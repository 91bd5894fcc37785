"""PRISM at 32x32 as flgen runs it, with its local steps timed from the inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from clocks import NO_TIME, Seconds
from torch import Tensor

from flgen import IID, Callback, Evaluation, FederatedTrainer, Prism, ResnetGenerator
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.models import Loss

SEED = 5
NEVER = 10**9


class Blobs(ImageData):
    """Grey images of 32x32 with one smooth blob each.

    Args:
        samples: Number of training images.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples = samples

    def layout(self) -> ImageLayout:
        return ImageLayout("blobs", ("blob",), channels=1, image_size=32)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._draw(self._samples, 0), self._draw(4, 1)

    def _draw(self, count: int, seed: int) -> ImageSet:
        draws = torch.Generator().manual_seed(seed)
        axis = torch.arange(32.0)
        row, column, width = (torch.rand(3, count, 1, 1, generator=draws) * 16 + 8).unbind(0)
        blobs = torch.exp(-((axis[:, None] - row) ** 2 + (axis - column) ** 2) / width**2)
        images = (255 * blobs).to(torch.uint8).unsqueeze(1)  # (count, 1, 32, 32)
        return ImageSet(images, torch.zeros(count, dtype=torch.int64))


class ClockedGenerator(ResnetGenerator):
    """Remembers when a local step began: drawing noise is the first thing of it."""

    step_began = NO_TIME

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        self.step_began = Seconds.now()
        return super().noise(count, generator)


class StepClock(Callback):
    """Times local steps and whole rounds; the last callback.

    Args:
        model: Whose steps are timed.
        after_step: Called after each local step, outside of all times.

    Attributes:
        steps: Time of every local step.
        rounds: (time of the round, time of its local steps) of every round without evaluation.
    """

    def __init__(self, model: ClockedGenerator, after_step: Callable[[], None] | None = None) -> None:
        self.model, self.after_step = model, after_step
        self.steps: list[Seconds] = []
        self.rounds: list[tuple[Seconds, Seconds]] = []

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._began, self._local = Seconds.now(), NO_TIME

    def on_local_step(self, trainer: FederatedTrainer, round: int, client: int, step: int, steps: int) -> None:
        ended = Seconds.now()
        self.steps.append(ended - self.model.step_began)
        self._local += self.steps[-1]
        if self.after_step:
            self.after_step()
            self._began += Seconds.now() - ended

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        if "time/evaluation_s" not in metrics:
            self.rounds.append((Seconds.now() - self._began, self._local))
        self._began, self._local = Seconds.now(), NO_TIME


def generator(loss: Loss) -> ClockedGenerator:
    """Return the published generator of 32x32 grey images: 3,543,616 masked weights."""
    return ClockedGenerator(image_size=32, channels=1, latent=128, width=64, loss=loss)


def fit(
    model: ClockedGenerator,
    run_dir: Path,
    *,
    clients: int,
    samples_per_client: int,
    rounds: int,
    local_steps: int,
    batch_size: int,
    callbacks: list[Callback],
    **exchange: Any,
) -> Any:
    """Run flgen's PRISM, with everything but fidelity; `exchange` says what travels. Return how it ended."""
    trainer = FederatedTrainer(
        rounds=rounds,
        accelerator="cpu",
        devices=1,
        threads_per_rank=1,
        checkpoint_every=NEVER,
        callbacks=callbacks,
    )
    return trainer.fit(
        Prism(local_steps=local_steps, batch_size=batch_size, recalibration_batches=1, **exchange),
        model,
        Blobs(clients * samples_per_client),
        IID(clients),
        evaluation=Evaluation(every=NEVER, images=2, extractors=[]),
        run_dir=run_dir,
        seed_everything=SEED,
    )
