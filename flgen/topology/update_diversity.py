"""What the updates of a round say about each other, measured beside the protocol.

It is a measuring device of the simulation: it looks at each client's update where the client is played, before anything
is rounded, cut or masked, so it sees what the server may not (under secure aggregation too) and is no traffic of the
method. Sums are exact, as those of uploads are, so the number of ranks does not change a bit of the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flgen.errors import FlgenError
from flgen.metrics.gradient_diversity import diversity_metrics
from flgen.topology.channel import Channel
from flgen.topology.star import SERVER_RANK
from flgen.wire.sums import RunningSum

FRACTION_BITS = 40
"""Binary places of the sums: a coordinate is off by 5e-13 at most, and ten clients may move it by 400,000."""

_SUMS = "sum_k Delta_k and sum_k u_k"


class UpdateDiversity:
    """Adds up the updates of this rank's clients, and brings the round's metrics to the server.

    Args:
        channel: Joins the ranks.
        clients: Number of clients in the cohort.
    """

    def __init__(self, channel: Channel, clients: int) -> None:
        self._channel = channel
        self._clients = clients
        self._running = RunningSum(clients, "exact", FRACTION_BITS)
        self._squares: list[float] = []

    def add(self, client: int, update: Tensor) -> None:
        """Add one client's update.

        Args:
            client: Its id.
            update: Delta_k (d,), any float type.

        Raises:
            FlgenError: A coordinate is too large for an exact sum.
        """
        update = update.double()
        largest = float(update.abs().max()) if update.numel() else 0.0
        if not largest * self._clients * 2.0**FRACTION_BITS < 2.0**62:
            raise FlgenError(
                f"client {client} moved a weight by {largest:.3g}, too far for --evaluation.gradient_diversity true: "
                "lower --model.learning_rate, or set it to false"
            )
        square = float(update.square().sum())
        direction = update / math.sqrt(square) if square > 0 else torch.zeros_like(update)
        self._squares.append(square)
        self._running.add({_SUMS: torch.stack([update, direction])}, 1)

    def collect(self) -> dict[str, float]:
        """Run the reduction, which every rank calls; return the metrics on the server and nothing elsewhere."""
        said = self._channel.agree((self._squares, self._running.summands))
        squares = [square for of_rank, _ in said for square in of_rank]
        for _, summands in said:
            for name, summand in summands.items():
                self._running.expect(name, summand, self._channel.device)
        if not squares:
            return {}
        self._channel.reduce(self._running.totals[_SUMS], SERVER_RANK)
        if self._channel.rank != SERVER_RANK:
            return {}
        square_of_sum, square_of_unit_sum = self._running.values()[_SUMS].square().sum(dim=1).tolist()
        return diversity_metrics(
            math.fsum(squares),  # rounded once, in whatever order they come
            square_of_sum,
            square_of_unit_sum,
            clients=len(squares),
            moved=sum(square > 0 for square in squares),
        )
