"""A job: everything of a run that is settled before processes start."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flgen.callbacks.evaluation import Evaluation
from flgen.callbacks.loggers import RunLogger
from flgen.data.local_split import LocalSplit, deal
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.checkpoints import Checkpoint
from flgen.experiment.config import describe
from flgen.federation.clients import Client, Federation, cohort_size
from flgen.federation.model_group import ModelGroup
from flgen.federation.streams import RandomStreams
from flgen.methods.base import Method
from flgen.models.losses import Loss

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric

    from flgen.data import LabelledData, Partitioner


INITIAL_WEIGHTS = "initial weights"

OPTIONS = "method options"
"""Key of an identity: what must be equal to go on training, but not to measure a checkpoint or to draw from it."""

PLACES = frozenset({"weights", "cache_dir", "root"})
"""Options of a loss that say where something lies."""


@dataclass
class Job:
    """Everything of a run that is settled before processes start.

    Args:
        method: The algorithm.
        model: The module that each rank keeps one of.
        data: The data set, loaded; with test samples of the clients' own, one whose test split is these.
        streams: The run's random streams.
        federation: Clients and their places.
        identity: What a checkpoint must agree with.
        label_table: Training samples by client and class, int64 array (clients, classes).
    """

    method: Method
    model: LightningModule
    data: LabelledData
    streams: RandomStreams
    federation: Federation
    identity: dict[str, Any]
    label_table: np.ndarray
    evaluation: Evaluation = field(default_factory=Evaluation)
    loggers: Sequence[RunLogger] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    resume: Checkpoint | None = None
    initial_weights: str | None = None
    """The file of weights that the model began with, if it did."""

    @property
    def first_round(self) -> int:
        """The round to begin with."""
        return 1 if self.resume is None else self.resume.round + 1

    def begin_with(self, path: str | Path | None, sha256: str | None) -> None:
        """Note where the model's initial weights come from; a run is continued only from the same ones.

        Args:
            path: The file, None for the module's own.
            sha256: Its digest.
        """
        self.initial_weights = None if path is None else str(path)
        self.identity[INITIAL_WEIGHTS] = sha256

    def evaluate_with(self, evaluation: Evaluation) -> None:
        """Take how the run is evaluated.

        Raises:
            UsageError: It is to measure what the method does not have.
        """
        if evaluation.gradient_diversity and not self.method.has_updates:
            raise UsageError(
                f"--evaluation.gradient_diversity true compares weights that clients send to a server, but "
                f"{type(self.method).__name__} sends none: set it to false"
            )
        self.evaluation = evaluation

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint's state.

        Raises:
            UsageError: It belongs to a run with another seed, method, model or partition.
        """
        theirs = checkpoint.identity
        differing = [key for key, value in self.identity.items() if key != OPTIONS and theirs.get(key, value) != value]
        if differing:
            raise UsageError(
                f"checkpoint {checkpoint.path} is of another run (different {', '.join(differing)}): use the "
                "configuration that wrote it, or start anew without --ckpt_path"
            )
        self.resume = checkpoint

    def continue_from(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint's state to go on training.

        Raises:
            UsageError: It belongs to another run, or to one whose method had other options.
        """
        self.resume_from(checkpoint)
        written = checkpoint.identity.get(OPTIONS, {})
        if not isinstance(written, dict):
            raise FlgenError(f"checkpoint {checkpoint.path} is damaged: its manifest.json has no {OPTIONS}")
        for name, ours, theirs in _changed_options(self.identity[OPTIONS], written):
            typed = name.removesuffix(".class_path").replace(".init_args.", ".")
            raise UsageError(
                f"--method.{typed} is {_shown(ours)}, but checkpoint {checkpoint.path} was trained with "
                f"{_shown(theirs)}: leave it as it was, or start anew without --ckpt_path"
            )
        if type(self.method).check_continuation is not Method.check_continuation:  # or the state need not be read
            with checkpoint.taken_up():
                self.method.check_continuation(checkpoint.server_state()["method"])

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
    data: LabelledData,
    partition: Partitioner,
    seed: int,
    world_size: int,
    clients_per_round: int | None,
    rounds: int = 1,
    partition_seed: int | None = None,
    split: LocalSplit | None = None,
    participation: float | None = None,
) -> Job:
    """Divide the loaded data among clients and return the job.

    Args:
        method: The algorithm.
        model: The module that each rank keeps one of.
        data: The data set, loaded; it is not changed.
        partition: How it is divided.
        seed: Of every random stream.
        world_size: Number of ranks.
        clients_per_round: Cohort size; None means everybody.
        rounds: Number of rounds that the run is planned for.
        partition_seed: Of who holds which samples, test samples included; None takes `seed`.
        split: What each client trains on, holds back and is tested on; None means the defaults.
        participation: Share of the clients in a cohort, in place of `clients_per_round`.

    Raises:
        UsageError: The division is impossible, there are more processes than clients, or the method refuses them.
    """
    streams = RandomStreams(seed)
    divided = streams if partition_seed is None else RandomStreams(partition_seed)
    split = split or LocalSplit()
    dealt = deal(data, partition, split, divided.numpy("partition"), divided.numpy)
    data = dealt.data
    label_table = data.label_table([rows.train for rows in dealt.clients])
    clients = [
        Client(
            id=number,
            samples=len(rows.train),
            streams=streams,
            key=number,
            open_data=partial(data.client_data, number, rows.train),
            open_test=partial(data.client_test_data, rows.test),
            test_samples=len(rows.test),
            open_validation=partial(data.client_data, number, rows.validation) if len(rows.validation) else None,
            validation_samples=len(rows.validation),
        )
        for number, rows in enumerate(dealt.clients)
    ]
    digest = hashlib.blake2b(digest_size=16)
    for rows in dealt.dealt:
        digest.update(np.int64(len(rows)).tobytes() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    if participation is not None:
        clients_per_round = cohort_size(len(clients), participation)
    described = describe(method)["init_args"]
    identity = {
        "seed": seed,
        "method": type(method).__name__,
        "data": data.name,
        "clients": len(clients),
        "partition": digest.hexdigest(),
        "split": split.in_force,
        "model": _structure(model),
        OPTIONS: {name: value for name, value in _flat(described) if _matters(name, method)},
    }
    if isinstance(loss := getattr(model, "loss", None), Loss):
        identity["loss"] = _structure_of_loss(loss, getattr(method, "preset", None))
    federation = Federation(clients, streams, world_size, clients_per_round, rounds)
    if isinstance(model, ModelGroup):
        model.check_clients(len(federation))
    method.check(federation)
    return Job(method, model, data, streams, federation, identity, label_table)


def _changed_options(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the options that both runs have and give other values, and both values.

    An option of one name may hold other options in one run and stand for itself, mostly as null, in the other. What
    only one of them has at all is of another version of the program.
    """
    for name, value in ours.items():
        if name in theirs:
            if theirs[name] != value:
                yield name, value, theirs[name]
        elif inner := _within(theirs, name):
            yield name, value, inner
    for name, value in theirs.items():
        if name not in ours and (inner := _within(ours, name)):
            yield name, inner, value


def _shown(value: Any) -> Any:
    """Return a value as a message shows it: options within an option by the class that they are of."""
    if not isinstance(value, Mapping):
        return value
    return value["class_path"].rpartition(".")[2] if "class_path" in value else "not null"


def _within(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options that an option holds, by their names in it."""
    prefix = f"{name}."
    return {inner.removeprefix(prefix): value for inner, value in options.items() if inner.startswith(prefix)}


def _matters(option: str, method: Method) -> bool:
    """Whether a run must be continued with the same value of a method's option."""
    return option.partition(".")[0] != "topology" and option not in method.incidental


def _structure(model: LightningModule) -> str:
    """Return a digest of the names and shapes of a module's tensors, and of who has which network of a group."""
    shapes: list[Any] = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    if isinstance(model, ModelGroup):
        shapes.append(model.assignment)
    return hashlib.blake2b(repr(shapes).encode(), digest_size=16).hexdigest()


def _structure_of_loss(loss: Loss, preset: str | None) -> str:
    """Return a digest of what a loss makes of images: its options but places, null ones as the preset fills them."""
    filled = copy.copy(loss)
    if preset is not None:
        filled.adopt(preset)
    options = sorted((name, value) for name, value in _flat(describe(filled)) if name.split(".")[-1] not in PLACES)
    return hashlib.blake2b(repr(options).encode(), digest_size=16).hexdigest()


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested options by their names as they are typed."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
