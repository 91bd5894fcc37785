"""A star: one server in the middle, clients around it, nothing between clients.

Two transports carry the uploads and give the same bits (design, section 5). `reduce`: every rank decodes and
adds up its own clients' uploads and one collective moves the sum. `messages`: every upload travels to the
server rank as its encoded bytes, one message per client. Under secure aggregation (`secure_aggregation`) both carry
masked vectors, whose sum alone the server can read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError
from flgen.privacy.secure_aggregation import OPTION, SecureAggregation
from flgen.topology.base import Topology

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flgen.federation.streams import RandomStreams
    from flgen.topology import secure_collector
    from flgen.wire import codecs, sums
else:
    torch = deferred_module("torch")
    secure_collector = deferred_module("flgen.topology.secure_collector")
    codecs = deferred_module("flgen.wire.codecs")
    sums = deferred_module("flgen.wire.sums")

log = logging.getLogger("flgen")

SERVER_RANK = 0

Collection = Literal["sum", "sample_weighted_sum", "gather"]


@dataclass(frozen=True)
class Uploads:
    """What the server gets at the end of a round.

    Args:
        clients: Ids of the clients whose upload arrived, ascending.
        samples: Number of training samples of those clients together.
        metrics: What collecting them showed, by name.
    """

    clients: tuple[int, ...]
    samples: int
    _collection: Collection
    _sums: dict[str, Tensor] | None
    _each: dict[int, dict[str, Tensor]] | None
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clients)

    def sum(self) -> dict[str, Tensor]:
        """Return the sum over clients of each entry (times n_k for `sample_weighted_sum`)."""
        if self._sums is None:
            raise UsageError("this method collects single uploads (collection = 'gather'): there is no sum")
        return self._sums

    def mean(self) -> dict[str, Tensor]:
        """Return the mean over clients of each entry, float64; weighted by n_k for `sample_weighted_sum`."""
        weight = self.samples if self._collection == "sample_weighted_sum" else len(self)
        return {name: total.double() / weight for name, total in self.sum().items()}

    def gather(self) -> dict[int, dict[str, Tensor]]:
        """Return every client's entries by client id."""
        if self._each is None:
            raise UsageError("this method collects sums: set its `collection` to 'gather' to see single uploads")
        return self._each


