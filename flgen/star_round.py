"""One round on a star (design, section 3): download, client steps, uploads, aggregation."""

from __future__ import annotations

from flgen.client_turns import ClientTurns, ErrorPolicy, Hook, RoundOutcome, stopped_by
from flgen.federation.clients import Client, Federation
from flgen.federation.interruption import StopRequest
from flgen.federation.state_store import ClientStateStore
from flgen.methods.base import ServerMethod
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
    turns = ClientTurns(method, federation, store, channel, t, stop=stop, policy=policy, call=call)
    cohort = federation.cohort(t)
    rank_of = federation.ranks(cohort)

    offered = method.download(t) if star.is_server else None
    download = star.send_down(t, offered, len(cohort))
    scalars = 0 if offered is None else len(cohort) * count_scalars(offered)

    samples = {client.id: client.samples for client in cohort}
    collector = star.open_round(
        t, method.collection, samples=samples, rank_of=rank_of, download=download, streams=federation.streams
    )

    diversity = UpdateDiversity(channel, len(cohort)) if gradient_diversity else None

    def step(client: Client) -> Payload:
        return method.client_step(client, download, t)

    def keep(client: Client, payload: Payload) -> None:
        nonlocal scalars
        scalars += count_scalars(payload)
        collector.add(client.id, client.samples, payload)
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
    if uploads is not None:
        method.aggregate(t, uploads)
    store.commit()

    said = channel.agree((star.ledger.take(), scalars))
    rows = add_up(ledger for ledger, _ in said)
    noticed = {} if uploads is None else dict(uploads.metrics)
    if diversity is not None:
        noticed.update(diversity.collect())
    return turns.outcome(roll_calls, failures, rows, {**_traffic(rows, sum(counted for _, counted in said)), **noticed})


def _traffic(rows: list[LedgerRow], scalars: int) -> dict[str, float]:
    up = sum(row.bytes for row in rows if row.link == "client->server")
    down = sum(row.bytes for row in rows if row.link == "server->client")
    return {
        "comm/up_bytes": up,
        "comm/down_bytes": down,
        "comm/bytes": up + down,
        "comm/scalars": scalars,
        "comm/busiest_node_bytes": up + down,  # the server sends and receives all of it
        "comm/wire_bytes": sum(row.wire_bytes for row in rows),
    }
