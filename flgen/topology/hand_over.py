"""State that clients hand over to each other at the end of a round, without the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from flgen.topology.base import Topology
from flgen.topology.channel import Transfer
from flgen.wire.codecs import Payload, decode_payload, encode_payload, sent_by


def hand_over(
    topology: Topology, round: int, offered: Mapping[int, Payload], moves: Mapping[int, int], host: Sequence[int]
) -> dict[int, dict[str, Tensor]]:
    """Carry what clients offer to who gets it; every rank calls it.

    Args:
        topology: Opened; its ledger counts one message from client to client for each move.
        round: The round.
        offered: What each client of this rank that has to hand something over does, by its id.
        moves: Who gets it, from id to id, the same on every rank; nobody gets two.
        host: The rank that hosts each client.

    Returns:
        What the clients of this rank get, by the id of the receiver.
    """
    channel = topology.channel
    messages = {giver: encode_payload(payload) for giver, payload in offered.items()}
    said = channel.agree({giver: message.numel() for giver, message in messages.items()})
    sizes = {giver: size for sizes_of_a_rank in said for giver, size in sizes_of_a_rank.items()}
    plan = [Transfer(giver, host[giver], host[moves[giver]], sizes[giver]) for giver in sorted(moves)]
    for transfer in plan:
        if transfer.source == channel.rank:
            moved = transfer.bytes if transfer.destination != channel.rank else 0
            topology.ledger.record(
                round, "hand-over", "client->client", messages=1, bytes=transfer.bytes, wire_bytes=moved
            )
    received = channel.exchange(messages, plan)
    handed_over = {}
    for giver, message in received.items():
        with sent_by(f"round {round}, what client {giver} handed over"):
            handed_over[moves[giver]] = decode_payload(message)
    return handed_over
