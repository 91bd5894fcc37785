"""The clients of one rank, one after another, and what the ranks tell each other when theirs are done.

Every kind of round shares this: what a client's error means, how a stop signal ends a round without a trace, which
numbers a round reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from flgen.errors import FlgenError
from flgen.federation.clients import Client, Federation
from flgen.federation.interruption import ClientStepInterrupted, StopRequest
from flgen.federation.state_store import ClientStateStore
from flgen.methods.base import Method
from flgen.metrics.over_clients import over_clients
from flgen.topology.channel import Channel
from flgen.wire.codecs import Payload
from flgen.wire.ledger import LedgerRow

Hook = Callable[..., None]
Outcome = TypeVar("Outcome")


class ClientFailed(FlgenError):
    """A client's step raised or gave numbers that are not finite."""


@dataclass(frozen=True)
class ErrorPolicy:
    """What a client's error means for the round.

    Args:
        on_client_error: "raise" ends the job; "skip" leaves the client out of this round.
        min_clients: With "skip", the fewest clients a round may end with.
    """

    on_client_error: Literal["raise", "skip"] = "raise"
    min_clients: int = 1


@dataclass
class RollCall:
    """What each rank tells the others when its clients are done: the one agreement of a round."""

    stop: int
    uploads: dict[str, Any]
    failures: dict[int, str]
    metrics: dict[int, dict[str, float]]


@dataclass(frozen=True)
class RoundOutcome:
    """What a round left behind.

    Args:
        stop: The signal that interrupted the round, 0 if none did; an interrupted round has changed nothing.
        metrics: What clients reported, over all of them, and times and traffic (on the server).
        ledger: Traffic of the round, all ranks together (on the server).
        failures: Why clients were left out, by id.
        clients: What each client reported, by id.
    """

    stop: int
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: list[LedgerRow] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    clients: dict[int, dict[str, float]] = field(default_factory=dict)


