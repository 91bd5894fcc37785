"""What clients hand over arrives at who gets it, whoever hosts them, and is counted from client to client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flgen.topology.channel import Channel
from flgen.topology.hand_over import hand_over
from flgen.topology.star import Star
from flgen.wire import codecs
from flgen.wire.ledger import Ledger, add_up

OnRanks = Callable[..., list[Any]]
MOVES = {0: 2, 2: 3, 3: 0, 4: 1}  # a circle of three, and one that hands over and gets nothing back


def state(client: int) -> torch.Tensor:
    return torch.full((10 * client + 1,), float(client))


def carry(channel: Channel, host: list[int]) -> tuple[dict[int, dict[str, torch.Tensor]], list[Any]]:
    star = Star()
    star.open(channel, Ledger())
    offered = {client: {"weights": codecs.dense(state(client))} for client in MOVES if host[client] == channel.rank}
    return hand_over(star, 5, offered, MOVES, host), star.ledger.take()


@pytest.mark.parametrize("host", [[0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 1, 2]], ids=["1", "2", "3"])
def test_every_state_arrives_where_it_is_to_go(host: list[int], on_ranks: OnRanks) -> None:
    ranks = max(host) + 1
    said = on_ranks(ranks, lambda channel: carry(channel, host))
    arrived = {client: tensors for received, _ in said for client, tensors in received.items()}
    assert sorted(arrived) == [0, 1, 2, 3]
    for giver, receiver in MOVES.items():
        assert torch.equal(arrived[receiver]["weights"], state(giver))
    for rank, (received, _) in enumerate(said):
        assert all(host[receiver] == rank for receiver in received)

    sizes = {giver: 20 + 8 + len("weights") + 4 * (10 * giver + 1) for giver in MOVES}
    (row,) = add_up(rows for _, rows in said)
    assert (row.round, row.phase, row.link) == (5, "hand-over", "client->client")
    assert (row.messages, row.bytes) == (4, sum(sizes.values()))
    assert row.wire_bytes == sum(sizes[giver] for giver, to in MOVES.items() if host[giver] != host[to])
