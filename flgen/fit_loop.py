"""A fit on one rank: rounds, evaluation, checkpoints, records."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flgen.callbacks.loggers import close_loggers, run_id
from flgen.client_turns import ErrorPolicy, RoundOutcome, state_of
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.experiment.checkpoints import (
    checkpoint_name,
    finish_checkpoint,
    remove_old_checkpoints,
    start_checkpoint,
    write_state,
)
from flgen.experiment.records import ClientsTable, EventLog, LedgerTable, MetricsTable
from flgen.experiment.shared_folder import check_same_start, check_shared
from flgen.experiment.version import installed_version
from flgen.federation.clients import Client
from flgen.federation.interruption import StopRequest
from flgen.federation.launch import share_of_cores
from flgen.federation.state_store import ClientStateStore
from flgen.job import INITIAL_WEIGHTS, Job
from flgen.measurement import measure, measure_clients, tests_clients
from flgen.methods.base import PeerMethod, ServerMethod
from flgen.metrics.over_clients import over_clients
from flgen.peer_round import run_peer_round
from flgen.star_round import run_star_round
from flgen.topology.channel import Channel
from flgen.topology.star import SERVER_RANK
from flgen.wire.ledger import Ledger

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from flgen.trainer import FederatedTrainer


log = logging.getLogger("flgen")


class FitResult(NamedTuple):
    """How a fit ended.

    Args:
        run_dir: The run folder.
        round: The last complete round.
        metrics: The newest value of every metric.
        signal_number: The signal that ended it early, 0 if it ran to the end.
    """

    run_dir: Path
    round: int
    metrics: dict[str, float]
    signal_number: int = 0


class FitLoop:
    """All rounds of a job on one rank.

    Args:
        trainer: Options, callbacks and what callbacks look at.
        fabric: This rank's, launched.
        job: What to do.
        stop: This process's stop request.
    """

    def __init__(self, trainer: FederatedTrainer, fabric: Fabric, job: Job, stop: StopRequest) -> None:
        self.trainer = trainer
        self.fabric = fabric
        self.job = job
        self.stop = stop
        self.is_server = fabric.global_rank == SERVER_RANK
        self.metrics: dict[str, float] = {}
        self.policy = ErrorPolicy(trainer.on_client_error, trainer.min_clients)
        self.saved_round = 0 if job.resume is None else job.resume.round

        trainer.is_global_zero = self.is_server
        trainer.first_round = job.first_round
        torch.set_num_threads(trainer.threads_per_rank or share_of_cores(fabric.world_size // trainer.num_nodes))
        # Every rank writes into the folder that the first one made.
        self.folder = trainer.folder
        folder = trainer.folder.path / f".state-rank-{fabric.global_rank}"
        hosted = -(-len(job.federation) // fabric.world_size)
        self.store = ClientStateStore(fabric.device, hosted, trainer.client_state_mb, folder)

    def run(self) -> FitResult:
        """Run every round that is left and return how it ended."""
        try:
            self._set_up()
            result = self._run_rounds()
        except BaseException as error:
            self._call("on_exception", error=error)
            if self.is_server:
                with suppress(FlgenError):  # a full disk, say, which is then the error already
                    self.events.write("failed", error=" ".join(str(error).split()))
                close_loggers(self.trainer.loggers, exit_code=1)
            raise
        finally:
            self.store.close()
        self._call("on_fit_end")
        if self.is_server:
            close_loggers(self.trainer.loggers, exit_code=0)
        return result

    def _call(self, hook: str, **about: Any) -> None:
        self.fabric.call(hook, trainer=self.trainer, **about)

    def _set_up(self) -> None:
        job, fabric, trainer = self.job, self.fabric, self.trainer
        if self.is_server:
            self.metrics_table = MetricsTable(self.folder.metrics)
            self.ledger_table = LedgerTable(self.folder.ledger)
            self.clients_table = ClientsTable(self.folder.clients)
            self.events = EventLog(self.folder.events)
        self.channel = Channel(
            fabric.global_rank, fabric.world_size, fabric.device, trainer.timeout_s, trainer.round_timeout_s
        )
        if trainer.num_nodes > 1:
            check_shared(self.folder.path, self.channel.agree, writes=self.is_server)
        check_same_start(self.folder.path, job.first_round, self.channel.agree)
        job.set_up_method(fabric)
        job.method.topology.open(self.channel, Ledger())
        logger_ids: list[str | None] = [None] * len(job.loggers)
        if job.resume is not None:
            hosted = {client.id for client in job.federation.hosted_by(fabric.global_rank)}
            states = job.resume.client_states()
            server = job.resume.server_state()
            with job.resume.taken_up():
                self.store.load_state_dict({client: state for client, state in states.items() if client in hosted})
                if self.is_server or job.method.state_on_every_rank:
                    job.method.load_state_dict(server["method"])
                if self.is_server:
                    self.metrics = dict(server["metrics"])
                    logger_ids = list(server["logger_ids"]) or logger_ids
        if self.is_server:
            self.metrics_table.truncate_after(job.first_round - 1)
            self.ledger_table.truncate_after(job.first_round - 1)
            self.clients_table.truncate_after(job.first_round - 1)
            name = self.folder.path.name
            trainer.loggers = [
                logger.open(self.folder.path, dict(job.config), name, resume_id, job.first_round)
                for logger, resume_id in zip(job.loggers, logger_ids, strict=False)
            ]
            self.events.write(
                "start" if job.resume is None else "resume",
                round=job.first_round,
                ranks=fabric.world_size,
                device=str(fabric.device),
                version=installed_version(),
                threads=torch.get_num_threads(),
                initial_weights=job.initial_weights,
                initial_weights_sha256=job.identity.get(INITIAL_WEIGHTS),
            )
            if provenance := job.method.provenance():
                self.events.write("provenance", **provenance)
        self._call("on_fit_start")

    def _run_rounds(self) -> FitResult:
        last = self.job.first_round - 1
        for t in range(self.job.first_round, self.trainer.rounds + 1):
            if why := self.job.method.exhausted(t):
                if self.is_server:
                    log.warning("the run ends after round %d of %d: %s", last, self.trainer.rounds, why)
                    self.events.write("budget", round=last, why=why)
                break
            self._call("on_round_start", round=t)
            outcome = self._run_round(t)
            if outcome.stop:
                if last > self.saved_round:
                    self._save(last)
                if self.is_server:
                    self.events.write("stopped", round=last, signal=outcome.stop)
                return FitResult(self.folder.path, last, self.metrics, outcome.stop)
            self._finish_round(t, outcome)
            last = t
        if last > self.saved_round:
            self._save(last)
        if self.is_server:
            self.events.write("end", round=last)
        return FitResult(self.folder.path, last, self.metrics)

    def _last_round(self, t: int) -> int:
        """Return the last round, as far as it is known in round t: the method may have to stop after this one."""
        return t if self.job.method.exhausted(t + 1) else self.trainer.rounds

    def _run_round(self, t: int) -> RoundOutcome:
        job, evaluation = self.job, self.job.evaluation
        about: dict[str, Any] = {"stop": self.stop, "policy": self.policy, "call": self._call}
        if isinstance(job.method, PeerMethod):
            about["evaluated"] = tests_clients(job) and evaluation.due(t, self._last_round(t))
            about["opened_mb"] = self.trainer.client_state_mb
            return run_peer_round(job.method, job.federation, self.store, t, **about)
        assert isinstance(job.method, ServerMethod)
        about["gradient_diversity"] = evaluation.gradient_diversity
        return run_star_round(job.method, job.federation, self.store, t, **about)

    def _finish_round(self, t: int, outcome: RoundOutcome) -> None:
        row = dict(outcome.metrics)
        clients = dict(outcome.clients)
        if self.is_server:
            row.update(self.job.method.round_metrics(t))
        if self.job.evaluation.due(t, self._last_round(t)):
            self._call("on_evaluation_start", round=t)
            started = time.perf_counter()
            measured, images = measure(self.job, self.fabric, t, self.channel)
            row.update(measured)
            if tests_clients(self.job) and isinstance(self.job.method, ServerMethod):
                personal = measure_clients(self.job, self._state_of, t, self.channel)
                row.update(over_clients(personal, self.job.federation.measured_samples))
                for client, metrics in personal.items():
                    clients[client] = {**clients.get(client, {}), **metrics}
            row["time/evaluation_s"] = time.perf_counter() - started
            self._call("on_evaluation_end", round=t, metrics=row, images=images)
            if self.is_server and (pictures := self.job.method.class_pictures()):
                self._call("on_class_pictures", round=t, pictures=pictures, class_names=self.job.data.class_names)
        if self.is_server:
            self.metrics.update(row)
            self.metrics_table.write(t, row)
            self.ledger_table.write(t, outcome.ledger)
            self.clients_table.write(t, clients)
            for logger in self.trainer.loggers:
                logger.log_metrics(row, step=t)
            for client, why in sorted(outcome.failures.items()):
                self.events.write("client_error", round=t, client=client, error=why)
        self._call("on_round_end", round=t, metrics=row)
        if t % self.trainer.checkpoint_every == 0:
            self._save(t)

    def _state_of(self, client: Client) -> dict[str, Tensor]:
        return state_of(self.job.method, self.store, client)

    def _save(self, t: int) -> None:
        """Write a checkpoint of round t: every rank its clients, the server the rest."""
        folder = self.folder.checkpoints
        started = self.channel.agree(str(start_checkpoint(folder, t)) if self.is_server else None)
        partial_folder = Path(started[SERVER_RANK])
        written = []
        states = self.store.state_dict()
        if states:
            written.append(write_state(partial_folder, f"clients-{self.fabric.global_rank:05d}.pt", states))
        if self.is_server:
            server = {
                "method": self.job.method.state_dict(),
                "metrics": self.metrics,
                "logger_ids": [run_id(logger) for logger in self.trainer.loggers],
            }
            written.append(write_state(partial_folder, "server.pt", server))
        records = [record for said in self.channel.agree(written) for record in said]
        if self.is_server:
            path = finish_checkpoint(partial_folder, t, self.job.identity, records)
            remove_old_checkpoints(folder, self.trainer.keep_checkpoints)
            self.events.write("checkpoint", round=t, path=str(path))
        self.saved_round = t
        self._call("on_checkpoint", round=t, path=folder / checkpoint_name(t))
