"""FedAvg of a small CNN over 100 clients: as flgen runs it, and as the bare loop that does the same local steps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from clocks import Seconds
from torch import Tensor, nn

from flgen import IID, Callback, Evaluation, FedAvg, FederatedTrainer, SmallCNN
from flgen.callbacks import RoundProgress, SampleGrids
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.federation.clients import Client, Federation
from flgen.federation.streams import RandomStreams

SEED = 3
CLIENTS = 100
COHORT = 10
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
    """One trial's sizes: all clients have the same number of samples."""

    samples_per_client: int
    cohort: int = COHORT
    rounds: int = 8

    def data(self) -> Stripes:
        data = Stripes(self.samples_per_client * CLIENTS)
        data.setup()
        return data


def initial_model() -> SmallCNN:
    torch.manual_seed(SEED)
    return SmallCNN(image_size=28, learning_rate=LEARNING_RATE)


class BareLoop:
    """FedAvg in the fewest lines: the clients' rows, a network, SGD, and an average in float32."""

    def __init__(self, setting: Setting, data: Stripes) -> None:
        streams = RandomStreams(SEED)
        self.rows = [torch.from_numpy(rows) for rows in data.split_clients(IID(CLIENTS), streams.numpy("partition"))]
        clients = [Client(k, len(rows), streams, k, lambda device: None) for k, rows in enumerate(self.rows)]  # type: ignore[arg-type, return-value]
        self.federation = Federation(clients, streams, clients_per_round=setting.cohort)
        self.images, self.labels = data.train.images, data.train.labels
        self.network: nn.Module = initial_model().network
        self.parameters = list(self.network.parameters())
        self.weights = [parameter.detach().clone() for parameter in self.parameters]

    def cohort(self, t: int) -> list[tuple[Tensor, int]]:
        """Return the rows of each client of round t and the seed of its batches: those that flgen draws."""
        cohort = self.federation.cohort(t)
        return [(self.rows[c.id], c.streams.seed_for("batches", round=t, client=c.key)) for c in cohort]

    def round(self, cohort: list[tuple[Tensor, int]]) -> None:
        """Train every client from the same weights and average what comes out, weighted by samples."""
        average = [torch.zeros_like(weight) for weight in self.weights]
        samples = sum(len(rows) for rows, _ in cohort)
        for rows, seed in cohort:
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, self.weights, strict=True):
                    parameter.copy_(weight)
            optimizer = torch.optim.SGD(self.parameters, lr=LEARNING_RATE)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            for positions in order.split(BATCH_SIZE):
                chosen = rows[positions]
                inputs = self.images[chosen].float().div_(127.5).sub_(1)
                loss = nn.functional.cross_entropy(self.network(inputs), self.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                for total, parameter in zip(average, self.parameters, strict=True):
                    total.add_(parameter, alpha=len(rows) / samples)
        self.weights = average

    def load(self, vector: Tensor) -> None:
        """Go on from other weights (d,)."""
        parts = vector.split([weight.numel() for weight in self.weights])
        self.weights = [part.clone().view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]

    def vector(self) -> Tensor:
        """Return the weights as one vector (d,)."""
        return torch.cat([weight.flatten() for weight in self.weights])


class Alternating(Callback):
    """Runs the bare loop after every round of a fit, from the same weights, and times both; the last callback.

    Attributes:
        times: (flgen's time, the bare loop's time) of every round without evaluation.
        deviation: The largest difference between the weights that the two ever came to.
    """

    def __init__(self, method: FedAvg, bare: BareLoop) -> None:
        self.method, self.bare = method, bare
        self.times: list[tuple[Seconds, Seconds]] = []
        self.deviation = 0.0

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        self._began = Seconds.now()

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        ours = Seconds.now() - self._began
        cohort = self.bare.cohort(round)
        began = Seconds.now()
        self.bare.round(cohort)
        if "time/evaluation_s" not in metrics:
            self.times.append((ours, Seconds.now() - began))
        self.deviation = max(self.deviation, float((self.bare.vector() - self.method.w_t).abs().max()))
        self.bare.load(self.method.w_t)  # over many rounds, training would blow up the last bit of rounding
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
    method: FedAvg, setting: Setting, data: Stripes, run_dir: Path, *, callbacks: list[Callback], devices: int = 1
) -> None:
    """Run flgen's FedAvg with the display and callbacks that every run has, and those given."""
    trainer = FederatedTrainer(
        rounds=setting.rounds,
        accelerator="cpu",
        devices=devices,
        threads_per_rank=1,
        clients_per_round=setting.cohort,
        checkpoint_every=NEVER,
        callbacks=[RoundProgress(), SampleGrids(), *callbacks],
    )
    trainer.fit(
        method,
        initial_model(),
        data,
        IID(CLIENTS),
        evaluation=Evaluation(every=NEVER, extractors=[]),
        run_dir=run_dir,
        seed_everything=SEED,
    )
