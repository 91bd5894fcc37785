"""One round on a star (design, section 3): download, client steps, uploads, aggregation.

A method that `validates` adds an exchange: candidates down, what the clients say about them up, and one is taken.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from flgen.client_turns import ClientTurns, ErrorPolicy, Hook, RollCall, RoundOutcome, state_of, stopped_by
from flgen.federation.clients import Client, Federation
from flgen.federation.interruption import StopRequest
from flgen.federation.state_store import ClientStateStore
from flgen.methods.base import ServerMethod
from flgen.topology.hand_over import hand_over
from flgen.topology.secure_collector import SecureCollector
from flgen.topology.star import Collector
from flgen.topology.update_diversity import UpdateDiversity
from flgen.wire.codecs import Payload, count_scalars
from flgen.wire.ledger import LedgerRow, add_up


def run_star_round(
    method: ServerMethod,
    federation: Federation,
    store: ClientStateStore,
    t: int,
    *,
    stop: StopRequest,
    policy: ErrorPolicy,
    call: Hook,
    gradient_diversity: bool = False,
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
        gradient_diversity: Whether to measure, beside the protocol, how far apart the clients' updates lie.

    Raises:
        ClientFailed: A client failed and the policy is "raise", or too few are left.
    """
    star, channel = method.topology, method.topology.channel
    if t == 1 and (opening := method.opening()):
        star.send_down(t, opening if star.is_server else None, len(federation), phase="setup")
    turns = ClientTurns(method, federation, store, channel, t, stop=stop, policy=policy, call=call)
    cohort = federation.cohort(t)
    rank_of = federation.ranks(cohort)

    download, collector, down = _open(method, method.download, method.take_up, federation, cohort, rank_of, t)

    up: Counter[str] = Counter()
    diversity = UpdateDiversity(channel, len(cohort)) if gradient_diversity else None

    def step(client: Client) -> Payload:
        return method.client_step(client, download, t)

    def keep(client: Client, payload: Payload) -> None:
        collector.add(client.id, client.samples, payload)  # or it refuses, and the client fails without a trace
        up.update(count_scalars(payload))
        if diversity is not None:
            diversity.add(client.id, method.update_of(download, payload))

    turns.take((client for client in cohort if rank_of[client.id] == channel.rank), step, keep)

    roll_calls = turns.agree(collector.roll_call())
    if signal_number := stopped_by(roll_calls):
        store.rollback()
        star.ledger.take()
        return RoundOutcome(signal_number)
    failures = turns.check_enough(roll_calls, len(cohort))
    uploads = collector.collect([said.uploads for said in roll_calls])
    aggregating = time.perf_counter()
    if uploads is not None:
        method.aggregate(t, uploads)
    aggregation_s = time.perf_counter() - aggregating
    store.commit()
    if moves := method.hand_over(t):
        _hand_over(method, federation, store, moves, t)
    if method.validates:
        present = [client for client in cohort if client.id not in failures]
        roll_calls, offered, judged = _settle(method, federation, turns, present, rank_of, t)
        failures = turns.check_enough(roll_calls, len(cohort))
        down.update(offered)
        up.update(judged)

    said = channel.agree((star.ledger.take(), down, up))
    rows = add_up(ledger for ledger, _, _ in said)
    downs, ups = Counter[str](), Counter[str]()
    for _, sent, received in said:
        downs.update(sent)
        ups.update(received)
    noticed = {} if uploads is None else dict(uploads.metrics)
    if diversity is not None:
        noticed.update(diversity.collect())
    measured = {**_traffic(rows, downs, ups), "time/aggregation_s": aggregation_s, **noticed}
    return turns.outcome(roll_calls, failures, rows, measured)


def _open(
    method: ServerMethod,
    offer: Callable[[int], Payload],
    take_up: Callable[[dict[str, Tensor], int], dict[str, Tensor]],
    federation: Federation,
    clients: list[Client],
    rank_of: dict[int, int],
    t: int,
) -> tuple[dict[str, Tensor], Collector | SecureCollector, Counter[str]]:
    """Send clients what the server offers; return what they make of it, who collects answers, and the numbers sent."""
    star = method.topology
    offered = offer(t) if star.is_server else None
    download = take_up(star.send_down(t, offered, len(clients), contexts=method.coding_contexts()), t)
    samples = {client.id: client.samples for client in clients}
    collector = star.open_round(
        t,
        method.collection,
        samples=samples,
        rank_of=rank_of,
        download=download,
        streams=federation.streams,
        contexts=method.coding_contexts(),
    )
    counted = {} if offered is None else count_scalars(offered)
    return download, collector, Counter({name: len(clients) * numbers for name, numbers in counted.items()})


def _hand_over(
    method: ServerMethod, federation: Federation, store: ClientStateStore, moves: dict[int, int], t: int
) -> None:
    """Let clients give a part of their state to each other, and keep what they got."""
    star = method.topology
    states = {client.id: state_of(method, store, client) for client in federation.hosted_by(star.channel.rank)}
    offered = {giver: method.handed_over(states[giver]) for giver in moves if giver in states}
    for receiver, received in hand_over(star, t, offered, moves, federation.host).items():
        store.stage(receiver, {**states[receiver], **received})
    store.commit()


def _settle(
    method: ServerMethod,
    federation: Federation,
    turns: ClientTurns,
    clients: list[Client],
    rank_of: dict[int, int],
    t: int,
) -> tuple[list[RollCall], Counter[str], Counter[str]]:
    """Let clients judge the server's candidates; return what the ranks said, and the numbers sent down and up."""
    channel = method.topology.channel
    up: Counter[str] = Counter()
    candidates, collector, down = _open(
        method, method.candidates, lambda received, _: received, federation, clients, rank_of, t
    )

    def judge(client: Client) -> Payload:
        judgement = method.judge(client, candidates, t)
        collector.add(client.id, client.samples, judgement)
        return judgement

    for client in clients:
        if rank_of[client.id] != channel.rank:
            continue
        judgement = turns.attempt(client, partial(judge, client))
        if judgement is not None:
            up.update(count_scalars(judgement))
        if federation.host[client.id] != channel.rank:
            client.close_data()
    roll_calls = turns.agree(collector.roll_call())
    judgements = collector.collect([said.uploads for said in roll_calls])
    if judgements is not None and len(judgements):
        method.settle(t, judgements)
    return roll_calls, down, up


def _traffic(rows: list[LedgerRow], downs: Mapping[str, int], ups: Mapping[str, int]) -> dict[str, float]:
    up = sum(row.bytes for row in rows if row.link == "client->server")
    down = sum(row.bytes for row in rows if row.link == "server->client")
    between = sum(row.bytes for row in rows if row.link == "client->client")
    sent = sum(row.bytes for row in rows if row.phase == "upload")
    numbers = sum(ups.values())
    return {
        "comm/up_bytes": up,
        "comm/down_bytes": down,
        "comm/bytes": up + down + between,
        "comm/scalars": sum(downs.values()) + sum(ups.values()),
        **{f"comm/down_scalars/{name}": numbers for name, numbers in downs.items()},
        **{f"comm/up_scalars/{name}": numbers for name, numbers in ups.items()},
        **({"comm/up_bits_per_scalar": 8 * sent / numbers} if numbers else {}),
        "comm/busiest_node_bytes": up + down,  # the server sends and receives all of it
        "comm/wire_bytes": sum(row.wire_bytes for row in rows),
    }
