"""One round on a star (design, section 3): download, client steps, uploads, aggregation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from flgen.errors import FlgenError
from flgen.federation.clients import Client, Federation
from flgen.federation.interruption import ClientStepInterrupted, StopRequest
from flgen.federation.state_store import ClientStateStore
from flgen.methods.base import ServerMethod
from flgen.wire.codecs import Payload
from flgen.wire.ledger import LedgerRow, add_up

Hook = Callable[..., None]


class ClientFailed(FlgenError):
    """A client's step raised or gave numbers that are not finite."""


@dataclass(frozen=True)
class ErrorPolicy:
    """What a client's error means for the round.

    Args:
        on_client_error: "raise" ends the job; "skip" leaves the client out of this round.
        min_clients: With "skip", the fewest uploads a round may end with.
    """

    on_client_error: Literal["raise", "skip"] = "raise"
    min_clients: int = 1


@dataclass
class RollCall:
    """What each rank tells the others when its clients are done: the one agreement of a round."""

    stop: int
    uploads: dict[str, Any]
    failures: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundOutcome:
    """What a round left behind.

    Args:
        stop: The signal that interrupted the round, 0 if none did; an interrupted round has changed nothing.
        metrics: Mean over clients of what they reported, and times (on the server).
        ledger: Traffic of the round, all ranks together (on the server).
        failures: Why clients were left out, by id.
    """

    stop: int
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: list[LedgerRow] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)


def run_star_round(
    method: ServerMethod,
    federation: Federation,
    store: ClientStateStore,
    t: int,
    *,
    stop: StopRequest,
    policy: ErrorPolicy,
    call: Hook,
) -> RoundOutcome:
    """Run round t on this rank; every rank calls it.

    Args:
        method: The algorithm, set up.
        federation: Its clients.
        store: Persistent state of the clients that this rank hosts.
        t: The round, from 1.
        stop: Looked at between local steps.
        policy: What to do about a client's error.
        call: Calls a hook of every callback by name, with keyword arguments.

    Raises:
        ClientFailed: A client failed and the policy is "raise", or too few are left.
    """
    star, channel = method.topology, method.topology.channel
    cohort = federation.cohort(t)
    rank_of = federation.ranks(cohort)
    started = time.perf_counter()

    download = star.send_down(t, method.download(t) if star.is_server else None, len(cohort))

    weights = [client.samples if method.collection == "sample_weighted_sum" else 1 for client in cohort]
    collector = star.open_round(t, method.collection, cohort_size=len(cohort), weight_limit=sum(weights))
    failures: dict[int, str] = {}
    metrics: dict[int, dict[str, float]] = {}
    local_s = 0.0
    for client in (client for client in cohort if rank_of[client.id] == channel.rank):
        call("on_client_start", round=t, client=client.id)
        client.state = store.load(client.id)
        client.metrics = {}
        client_started = time.perf_counter()
        try:
            payload = _client_step(method, client, download, t, stop, call)
            if federation.stateless and client.state:
                raise FlgenError("it keeps state although its method set federation.stateless: one of the two is wrong")
        except ClientStepInterrupted:
            break
        except Exception as error:
            reason = _reason(error)
            if policy.on_client_error == "raise":
                hint = "" if isinstance(error, FlgenError) else " (FLGEN_TRACEBACK=1 shows where)"
                raise ClientFailed(f"round {t}, client {client.id} (rank {channel.rank}): {reason}{hint}") from error
            failures[client.id] = reason
            client.state = {}
            continue
        local_s += time.perf_counter() - client_started
        collector.add(client.id, client.samples, payload)
        store.stage(client.id, client.state)
        metrics[client.id] = client.metrics
        client.state = {}
        if federation.host[client.id] != channel.rank:
            client.close_data()
        call("on_client_end", round=t, client=client.id)

    roll_call = RollCall(stop.signal_number, collector.roll_call(), failures, metrics)
    roll_calls: list[RollCall] = channel.agree(roll_call)
    stopped_by = max(said.stop for said in roll_calls)
    if stopped_by:
        store.rollback()
        star.ledger.take()
        return RoundOutcome(stopped_by)
    all_failures = {client: why for said in roll_calls for client, why in said.failures.items()}
    arrived = len(cohort) - len(all_failures)
    if arrived < policy.min_clients:
        first, why = min(all_failures.items())
        raise ClientFailed(
            f"round {t}: {arrived} of {len(cohort)} clients are left, --trainer.min_clients asks for "
            f"{policy.min_clients}; client {first}: {why}"
        )

    uploads = collector.collect([said.uploads for said in roll_calls])
    if uploads is not None:
        method.aggregate(t, uploads)
    store.commit()

    rows = add_up(channel.agree(star.ledger.take()))
    reported = {client: values for said in roll_calls for client, values in said.metrics.items()}
    outcome_metrics = {**_mean_over_clients(reported), **_traffic(rows)}
    outcome_metrics["time/round_s"] = time.perf_counter() - started
    outcome_metrics["time/local_s"] = local_s
    return RoundOutcome(0, outcome_metrics, rows, all_failures)


def _client_step(
    method: ServerMethod, client: Client, download: dict[str, torch.Tensor], t: int, stop: StopRequest, call: Hook
) -> Payload:
    def on_local_step(step: int, steps: int) -> None:
        call("on_local_step", round=t, client=client.id, step=step, steps=steps)
        if stop:
            raise ClientStepInterrupted

    method.on_local_step = on_local_step
    payload = method.client_step(client, download, t)
    sent = {name: entry.tensor for name, entry in payload.items()}
    for what, tensors in (("upload", sent), ("state", client.state)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise FlgenError(f"its {what} {name!r} holds NaN or infinity")
    return payload


def _is_finite(tensor: torch.Tensor) -> bool:
    # A sum is finite only if its terms are: thirty times faster than a look at each, which an overflow alone needs.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FlgenError) else f"{type(error).__name__}: {text}"


def _mean_over_clients(reported: dict[int, dict[str, float]]) -> dict[str, float]:
    """Average each metric over the clients that report it, in the order of their ids."""
    names = {name: None for client in sorted(reported) for name in reported[client]}
    means = {}
    for name in names:
        values = [reported[client][name] for client in sorted(reported) if name in reported[client]]
        means[name] = sum(values) / len(values)
    return means


def _traffic(rows: list[LedgerRow]) -> dict[str, float]:
    return {
        "comm/up_bytes": sum(row.bytes for row in rows if row.link == "client->server"),
        "comm/down_bytes": sum(row.bytes for row in rows if row.link == "server->client"),
        "comm/wire_bytes": sum(row.wire_bytes for row in rows),
    }
