"""One round between peers (design, section 3): everyone's payload along the edges of the round, then mix and train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flgen.client_turns import ClientTurns, ErrorPolicy, Hook, RoundOutcome, check_finite, state_of, stopped_by
from flgen.federation.clients import Client, Federation
from flgen.federation.interruption import StopRequest
from flgen.federation.state_store import ClientStateStore
from flgen.methods.base import PeerMethod
from flgen.topology.channel import Transfer
from flgen.topology.graph_facts import graph_facts
from flgen.topology.inbox import Inbox, OpenedMessages
from flgen.wire.codecs import Payload, encode_payload
from flgen.wire.ledger import add_up


@dataclass(frozen=True)
class Outbox:
    """What the clients of one rank have to offer and whom they want to hear; every rank learns this of every other.

    Args:
        sizes: Bytes of each client's encoded payload, by id; a client that failed has none.
        sources: Whom each client reads from, itself excluded, by id.
    """

    sizes: dict[int, int]
    sources: dict[int, tuple[int, ...]]


def run_peer_round(
    method: PeerMethod,
    federation: Federation,
    store: ClientStateStore,
    t: int,
    *,
    stop: StopRequest,
    policy: ErrorPolicy,
    call: Hook,
    evaluated: bool = False,
    opened_mb: float = 4096,
) -> RoundOutcome:
    """Run round t on this rank; every rank calls it. Everybody reads what the others had at the start of the round.

    Args:
        method: The algorithm, set up.
        federation: Its clients.
        store: Persistent state of the clients that this rank hosts.
        t: The round, from 1.
        stop: Looked at between local steps.
        policy: What to do about a client's error.
        call: Calls a hook of every callback by name, with keyword arguments.
        evaluated: Whether clients test their models in this round.
        opened_mb: Megabytes (2^20 bytes) of decoded payloads that are kept during the round.

    Raises:
        ClientFailed: A client failed and the policy is "raise", or too few are left.
    """
    topology, channel = method.topology, method.topology.channel
    turns = ClientTurns(method, federation, store, channel, t, stop=stop, policy=policy, call=call)
    method.evaluated = evaluated
    # A graph is drawn over the clients' keys: renumbering clients renumbers their neighbours.
    client_of_key = {client.key: client.id for client in federation.clients}
    graph = topology.sources(t, len(federation), federation.streams)
    candidates = {
        client.id: tuple(sorted(client_of_key[key] for key in graph[client.key])) for client in federation.clients
    }

    hosted = federation.hosted_by(channel.rank)
    messages, own = _offers(method, turns, store, hosted, candidates, t)
    outboxes: list[Outbox] = channel.agree(own)
    sizes = {client: size for outbox in outboxes for client, size in outbox.sizes.items()}
    sources = {
        client: tuple(source for source in wanted if source in sizes)
        for outbox in outboxes
        for client, wanted in outbox.sources.items()
    }
    plan = _plan(sources, sizes, federation.host)
    sent = sum(transfer.bytes for transfer in plan if transfer.source == channel.rank)
    topology.ledger.record(t, "exchange", "client->client", wire_bytes=sent)
    if channel.rank == 0:
        edges = [sizes[source] for client in sources for source in sources[client]]
        topology.ledger.record(t, "exchange", "client->client", messages=len(edges), bytes=sum(edges))
    messages.update(channel.exchange(messages, plan))
    opened = OpenedMessages(messages, opened_mb * 2**20)
    key = {client.id: client.key for client in federation.clients}

    def step(client: Client) -> Payload:
        heard = sorted((*sources[client.id], client.id), key=key.__getitem__)
        method.mix(client, Inbox(heard, opened), t)
        method.client_step(client, t)
        return {}

    turns.take((client for client in hosted if client.id in own.sizes), step)

    roll_calls = turns.agree({})
    if signal_number := stopped_by(roll_calls):
        store.rollback()
        topology.ledger.take()
        return RoundOutcome(signal_number)
    failures = turns.check_enough(roll_calls, len(federation))
    store.commit()

    rows = add_up(channel.agree(topology.ledger.take()))
    measured = {**_traffic(sources, sizes), "comm/wire_bytes": sum(row.wire_bytes for row in rows)}
    if evaluated and channel.rank == 0:
        measured.update(graph_facts([sources.get(client.id, ()) for client in federation.clients]))
    return turns.outcome(roll_calls, failures, rows, measured)


def _offers(
    method: PeerMethod,
    turns: ClientTurns,
    store: ClientStateStore,
    hosted: Sequence[Client],
    candidates: Mapping[int, tuple[int, ...]],
    t: int,
) -> tuple[dict[int, Tensor], Outbox]:
    """Return the encoded payload of each client of this rank, by id, and what the other ranks must know of them."""
    messages: dict[int, Tensor] = {}
    wanted: dict[int, tuple[int, ...]] = {}
    for client in hosted:
        client.state = state_of(method, store, client)

        def offer(client: Client = client) -> tuple[Tensor, tuple[int, ...]]:
            payload = method.outgoing(client, t)
            check_finite("offer", {name: entry.tensor for name, entry in payload.items()})
            return encode_payload(payload), method.choose(client, candidates[client.id], t)

        offered = turns.attempt(client, offer)
        client.state = {}
        if offered is not None:
            messages[client.id], wanted[client.id] = offered
    return messages, Outbox({client: message.numel() for client, message in messages.items()}, wanted)


def _plan(sources: Mapping[int, tuple[int, ...]], sizes: Mapping[int, int], host: list[int]) -> list[Transfer]:
    """Return each message once per rank that needs it and does not host its sender, in the same order everywhere."""
    needed = {
        (source, host[client]) for client in sources for source in sources[client] if host[source] != host[client]
    }
    return [Transfer(source, host[source], destination, sizes[source]) for source, destination in sorted(needed)]


def _traffic(sources: Mapping[int, tuple[int, ...]], sizes: Mapping[int, int]) -> dict[str, float]:
    """Return bytes of the round, in all and of the busiest client (dispfl.md, section 9.2)."""
    readers = Counter(source for client in sources for source in sources[client])
    received = {client: sum(sizes[source] for source in sources[client]) for client in sources}
    sent = {client: readers[client] * size for client, size in sizes.items()}
    return {
        "comm/bytes": sum(received.values()),
        "comm/max_received_bytes": max(received.values(), default=0),
        "comm/max_sent_bytes": max(sent.values(), default=0),
        "comm/busiest_node_bytes": max((received.get(client, 0) + sent[client] for client in sent), default=0),
    }
