"""A small CNN that 100 clients train on striped images: what the benchmarks of FedAvg and of DisPFL share."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from clocks import Seconds
from torch import Tensor

from flgen import IID, Callback, Evaluation, FederatedTrainer, SmallCNN
from flgen.callbacks import ClassPictures, RoundProgress, SampleGrids
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.federation.streams import RandomStreams
from flgen.methods.base import Method

SEED = 3
CLIENTS = 100
BATCH_SIZE = 10
LEARNING_RATE = 0.1
NEVER = 10**9


class Stripes(ImageData):
    """Images of 28x28 with one stripe whose place tells the class, and noise.

    Args:
        samples: Number of training images.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self._samples = samples

    def layout(self) -> ImageLayout:
        return ImageLayout("stripes", tuple("0123456789"), channels=1, image_size=28)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._draw(self._samples, 0), self._draw(BATCH_SIZE, 1)

    def _draw(self, count: int, seed: int) -> ImageSet:
        draws = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 128, (count, 1, 28, 28), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 10, (count,), generator=draws)
        for label in range(10):
            images[labels == label, :, 2 * label + 4 : 2 * label + 6] += 127
        return ImageSet(images, labels)


@dataclass(frozen=True)
class Setting:
    """One trial's sizes: all clients have the same number of samples.

    Args:
        samples_per_client: Training samples of each client.
        rounds: Number of rounds.
        cohort: Clients per round; None means everybody.
        clients: Number of clients.
    """

    samples_per_client: int
    rounds: int
    cohort: int | None = None
    clients: int = CLIENTS

    def data(self) -> Stripes:
        """Return the images."""
        data = Stripes(self.samples_per_client * self.clients)
        data.setup()
        return data

    def rows(self, data: Stripes) -> list[Tensor]:
        """Return the rows of each client: those that flgen deals out."""
        dealt = data.split_clients(IID(self.clients), RandomStreams(SEED).numpy("partition"))
        return [torch.from_numpy(rows) for rows in dealt]


def initial_model() -> SmallCNN:
    torch.manual_seed(SEED)
    return SmallCNN(image_size=28, learning_rate=LEARNING_RATE)


class Bare(Protocol):
    """A method with no framework around it."""

    def plan(self, t: int) -> list[Any]:
        """Return what round t asks of each client: what flgen draws, made ready outside the measurement."""
        ...

    def round(self, plan: list[Any]) -> None:
        """Run a round, or the part of one that a shorter plan asks for."""
        ...


class Turns(Callback):
    """Runs a bare loop after every round of a fit, from the same state, and times both; the last callback.

    Args:
        bare: The bare loop.
        meet: Returns the largest difference between what the two have come to, and lets the bare loop go on from
            flgen's: over many rounds, training would blow up the last bit of rounding.

    Attributes:
        times: (flgen's time, the bare loop's time), evaluation left out, of every round but the first, in which pages
            and caches are filled.
        deviation: The largest difference that there ever was.
    """

    def __init__(self, bare: Bare, meet: Callable[[], float]) -> None:
        self.bare, self.meet = bare, meet
        self.times: list[tuple[Seconds, Seconds]] = []
        self.deviation = 0.0

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._began = Seconds.now()

    def on_evaluation_start(self, trainer: FederatedTrainer, round: int) -> None:
        self._evaluating = Seconds.now()

    def on_evaluation_end(
        self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float], images: Mapping[str, Tensor]
    ) -> None:
        self._began += Seconds.now() - self._evaluating

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        ours = Seconds.now() - self._began
        plan = self.bare.plan(round)
        began = Seconds.now()
        self.bare.round(plan)
        if round > 1:
            self.times.append((ours, Seconds.now() - began))
        self.deviation = max(self.deviation, self.meet())
        self._began = Seconds.now()


class ProcessorTimes(Callback):
    """Every rank writes the processor time of its rounds to a file of its own.

    Args:
        folder: Where the files go, one per process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._seconds: list[float] = []

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        self._began = time.process_time()

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        self._seconds.append(time.process_time() - self._began)

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        (self.folder / f"processor-{os.getpid()}.json").write_text(json.dumps(self._seconds))

    def read(self) -> list[float]:
        """Return the processor time of the busiest rank, by round."""
        ranks = [json.loads(path.read_text()) for path in sorted(self.folder.glob("processor-*.json"))]
        return [max(seconds) for seconds in zip(*ranks, strict=True)]


def fit(
    method: Method, setting: Setting, data: Stripes, run_dir: Path, *, callbacks: list[Callback], devices: int = 1
) -> None:
    """Run flgen with the display and callbacks that every run has, and those given."""
    trainer = FederatedTrainer(
        rounds=setting.rounds,
        accelerator="cpu",
        devices=devices,
        threads_per_rank=1,
        clients_per_round=setting.cohort,
        checkpoint_every=NEVER,
        callbacks=[RoundProgress(), SampleGrids(), ClassPictures(), *callbacks],
    )
    trainer.fit(
        method,
        initial_model(),
        data,
        IID(setting.clients),
        evaluation=Evaluation(every=NEVER, extractors=[], personal=False),
        run_dir=run_dir,
        seed_everything=SEED,
    )


def round_times(run_dir: Path) -> list[float]:
    """Return the seconds of every round but the first, in which pages and caches are filled."""
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["time/round_s"]) for row in csv.DictReader(file)][1:]


def side_by_side(make_bare: Callable[[], Bare], rounds: int) -> tuple[float, float]:
    """Return the seconds of some bare rounds in one process, and in two that share the clients of each."""
    context = multiprocessing.get_context("fork")

    def work(share: slice, start: Any, seconds: Any) -> None:
        bare = make_bare()
        bare.round(bare.plan(1)[:1])
        start.wait()
        began = time.perf_counter()
        for t in range(1, rounds + 1):
            bare.round(bare.plan(t)[share])
        seconds.put(time.perf_counter() - began)

    longest = []
    for shares in ([slice(None)], [slice(0, None, 2), slice(1, None, 2)]):
        start, seconds = context.Barrier(len(shares)), context.SimpleQueue()
        processes = [context.Process(target=work, args=(share, start, seconds)) for share in shares]
        for process in processes:
            process.start()
        longest.append(max(seconds.get() for _ in shares))
        for process in processes:
            process.join()
    return longest[0], longest[1]
