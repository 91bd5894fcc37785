"""All epochs of server training on one rank."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flgen.callbacks.progress import open_display
from flgen.data import LabelledData
from flgen.data.augmentation import AUGMENTATIONS
from flgen.data.client_data import TensorClientData
from flgen.data.labelled_set import LabelledSet
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.checkpoints import (
    Checkpoint,
    finish_checkpoint,
    remove_old_checkpoints,
    start_checkpoint,
    write_state,
)
from flgen.experiment.records import EventLog, MetricsTable
from flgen.experiment.runs import RunFolder
from flgen.experiment.shared_folder import check_same_start, check_shared
from flgen.experiment.version import installed_version
from flgen.experiment.weights import save_weights
from flgen.federation.interruption import ClientStepInterrupted, StopRequest
from flgen.federation.launch import share_of_cores
from flgen.federation.local_training import LoggedValues, only_optimizer, test_module, train_locally
from flgen.federation.resident import TEST_BATCH
from flgen.federation.streams import RandomStreams
from flgen.topology.channel import Channel

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric

    from flgen.server_trainer import ServerTrainer

OPTIONS = "options"
"""Under what name a checkpoint's identity has the options that a continued run must have as they were."""

STEPS_BETWEEN_SIGNALS = 20
"""Several ranks look together whether one was told to stop, every so many steps: none may leave the others alone."""


class ServerResult(NamedTuple):
    """How server training ended.

    Args:
        run_dir: The run folder.
        epoch: The last complete epoch.
        metrics: The newest value of every metric.
        weights: The file of weights, once every epoch is done.
        sha256: Its SHA-256.
        signal_number: The signal that ended training early, 0 if it ran to the end.
    """

    run_dir: Path
    epoch: int
    metrics: dict[str, float]
    weights: Path | None = None
    sha256: str | None = None
    signal_number: int = 0