class Star(Topology):
    """A server and its clients.

    Args:
        transport: How uploads reach the server: "reduce" (sums per rank, one collective) or "messages" (one
            message per client).
        reduction: "exact" (the same bits for any number of ranks) or "fast" (plain float32 sums).
        fraction_bits: Binary places of exact float sums.
        secure_aggregation: Whether and how clients hide their uploads from the server in the sum; then `reduction`
            and `fraction_bits` are not used.
    """

    def __init__(
        self,
        transport: Literal["reduce", "messages"] = "reduce",
        reduction: Literal["exact", "fast"] = "exact",
        fraction_bits: int = 32,
        secure_aggregation: SecureAggregation | None = None,
    ) -> None:
        if not 1 <= fraction_bits <= 60:
            raise UsageError(f"--method.topology.fraction_bits is {fraction_bits}: give 1 to 60")
        self.transport = transport
        self.reduction: sums.Reduction = reduction
        self.fraction_bits = fraction_bits
        self.secure_aggregation = secure_aggregation
        self._said_that_it_clips = False

    @property
    def is_server(self) -> bool:
        """Whether this process plays the server."""
        return self.channel.rank == SERVER_RANK

    def send_down(
        self,
        round: int,
        payload: codecs.Payload | None,
        recipients: int,
        phase: str = "download",
        contexts: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Send the server's payload to every client of the cohort and return what a client receives.

        Args:
            round: The round it belongs to.
            payload: On the server; None elsewhere.
            recipients: Number of clients in the cohort.
            phase: Its name in the ledger.
            contexts: The contexts of coded entries, by name.
        """
        message = None if payload is None else codecs.encode_payload(payload)
        message = self.channel.broadcast(message, SERVER_RANK)
        if self.is_server:
            copies = self.channel.world_size - 1
            self.ledger.record(
                round,
                phase,
                "server->client",
                messages=recipients,
                bytes=recipients * message.numel(),
                wire_bytes=copies * message.numel(),
            )
        with codecs.sent_by(f"round {round}, the server's {phase}"):
            return codecs.decode_payload(message, contexts)

    def open_round(
        self,
        round: int,
        collection: Collection,
        *,
        samples: Mapping[int, int],
        rank_of: Mapping[int, int],
        download: Mapping[str, Tensor],
        streams: RandomStreams,
        contexts: Mapping[str, Tensor] | None = None,
    ) -> Collector | secure_collector.SecureCollector:
        """Start to collect the uploads of one round; under secure aggregation the clients exchange keys and shares.

        Args:
            round: The round.
            collection: What the server needs of the uploads.
            samples: Number of training samples n_k of each client of the cohort, by id.
            rank_of: The rank that runs each of them, by id.
            download: What `send_down` returned.
            streams: The run's random streams.
            contexts: The contexts of coded entries, by name.
        """
        if self.secure_aggregation is not None:
            return secure_collector.SecureCollector(
                self, self.secure_aggregation, round, collection, samples, rank_of, download, streams
            )
        weight_limit = sum(samples.values()) if collection == "sample_weighted_sum" else len(samples)
        running = sums.RunningSum(weight_limit, self.reduction, self.fraction_bits)
        alone = len(samples) == 1
        by_message = self.transport == "messages" or collection == "gather" or alone
        return Collector(self, round, collection, running, by_message, alone, contexts)

    def carry_messages(
        self, round: int, messages: Mapping[int, Tensor], roll_calls: Sequence[dict]
    ) -> dict[int, Tensor]:
        """Return the encoded uploads of all clients by id on the server, nothing elsewhere.

        Args:
            round: The round they belong to.
            messages: Those of this rank's clients, uint8 (bytes,), by id.
            roll_calls: What every rank said, by rank; its "sizes" are those of its messages.
        """
        plan = [
            (client, rank, size)
            for rank, call in enumerate(roll_calls)
            for client, size in sorted(call["sizes"].items())
        ]
        if not self.is_server:
            moved = sum(message.numel() for message in messages.values())
            self.ledger.record(round, "upload", "client->server", wire_bytes=moved)
        return self.channel.gather_messages(messages, plan, SERVER_RANK)

    def report_clipping(self, round: int, share: float) -> None:
        """Say once that secure aggregation cuts what clients send, if it does."""
        if share > 0 and not self._said_that_it_clips:
            self._said_that_it_clips = True
            log.warning(
                "round %d: %.2g %% of the coordinates were cut to %s.clip; raise it if that goes on",
                round,
                100 * share,
                OPTION,
            )


class Collector:
    """Takes the uploads of this rank's clients one by one and brings the round's result to the server."""

    def __init__(
        self,
        star: Star,
        round: int,
        collection: Collection,
        running: sums.RunningSum,
        by_message: bool,
        alone: bool,
        contexts: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._star = star
        self._round = round
        self._collection: Collection = collection
        self._running = running
        self._by_message = by_message
        self._alone = alone
        self._contexts = contexts
        self._messages: dict[int, Tensor] = {}
        self._samples: dict[int, int] = {}

    def add(self, client: int, samples: int, payload: codecs.Payload) -> None:
        """Encode one client's upload, enter it in the ledger, and keep it or add it to this rank's sum.

        Raises:
            FlgenError: It is nothing that could be added; then it leaves no trace.
        """
        message = codecs.encode_payload(payload)
        if not self._by_message:
            self._running.add(codecs.decode_payload(message, self._contexts), self._weight(samples))
        elif not (self._collection == "gather" or self._alone):
            self._running.check(codecs.decode_payload(message, self._contexts))  # as the server will, but in time
        if self._by_message:
            self._messages[client] = message
        self._samples[client] = samples
        self._star.ledger.record(self._round, "upload", "client->server", messages=1, bytes=message.numel())

    def roll_call(self) -> dict:
        """Return what the other ranks must know about this rank's uploads."""
        return {
            "samples": self._samples,
            "sizes": {client: message.numel() for client, message in self._messages.items()},
            "summands": self._running.summands,
        }

    def collect(self, roll_calls: Sequence[dict]) -> Uploads | None:
        """Run the collectives of the upload; returns the uploads on the server and None elsewhere.

        Args:
            roll_calls: Every rank's `roll_call`, by rank; the same list on every rank.
        """
        if self._by_message:
            each = self._star.carry_messages(self._round, self._messages, roll_calls)
        else:
            self._reduce(roll_calls)
        if not self._star.is_server:
            return None
        samples = {client: n for call in roll_calls for client, n in call["samples"].items()}
        if not self._by_message:
            return self._uploads(samples, self._running.values(), None)
        decoded = {client: self._decoded(client, each[client]) for client in sorted(each)}
        if self._collection == "gather":
            return self._uploads(samples, None, decoded)
        if self._alone and decoded:
            # Its own mean, without rounding: one client alone trains as if there were no federation.
            ((client, upload),) = decoded.items()
            return self._uploads(samples, _times(upload, self._weight(samples[client])), None)
        for client, upload in decoded.items():
            self._running.add(upload, self._weight(samples[client]))
        return self._uploads(samples, self._running.values(), None)

    def _decoded(self, client: int, message: Tensor) -> dict[str, Tensor]:
        with codecs.sent_by(f"round {self._round}, the upload of client {client}"):
            return codecs.decode_payload(message, self._contexts)

    def _uploads(
        self, samples: dict[int, int], total: dict[str, Tensor] | None, each: dict[int, dict[str, Tensor]] | None
    ) -> Uploads:
        return Uploads(tuple(sorted(samples)), sum(samples.values()), self._collection, total, each)

    def _weight(self, samples: int) -> int:
        return samples if self._collection == "sample_weighted_sum" else 1

    def _reduce(self, roll_calls: Sequence[dict]) -> None:
        channel = self._star.channel
        for call in roll_calls:
            for name, summand in call["summands"].items():
                self._running.expect(name, summand, channel.device)
        for name in sorted(self._running.totals):
            total = self._running.totals[name]
            if not self._star.is_server:
                self._star.ledger.record(self._round, "upload", "client->server", wire_bytes=total.nbytes)
            channel.reduce(total, SERVER_RANK)


def _times(upload: dict[str, Tensor], weight: int) -> dict[str, Tensor]:
    return {
        name: tensor.double() * weight if tensor.is_floating_point() else tensor.to(torch.int64) * weight
        for name, tensor in upload.items()
    }
