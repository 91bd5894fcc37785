"""Rounds between a few clients whose losses are known: clients pull one weight matrix towards targets of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor

from flgen.client_turns import ErrorPolicy, state_of
from flgen.data import ImageData, Partitioner
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.federation.interruption import StopRequest
from flgen.federation.launch import build_fabric
from flgen.federation.state_store import ClientStateStore
from flgen.federation.training_options import LocalTraining
from flgen.job import Job, prepare_job
from flgen.measurement import measure_clients
from flgen.methods import PeerMethod
from flgen.peer_round import run_peer_round
from flgen.star_round import run_star_round
from flgen.topology.channel import Channel
from flgen.wire.ledger import Ledger

ONE_STEP = LocalTraining(epochs=1, batch_size=1000)


class OneClassEach(Partitioner):
    """Client k holds the samples of class k."""

    def _deal(self, labels: np.ndarray, attributes: Mapping[str, np.ndarray], generator: Any) -> list[np.ndarray]:
        return [np.flatnonzero(labels == client) for client in range(self.clients)]


class Labels(ImageData):
    """Black images; the label says which client's loss is meant.

    Args:
        samples: Training images of each class.
    """

    def __init__(self, samples: Sequence[int]) -> None:
        super().__init__()
        self._samples = samples

    def layout(self) -> ImageLayout:
        return ImageLayout("labels", tuple(str(k) for k in range(len(self._samples))), channels=1, image_size=4)

    def load(self) -> tuple[ImageSet, ImageSet]:
        labels = torch.repeat_interleave(torch.arange(len(self._samples)), torch.tensor(self._samples))
        tested = torch.arange(len(self._samples))
        return self._black(labels), self._black(tested)

    def _black(self, labels: Tensor) -> ImageSet:
        return ImageSet(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), labels)


class Pull(LightningModule):
    """Loss 1/2 ||w - c_k||^2 of the client k that a batch belongs to; w is one row, so that it can be masked.

    Args:
        start: Initial w.
        targets: c_k, by client.
        learning_rate: Of SGD.
    """

    def __init__(self, start: Sequence[float], targets: Sequence[Sequence[float]], learning_rate: float = 0.1) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([start], dtype=torch.float32))
        self.targets = torch.tensor(targets, dtype=torch.float32)
        self.learning_rate = learning_rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0.5 * (self.w[0] - self.targets[batch[1][0]]).square().sum()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", (self.w[0] - self.targets[batch[1][0]]).square().sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class Remembering(Pull):
    """Counts, in buffers, what it is trained on: `seen` adds up labels plus one, `batches` counts."""

    seen: Tensor
    batches: Tensor

    def __init__(self, start: Sequence[float], targets: Sequence[Sequence[float]], learning_rate: float = 0.1) -> None:
        super().__init__(start, targets, learning_rate)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.training:
            self.seen += batch[1][0] + 1
            self.batches += 1
        return super().training_step(batch, batch_idx)


class Trial:
    """A few rounds of a method on one process, looked at from inside.

    Args:
        method: The algorithm.
        model: What its clients train.
        samples: Training samples of each client; there are as many clients.
        rounds: Planned rounds T.
        states: Clients' states before the first round, by id; others begin as the method says.
        data: Replaces the samples.
        partition: Replaces one class per client.
        clients_per_round: Size of a cohort; None means everybody.
    """

    def __init__(
        self,
        method: Any,
        model: LightningModule,
        samples: Sequence[int] = (1, 1),
        *,
        rounds: int = 4,
        states: Mapping[int, Mapping[str, Tensor]] | None = None,
        data: ImageData | None = None,
        partition: Partitioner | None = None,
        clients_per_round: int | None = None,
    ) -> None:
        data = data or Labels(samples)
        data.setup()
        partition = partition or OneClassEach(len(samples))
        self.method = method
        self.job: Job = prepare_job(method, model, data, partition, 0, 1, clients_per_round, rounds)
        fabric = build_fabric(
            accelerator="cpu", devices=1, num_nodes=1, precision="32-true", timeout_s=60, callbacks=[]
        )
        self.job.set_up_method(fabric)
        self.channel = Channel(0, 1, fabric.device, 60, 60)
        method.topology.open(self.channel, Ledger())
        self.store = ClientStateStore(fabric.device, len(self.job.federation), 100, Path("unused"))
        for client, state in (states or {}).items():
            self.store.stage(client, state)
        self.store.commit()

    def round(self, t: int, **changed: Any) -> Any:
        """Run round t, from 1, with tests of the clients' models; return its outcome.

        Args:
            t: The round.
            changed: Replaces what the round is run with: `stop`, `policy`, `call`, between peers `evaluated`.
        """
        given = {"stop": StopRequest(), "policy": ErrorPolicy(), "call": lambda *_, **__: None, **changed}
        if isinstance(self.method, PeerMethod):
            return run_peer_round(self.method, self.job.federation, self.store, t, **{"evaluated": True, **given})
        return run_star_round(self.method, self.job.federation, self.store, t, **given)

    def evaluate(self, t: int) -> dict[int, dict[str, float]]:
        """Return what each client's models of a method with a server are worth after round t, by client."""
        return measure_clients(self.job, lambda client: state_of(self.method, self.store, client), t, self.channel)

    def state(self, client: int) -> dict[str, Tensor]:
        """Return a client's state after the last round."""
        return self.store.load(client)


def row(*values: float) -> Tensor:
    """Return float32 values (d,)."""
    return torch.tensor(values, dtype=torch.float32)


def mask(*bits: int) -> Tensor:
    """Return a mask (P,)."""
    return torch.tensor(bits, dtype=torch.bool)


def steps_seen(of: list[tuple[int, int, int]]) -> Any:
    """Return a `call` for `Trial.round` that appends (client, steps done, steps in all) of every local step."""

    def call(hook: str, **about: int) -> None:
        if hook == "on_local_step":
            of.append((about["client"], about["step"], about["steps"]))

    return call
