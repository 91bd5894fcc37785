"""What secure aggregation adds to a round: processor time and bytes, of all clients and the server together."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from clocks import Seconds
from report import Report
from torch import Tensor

from flgen.federation.streams import RandomStreams
from flgen.privacy import SecureAggregation
from flgen.topology import Star
from flgen.topology.channel import Channel
from flgen.wire.codecs import dense
from flgen.wire.ledger import Ledger

pytestmark = pytest.mark.benchmark

PARAMETERS = 1_200_000
TURNS = 5


class Round:
    """A round in which clients only send: weights near those they were sent.

    Args:
        clients: Their number.
        lost: How many of them send nothing in the end.
    """

    def __init__(self, clients: int, lost: int = 0) -> None:
        draws = torch.Generator().manual_seed(0)
        self.samples = {client: 100 + client for client in range(clients)}
        self.lost = lost
        self.server = torch.randn(PARAMETERS, generator=draws) / 10
        self.trained = self.server + torch.randn(PARAMETERS, generator=draws) / 100
        self.streams = RandomStreams(0)

    def play(self, secure_aggregation: SecureAggregation | None) -> tuple[Seconds, int, Tensor]:
        """Return what the round took, the bytes that it moved, and the mean of the weights."""
        star = Star(secure_aggregation=secure_aggregation)
        star.open(Channel(0, 1, torch.device("cpu"), 60, 60), Ledger())
        began = Seconds.now()
        download = star.send_down(1, {"weights": dense(self.server)}, len(self.samples))
        collector = star.open_round(
            1,
            "sample_weighted_sum",
            samples=self.samples,
            rank_of=dict.fromkeys(self.samples, 0),
            download=download,
            streams=self.streams,
        )
        for client, n in list(self.samples.items())[self.lost :]:
            collector.add(client, n, {"weights": dense(self.trained)})
        uploads = collector.collect([collector.roll_call()])
        took = Seconds.now() - began
        assert uploads is not None
        return took, sum(row.bytes for row in star.ledger.take()), uploads.mean()["weights"]


@pytest.mark.parametrize(("clients", "lost", "budget_s"), [(10, 0, 2.0), (10, 2, 2.0), (100, 0, None)])
def test_seconds_and_bytes_added_to_a_round(clients: int, lost: int, budget_s: float | None, report: Report) -> None:
    trial = Round(clients, lost)
    added, wall, plain_s = [], [], []
    for _ in range(TURNS):
        plain, plain_bytes, expected = trial.play(None)
        secure, secure_bytes, found = trial.play(SecureAggregation())
        assert float((found - expected).abs().max()) < clients * 2.0**-20
        added.append(secure.cpu - plain.cpu)
        wall.append(secure.wall - plain.wall)
        plain_s.append(plain.cpu)
    who = f"{clients} clients" + (f", {lost} drop-outs" if lost else "")
    neighbours = SecureAggregation().degree(clients)
    report.add(
        f"Secure aggregation, added to a round of {who}",
        median(added),
        budget_s,
        "s",
        f"{PARAMETERS:,} float32 parameters, {neighbours} neighbours each, all clients and the server in one process, "
        f"1 thread; processor time, median of {TURNS} rounds in turns with plain ones ({median(plain_s):.2f} s); by "
        f"the wall clock {median(wall):.2f} s",
    )
    if not lost:
        report.add(
            f"Secure aggregation, bytes added per client of {clients}",
            (secure_bytes - plain_bytes) / clients,
            None,
            "B",
            f"keys, shares and answers, both directions; beside {plain_bytes / clients:,.0f} B of weights, down and up",
        )
