"""A job: everything of a run that is settled before processes start."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from flgen.callbacks.evaluation import Evaluation
from flgen.callbacks.loggers import RunLogger
from flgen.data.local_test import local_test_rows
from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.experiment.checkpoints import Checkpoint
from flgen.federation.clients import Client, Federation
from flgen.federation.streams import RandomStreams
from flgen.methods.base import Method

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric

    from flgen.data import ImageData, Partitioner


@dataclass
class Job:
    """Everything of a run that is settled before processes start.

    Args:
        method: The algorithm.
        model: The module that each rank keeps one of.
        data: The data set, loaded.
        streams: The run's random streams.
        federation: Clients and their places.
        identity: What a checkpoint must agree with.
        label_table: Training samples by client and class, int64 array (clients, classes).
    """

    method: Method
    model: LightningModule
    data: ImageData
    streams: RandomStreams
    federation: Federation
    identity: dict[str, Any]
    label_table: np.ndarray
    evaluation: Evaluation = field(default_factory=Evaluation)
    loggers: Sequence[RunLogger] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    resume: Checkpoint | None = None

    @property
    def first_round(self) -> int:
        """The round to begin with."""
        return 1 if self.resume is None else self.resume.round + 1

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            UsageError: It belongs to a run with another seed, method or partition.
        """
        differing = [key for key, value in self.identity.items() if checkpoint.identity.get(key) != value]
        if differing:
            raise UsageError(
                f"checkpoint {checkpoint.path} is of another run (different {', '.join(differing)}): use the "
                "configuration that wrote it, or start anew without --ckpt_path"
            )
        self.resume = checkpoint

    def set_up_method(self, fabric: Fabric) -> None:
        """Move the module to this rank's device and make the method's state."""
        fabric.to_device(self.model)
        self.method.setup(self.federation, self.model, self.data, fabric)
        self.federation.place_by_work(self.method.expected_work)
        for client in self.federation.clients:
            client.device = fabric.device


def prepare_job(
    method: Method,
    model: LightningModule,
    data: ImageData,
    partition: Partitioner,
    seed: int,
    world_size: int,
    clients_per_round: int | None,
    rounds: int = 1,
) -> Job:
    """Divide the loaded data among clients and return the job.

    Raises:
        UsageError: The division is impossible, there are more processes than clients, or the method refuses them.
    """
    streams = RandomStreams(seed)
    rows_of = data.split_clients(partition, streams.numpy("partition"))
    label_table = data.label_table(rows_of)
    draws = [streams.numpy("local test", client=number) for number in range(len(rows_of))]
    test_rows_of = local_test_rows(label_table, data.test.labels.numpy(force=True), draws)
    clients = [
        Client(
            id=number,
            samples=len(rows),
            streams=streams,
            key=number,
            open_data=partial(data.client_data, number, rows),
            open_test=partial(data.client_test_data, test_rows),
        )
        for number, (rows, test_rows) in enumerate(zip(rows_of, test_rows_of, strict=True))
    ]
    digest = hashlib.blake2b(digest_size=16)
    for rows in rows_of:
        digest.update(np.int64(len(rows)).tobytes() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    identity = {
        "seed": seed,
        "method": type(method).__name__,
        "data": data.name,
        "clients": len(clients),
        "partition": digest.hexdigest(),
    }
    federation = Federation(clients, streams, world_size, clients_per_round, rounds)
    method.check(federation)
    return Job(method, model, data, streams, federation, identity, label_table)