@dataclass
class ServerJob:
    """What a server trains, settled before processes start.

    Args:
        model: The module.
        data: The data set it is for.
        train: The samples.
        source: Where they come from: a folder, or "real".
        init: Where the module's weights come from: "random", or a file and its SHA-256.
        seed: Of every random stream.
        folder: The run folder.
        options: What a continued run must have as it was, by the name of the trainer's option.
    """

    model: LightningModule
    data: LabelledData
    train: LabelledSet
    source: str
    init: str
    seed: int
    folder: RunFolder
    options: dict[str, Any]
    resume: Checkpoint | None = None
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.train.inputs, self.train.labels):
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        shapes = [(name, tuple(tensor.shape)) for name, tensor in self.model.state_dict().items()]
        self.identity = {
            "seed": self.seed,
            "samples": digest.hexdigest(),
            "model": repr(shapes),
            "init": self.init,
            OPTIONS: self.options,
        }

    @property
    def first_epoch(self) -> int:
        """The epoch to begin with."""
        return 1 if self.resume is None else self.resume.round + 1

    def continue_from(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint.

        Raises:
            UsageError: It belongs to another seed, model, initial weights or samples, or was trained in another way.
        """
        ours, theirs = dict(self.identity), checkpoint.identity
        options = ours.pop(OPTIONS)
        if differing := [name for name, value in ours.items() if theirs.get(name) != value]:
            raise UsageError(
                f"checkpoint {checkpoint.path} is of another run (different {', '.join(differing)}): use the "
                "configuration that wrote it, or start anew without --ckpt_path"
            )
        for name, value in theirs.get(OPTIONS, {}).items():
            if options.get(name, value) != value:
                raise UsageError(
                    f"--trainer.{name} is {options[name]}, but checkpoint {checkpoint.path} was trained with {value}: "
                    "leave it as it was, or start anew without --ckpt_path"
                )
        self.resume = checkpoint


def training_set(data: LabelledData, samples: str | Path | None, per_class: int | None) -> LabelledSet:
    """Return what the server trains on.

    Args:
        data: The data set that the samples stand for, set up.
        samples: Folder that `flgen synthesize` wrote, or None for the data set's own training split.
        per_class: The first so many samples of each class; None takes all.

    Raises:
        UsageError: There are fewer samples of a class than asked for.
    """
    if samples is not None:
        from flgen.synthesis.synthetic_set import load_synthetic

        return load_synthetic(Path(samples), data, per_class)
    if per_class is None:
        return data.train
    rows = [torch.nonzero(data.train.labels == label).flatten() for label in range(data.classes)]
    if (fewest := min(len(found) for found in rows)) < per_class:
        raise UsageError(f"--per_class is {per_class}: {data.name} has a class with {fewest} training samples")
    return data.train.subset(torch.cat([found[:per_class] for found in rows]))


class ServerLoop:
    """All epochs of a server's job on one rank.

    Args:
        trainer: Options.
        fabric: This rank's, launched.
        job: What to train.
        stop: This process's stop request.
    """

    def __init__(self, trainer: ServerTrainer, fabric: Fabric, job: ServerJob, stop: StopRequest) -> None:
        self.trainer = trainer
        self.fabric = fabric
        self.job = job
        self.stop = stop
        self.streams = RandomStreams(job.seed)
        self.is_first = fabric.global_rank == 0
        self.metrics: dict[str, float] = {}
        torch.set_num_threads(trainer.threads_per_rank or share_of_cores(fabric.world_size // trainer.num_nodes))
        self.channel = Channel(
            fabric.global_rank, fabric.world_size, fabric.device, trainer.timeout_s, trainer.round_timeout_s
        )
        if trainer.num_nodes > 1:
            check_shared(job.folder.path, self.channel.agree, writes=self.is_first)
        check_same_start(job.folder.path, job.first_epoch, self.channel.agree)
        parameters = job.model.parameters()
        if trainer.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                parameters, lr=trainer.learning_rate, weight_decay=trainer.weight_decay
            )
        else:
            optimizer = only_optimizer(job.model)
        self.first_rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = fabric.setup(job.model, optimizer)
        self.logged = LoggedValues(fabric)
        job.model.fabric = self.logged  # type: ignore[assignment]
        # Every rank holds all samples: it takes its part of each batch.
        self.samples = TensorClientData(job.train, torch.arange(len(job.train)), fabric.device, job.data.classes)

    def run(self) -> ServerResult:
        """Run every epoch that is left, write the weights, and return how it ended."""
        job, trainer = self.job, self.trainer
        saved = job.first_epoch - 1
        if job.resume is not None:
            state = job.resume.server_state()
            with job.resume.taken_up():
                job.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.metrics = dict(state["metrics"])
        if self.is_first:
            table, events = MetricsTable(job.folder.metrics), EventLog(job.folder.events)
            table.truncate_after(saved)
            events.write(
                "start" if job.resume is None else "resume",
                epoch=job.first_epoch,
                ranks=self.fabric.world_size,
                device=str(self.fabric.device),
                version=installed_version(),
                samples=len(job.train),
                source=job.source,
                init=job.init,
            )
            self.display = open_display(job.first_epoch, trainer.epochs, unit="epoch")
        try:
            for epoch in range(job.first_epoch, trainer.epochs + 1):
                if self.is_first:
                    self.display.start_round(epoch)
                row = self._run_epoch(epoch)
                if row is None:
                    if self.is_first:
                        events.write("stopped", epoch=saved, signal=self.stop.signal_number)
                    signal_number = max(self.channel.agree(self.stop.signal_number))
                    return ServerResult(job.folder.path, saved, self.metrics, signal_number=signal_number)
                self.metrics.update(row)
                if self.is_first:
                    table.write(epoch, row)
                    self.display.end_round(epoch, row)
                if epoch % trainer.checkpoint_every == 0 or epoch == trainer.epochs:
                    self._save(epoch)
                    saved = epoch
        finally:
            if self.is_first:
                self.display.close()
        path = job.folder.path / "final.safetensors"
        sha256 = None
        if self.is_first:
            facts = {"init": job.init, "samples": job.source, "epochs": str(trainer.epochs), "data": job.data.name}
            sha256 = save_weights(job.model, path, facts)
            events.write("end", epoch=trainer.epochs, weights=str(path), sha256=sha256)
        return ServerResult(job.folder.path, trainer.epochs, self.metrics, path, sha256)

    def _run_epoch(self, epoch: int) -> dict[str, float] | None:
        """Train for one epoch and return its metrics, or None if a stop signal ended it."""
        trainer, started = self.trainer, time.perf_counter()
        for group, rate in zip(self.optimizer.param_groups, self.first_rates, strict=True):
            group["lr"] = rate * self._rate_factor(epoch)
        self.logged.means()
        try:
            train_locally(
                self.module,
                self.optimizer,
                self._batches(epoch),
                self.fabric,
                seed=self.streams.seed_for("module", round=epoch, client=self.fabric.global_rank),
                steps=-(-len(self.job.train) // trainer.batch_size),
                on_step=self._after_step,
            )
        except ClientStepInterrupted:
            return None
        row = _mean_over_ranks(self.channel.agree(self.logged.means()))
        if not all(map(math.isfinite, row.values())):
            raise FlgenError(
                f"epoch {epoch}: the training loss is not finite: lower --trainer.learning_rate (it is "
                f"{trainer.learning_rate})"
            )
        row["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row["time/epoch_s"] = time.perf_counter() - started
        if epoch % trainer.evaluate_every == 0 or epoch == trainer.epochs:
            measured = self._test() if self.is_first else {}
            row.update(self.channel.agree(measured)[0])  # the others wait for the first as long as a round may take
        return row

    def _rate_factor(self, epoch: int) -> float:
        if self.trainer.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (epoch - 1) / self.trainer.epochs))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of every batch of an epoch, as the module takes it.

        Batches and what augments them are the same on every rank and for any number of ranks; where a last batch does
        not divide evenly, samples of its own fill it up.
        """
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        shifts = self.streams.torch("augmentation", round=epoch)
        for x, y in self.samples.batches(self.trainer.batch_size, self.streams.torch("batches", round=epoch), epochs=1):
            if self.trainer.augmentation != "none":
                x = AUGMENTATIONS[self.trainer.augmentation](x, shifts)
            mine = torch.arange(rank, rank + -(-len(y) // ranks) * ranks, ranks, device=y.device) % len(y)
            yield self.job.data.standardize(x[mine]), y[mine]

    def _after_step(self, done: int, steps: int) -> None:
        if self.is_first:
            self.display.show_step("training", done, steps)
        if self.channel.world_size == 1:
            stopped = bool(self.stop)
        elif done % STEPS_BETWEEN_SIGNALS == 0 or done == steps:
            stopped = any(self.channel.agree(bool(self.stop)))
        else:
            stopped = False
        if stopped:
            raise ClientStepInterrupted

    def _test(self) -> dict[str, float]:
        data = self.job.data
        test = TensorClientData(data.test, torch.arange(len(data.test)), self.fabric.device, data.classes)
        batches = ((data.standardize(x), y) for x, y in test.in_order(TEST_BATCH))
        return test_module(self.job.model, batches, self.fabric, self.logged)

    def _save(self, epoch: int) -> None:
        if self.is_first:
            folder = self.job.folder.checkpoints
            partial = start_checkpoint(folder, epoch)
            state = {
                "model": self.job.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "metrics": self.metrics,
            }
            record = write_state(partial, "server.pt", state)
            finish_checkpoint(partial, epoch, self.job.identity, [record])
            remove_old_checkpoints(folder, self.trainer.keep_checkpoints)


def _mean_over_ranks(said: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(means[name] for means in said) / len(said) for name in said[0]}