class ClientTurns:
    """Runs the clients of one rank in one round.

    Args:
        method: The algorithm, set up.
        federation: All clients.
        store: Persistent state of the clients that this rank hosts.
        channel: Joins the ranks.
        t: The round, from 1.
        stop: Looked at between local steps.
        policy: What to do about a client's error.
        call: Calls a hook of every callback by name, with keyword arguments.
    """

    def __init__(
        self,
        method: Method,
        federation: Federation,
        store: ClientStateStore,
        channel: Channel,
        t: int,
        *,
        stop: StopRequest,
        policy: ErrorPolicy,
        call: Hook,
    ) -> None:
        self._method = method
        self._federation = federation
        self._store = store
        self._channel = channel
        self._t = t
        self._stop = stop
        self._policy = policy
        self._call = call
        self.failures: dict[int, str] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.local_s = 0.0
        channel.take_time()  # what an evaluation or a checkpoint has spent is no part of the round
        self.started = time.perf_counter()

    def attempt(self, client: Client, work: Callable[[], Outcome]) -> Outcome | None:
        """Do something for a client, or return None and note why it failed.

        Raises:
            ClientFailed: It failed and the policy is "raise".
        """
        try:
            return work()
        except ClientStepInterrupted:
            raise
        except Exception as error:
            reason = _reason(error)
            if self._policy.on_client_error == "raise":
                hint = "" if isinstance(error, FlgenError) else " (FLGEN_TRACEBACK=1 shows where)"
                where = f"round {self._t}, client {client.id} (rank {self._channel.rank})"
                raise ClientFailed(f"{where}: {reason}{hint}") from error
            self.failures[client.id] = reason
            return None

    def take(
        self,
        clients: Iterable[Client],
        step: Callable[[Client], Payload],
        keep: Callable[[Client, Payload], None] = lambda client, payload: None,
    ) -> None:
        """Let each client do its step with its state, and stage what it leaves, until a stop signal comes.

        Args:
            clients: The clients of this rank's share.
            step: A client's work; it returns what the client sends.
            keep: Takes what a client that did not fail sends; if it refuses, the client has failed after all.
        """
        for client in clients:
            self._call("on_client_start", round=self._t, client=client.id)
            client.state = state_of(self._method, self._store, client)
            client.metrics = {}
            client_started = time.perf_counter()
            try:
                payload = self.attempt(client, lambda client=client: self._checked(client, step))  # type: ignore[misc]
            except ClientStepInterrupted:
                break
            if payload is not None:
                self.local_s += time.perf_counter() - client_started
                payload = self.attempt(client, partial(_handed_in, keep, client, payload))
            if payload is not None:
                self._store.stage(client.id, client.state)
                self.metrics[client.id] = client.metrics
            client.state = {}
            if self._federation.host[client.id] != self._channel.rank:
                client.close_data()
            if payload is not None:
                self._call("on_client_end", round=self._t, client=client.id)

    def _checked(self, client: Client, step: Callable[[Client], Payload]) -> Payload:
        def on_local_step(done: int, steps: int) -> None:
            self._call("on_local_step", round=self._t, client=client.id, step=done, steps=steps)
            if self._stop:
                raise ClientStepInterrupted

        self._method.on_local_step = on_local_step
        payload = step(client)
        check_finite("upload", {name: entry.tensor for name, entry in payload.items()})
        check_finite("state", client.state)
        if self._federation.stateless and client.state:
            raise FlgenError("it keeps state although its method set federation.stateless: one of the two is wrong")
        return payload

    def agree(self, uploads: dict[str, Any]) -> list[RollCall]:
        """Tell the other ranks how this rank's clients fared; return what every rank said, by rank."""
        statement = RollCall(self._stop.signal_number, uploads, self.failures, self.metrics)
        said: list[RollCall] = self._channel.agree(statement)
        return said

    def check_enough(self, roll_calls: list[RollCall], expected: int) -> dict[int, str]:
        """Return why clients failed, by id, on any rank.

        Raises:
            ClientFailed: Fewer clients than the policy's minimum are left of those expected.
        """
        failures = {client: why for said in roll_calls for client, why in said.failures.items()}
        left = expected - len(failures)
        if left < self._policy.min_clients:
            first, why = min(failures.items())
            raise ClientFailed(
                f"round {self._t}: {left} of {expected} clients are left, --trainer.min_clients asks for "
                f"{self._policy.min_clients}; client {first}: {why}"
            )
        return failures

    def outcome(
        self,
        roll_calls: list[RollCall],
        failures: dict[int, str],
        ledger: list[LedgerRow],
        traffic: Mapping[str, float],
    ) -> RoundOutcome:
        """Return what a complete round left behind."""
        reported = {client: values for said in roll_calls for client, values in said.metrics.items()}
        metrics = {**over_clients(reported, self._federation.measured_samples), **traffic}
        if self._policy.on_client_error == "skip":
            metrics["clients/failed"] = len(failures)
        metrics["time/round_s"] = time.perf_counter() - self.started
        metrics["time/local_s"] = self.local_s
        if self._channel.world_size > 1:
            spent = self._channel.take_time()
            metrics["time/communication_s"] = spent.moving_s
            metrics["time/waiting_s"] = spent.waiting_s
        return RoundOutcome(0, metrics, ledger, failures, reported)


def _handed_in(keep: Callable[[Client, Payload], None], client: Client, payload: Payload) -> Payload:
    keep(client, payload)
    return payload


def state_of(method: Method, store: ClientStateStore, client: Client) -> dict[str, Tensor]:
    """Return a working copy of a client's state: what it kept, or what its method lets it begin with."""
    return store.load(client.id) or method.initial_state(client)


def check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what a client sends or keeps if a number in it is none.

    Args:
        what: What the tensors are, for the message.
        tensors: By name.

    Raises:
        FlgenError: One of them holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise FlgenError(f"its {what} {name!r} holds NaN or infinity")


def stopped_by(roll_calls: list[RollCall]) -> int:
    """Return the signal that reached any rank during a round, 0 if none did."""
    return max(said.stop for said in roll_calls)


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum is finite only if its terms are: thirty times faster than a look at each, which an overflow alone needs.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FlgenError) else f"{type(error).__name__}: {text}"
