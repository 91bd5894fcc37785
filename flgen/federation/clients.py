"""Clients, the federation they form, and who takes part in a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.federation.streams import RandomStreams

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.data.client_data import ClientData


@dataclass
class Client:
    """One client: an id, its data, its persistent state, its random streams.

    Args:
        id: Position in the federation.
        samples: Number of training samples n_k; public.
        streams: The run's random streams.
        key: Names this client's random streams; the id unless clients were renumbered.
        open_data: Returns the client's data on a device; called once, on the rank that hosts the client.
        device: Where that rank computes.
        open_test: Returns the client's own test data on a device, of the same classes as its training data.
        test_samples: Number of these.
        open_validation: Returns the data that the client holds back from training; None if there are none.
        validation_samples: Number of these.
    """

    id: int
    samples: int
    streams: RandomStreams
    key: int
    open_data: Callable[[torch.device | str], ClientData]
    device: torch.device | str = "cpu"
    open_test: Callable[[torch.device | str], ClientData] | None = None
    test_samples: int = 0
    open_validation: Callable[[torch.device | str], ClientData] | None = None
    validation_samples: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that persist from round to round; a method reads and replaces them in its client step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What a client step reports; the round's metrics are the means over clients."""

    @cached_property
    def data(self) -> ClientData:
        """The client's own samples, on this rank's device."""
        return self.open_data(self.device)

    @cached_property
    def test_data(self) -> ClientData:
        """The client's own test samples, on this rank's device."""
        if self.open_test is None:
            raise FlgenError(f"client {self.id} was made without test data")
        return self.open_test(self.device)

    @cached_property
    def validation_data(self) -> ClientData | None:
        """The samples that the client holds back from training, on this rank's device; None if there are none."""
        return None if self.open_validation is None else self.open_validation(self.device)

    def split(self, fraction: float) -> tuple[ClientData, ClientData]:
        """Return the client's samples to train on and those that it holds back, the same in every round.

        Args:
            fraction: Share of the samples that is held back, below 1; at least one is.

        Raises:
            UsageError: There are not enough samples, or they are streamed.
        """
        held_back = max(1, int(fraction * self.samples + 1e-9))  # 29 of 100 at 0.29, not 28
        return self.data.split(held_back, self.random("validation split", 0))

    def close_data(self) -> None:
        """Forget the opened data; they are opened again when they are needed."""
        for name in ("data", "test_data", "validation_data"):
            self.__dict__.pop(name, None)

    def random(self, purpose: str, t: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return this client's random stream for one purpose in round t."""
        return self.streams.torch(purpose, round=t, client=self.key, device=device)


@dataclass
class Federation:
    """All clients, which rank hosts each, and who takes part in round t.

    Args:
        clients: Every client, by id; all ranks hold the same list, only the host opens a client's data.
        streams: The run's random streams.
        world_size: Number of ranks.
        clients_per_round: Size of a cohort; None means everybody.
        rounds: Number of rounds that the run is planned for, T.
        stateless: Whether clients keep nothing from round to round, so that any rank can stand in for a client's
            host; a method says so in its `setup`.

    Raises:
        UsageError: More ranks than clients, or a cohort larger than the federation.
    """

    clients: Sequence[Client]
    streams: RandomStreams
    world_size: int = 1
    clients_per_round: int | None = None
    rounds: int = 1
    stateless: bool = False

    def __post_init__(self) -> None:
        if self.world_size > len(self.clients):
            raise UsageError(
                f"{self.world_size} processes for {len(self.clients)} clients leave some without work: lower "
                "--trainer.devices (or --trainer.num_nodes) or raise --partition.clients"
            )
        if self.clients_per_round is not None and not 1 <= self.clients_per_round <= len(self.clients):
            raise UsageError(
                f"--trainer.clients_per_round is {self.clients_per_round}: give 1 to {len(self.clients)}, the number "
                "of clients (--partition.clients)"
            )
        self._attendance: Counter[int] = Counter()  # by id, in the rounds that are counted
        self._most_rounds = [0]  # by round, from 0
        self.place_by_work(lambda client: 1.0)

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def measured_samples(self) -> dict[str, dict[int, int]]:
        """Number of samples that each client is measured on, by id, of its own "test" and of its "val" data."""
        return {
            "test": {client.id: client.test_samples for client in self.clients},
            "val": {client.id: client.validation_samples for client in self.clients},
        }

    def place_by_work(self, work: Callable[[Client], float]) -> None:
        """Balance the ranks by each client's expected work per round (any unit)."""
        self._work = [work(client) for client in self.clients]
        self.host = place(self._work, self.world_size)

    def check_split(self, method: str) -> None:
        """Refuse clients that have nothing to hold back beside what they train on (`Client.split`).

        Args:
            method: Who asks for it, for the message.

        Raises:
            UsageError: There is one.
        """
        for client in self.clients:
            if client.samples < 2:
                raise UsageError(
                    f"client {client.id} has {client.samples} sample{'' if client.samples else 's'}, but {method} "
                    "trains on some and holds some back: lower --partition.clients or raise --partition.min_samples"
                )

    def cohort(self, t: int) -> list[Client]:
        """Return who takes part in round t, by ascending id: drawn without replacement from a stream of its own."""
        if self.clients_per_round is None or self.clients_per_round == len(self.clients):
            return list(self.clients)
        by_key = sorted(self.clients, key=lambda client: client.key)
        chosen = self.streams.numpy("cohort", round=t).choice(len(by_key), self.clients_per_round, replace=False)
        return sorted((by_key[i] for i in chosen), key=lambda client: client.id)

    def most_rounds(self, t: int) -> int:
        """Return in how many of rounds 1 to t the client that took part most often did so."""
        if self.clients_per_round in (None, len(self.clients)):
            return t
        for round in range(len(self._most_rounds), t + 1):
            self._attendance.update(client.id for client in self.cohort(round))
            self._most_rounds.append(max(self._attendance.values()))
        return self._most_rounds[t]

    def ranks(self, cohort: Sequence[Client]) -> dict[int, int]:
        """Return the rank that runs each client of a cohort, by id: its host, or one that stands in (`stateless`)."""
        home = [self.host[client.id] for client in cohort]
        rank = balance([self._work[client.id] for client in cohort], home, self.world_size) if self.stateless else home
        return {client.id: rank[number] for number, client in enumerate(cohort)}

    def hosted_by(self, rank: int) -> list[Client]:
        """Return the clients of one rank, by ascending id."""
        return [client for client in self.clients if self.host[client.id] == rank]


def cohort_size(clients: int, participation: float) -> int:
    """Return how many of some clients take part in a round by a sampling ratio rho: rho N, rounded, at least one."""
    return max(1, round(participation * clients))


def place(work: Sequence[float], world_size: int) -> list[int]:
    """Return the rank of each client: heaviest first, each to the rank with the least work so far."""
    load = np.zeros(world_size)
    host = [0] * len(work)
    for client in sorted(range(len(work)), key=lambda client: (-work[client], client)):
        rank = int(load.argmin())
        host[client] = rank
        load[rank] += work[client]
    return host


def balance(work: Sequence[float], home: Sequence[int], world_size: int) -> list[int]:
    """Return the rank that does each piece of work: its home, unless a move brings the ranks closer together.

    A small cohort rarely falls evenly on the ranks: of 10 clients drawn from 100, one of two hosts 6.2 on average.

    Args:
        work: Amount of each piece, not negative.
        home: Rank that each piece would rather stay on.
        world_size: Number of ranks.
    """
    rank = list(home)
    load = np.bincount(home, weights=work, minlength=world_size)
    while True:
        busiest, idlest = int(load.argmax()), int(load.argmin())
        gap = load[busiest] - load[idlest]
        movable = [piece for piece, amount in enumerate(work) if rank[piece] == busiest and 0 < amount < gap]
        if not movable:
            return rank
        moved = min(movable, key=lambda piece: (abs(gap / 2 - work[piece]), piece))
        rank[moved] = idlest
        load[busiest] -= work[moved]
        load[idlest] += work[moved]
