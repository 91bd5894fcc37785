"""Private label union: the server learns which labels there are, not who holds them.

Every client writes its labels into an invertible Bloom lookup table of a public layout; the tables are added up under
secure aggregation, and the server reads the sum. Specification of GPT-FL, sections 2.2 to 2.5 (its stage S0).
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.privacy.label_table import CELLS_PER_KEY, MODULUS, LabelTable, TableLayout, canonical, table_width
from flgen.privacy.secure_aggregation import FEW

if TYPE_CHECKING:
    import torch

    from flgen.federation.streams import RandomStreams
    from flgen.privacy import secure_sum
    from flgen.privacy.secure_aggregation import SecureAggregation
    from flgen.privacy.secure_sum import SecureSum
    from flgen.topology.channel import Channel
    from flgen.wire import residues
    from flgen.wire.ledger import Ledger
else:
    torch = deferred_module("torch")
    secure_sum = deferred_module("flgen.privacy.secure_sum")
    residues = deferred_module("flgen.wire.residues")

log = logging.getLogger("flgen")

LARGEST_TABLE_BYTES = 2**30


@dataclass(frozen=True)
class LabelUnionOptions:
    """How the labels of all clients are brought together.

    Args:
        capacity: Upper bound n of the number of distinct labels of all clients together, up to 10^9; public.
        hashes: Sub-tables k, each with a cell for every label, 3 to 6.
        failure_rate: Probability delta, at most, that two labels meet in all their cells and the table must be sent
            again; from 1e-18, the probability that an error is not noticed.
        count_mode: "blind" multiplies every label with a random number, so that the server learns the union alone;
            "clients" also tells it how many clients hold each label.
        key_cells: Words Cc of a label; a label has at most 7 Cc - 1 bytes, 1 to 36 words.
        attempts: How often to try, each time with twice as many cells as before, 1 to 20.

    Raises:
        UsageError: A number is out of its range, or the last attempt's table would have more than 2^30 bytes.
    """

    capacity: int
    hashes: int = 4
    failure_rate: float = 1e-6
    count_mode: Literal["blind", "clients"] = "blind"
    key_cells: int = 8
    attempts: int = 5

    def __post_init__(self) -> None:
        for option, most in (("capacity", 10**9), ("attempts", 20)):
            if not 1 <= getattr(self, option) <= most:
                raise UsageError(f"--union.{option} is {getattr(self, option)}: give 1 to {most}")
        if self.hashes not in CELLS_PER_KEY:
            raise UsageError(f"--union.hashes is {self.hashes}: give {min(CELLS_PER_KEY)} to {max(CELLS_PER_KEY)}")
        if not 1e-18 <= self.failure_rate < 1:
            raise UsageError(f"--union.failure_rate is {self.failure_rate}: give a probability from 1e-18, below 1")
        if not 1 <= self.key_cells <= 36:  # the length of a label is one byte
            raise UsageError(f"--union.key_cells is {self.key_cells}: give 1 to 36")
        largest = self.layout(self.attempts, seed=0).nbytes
        if largest > LARGEST_TABLE_BYTES:
            raise UsageError(
                f"--union.capacity is {self.capacity}: in attempt {self.attempts} every client would send a table of "
                f"{largest / 2**20:,.0f} MiB, more than {LARGEST_TABLE_BYTES // 2**20:,}; lower it, "
                "--union.key_cells or --union.attempts, or raise --union.failure_rate"
            )

    def layout(self, attempt: int, seed: int) -> TableLayout:
        """Return the layout of an attempt's table, from 1: each has twice as many cells as the one before.

        Args:
            attempt: Its number.
            seed: Of its hash functions.
        """
        width = table_width(self.capacity, self.hashes, self.failure_rate)
        return TableLayout(self.hashes, width << (attempt - 1), self.key_cells, seed)


@dataclass(frozen=True)
class LabelUnion:
    """The labels of all clients together, and how they were read.

    Args:
        labels: Canonical labels, sorted: a label's index is its class id. None are given of a table that was not read
            to its end.
        complete: Whether the table was read to its end.
        residual_cells: Cells that were not empty at the end.
        attempts: Tables that every client sent.
        k: Sub-tables of the last table.
        m: Cells of each of them.
        p: Modulus of the cells.
        seed: Seed of its hash functions.
        bytes_per_client: Size of the tables that every client sent, all attempts together.
        capacity: The number of labels that the first table was made for.
        key_cells: Words of a label.
        count_mode: "blind" or "clients".
        clients: Clients that hold each label, in the order of `labels`; None if `count_mode` is "blind".

    Source: specification of GPT-FL, section 2.5.
    """

    labels: tuple[str, ...]
    complete: bool
    residual_cells: int
    attempts: int
    k: int
    m: int
    p: int
    seed: int
    bytes_per_client: int
    capacity: int
    key_cells: int
    count_mode: Literal["blind", "clients"]
    clients: tuple[int, ...] | None

    def to_json(self) -> str:
        """Return the text of labels.json."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LabelUnion:
        """Return what `to_json` wrote."""
        fields = json.loads(text)
        clients = None if fields["clients"] is None else tuple(fields["clients"])
        return cls(**{**fields, "labels": tuple(fields["labels"]), "clients": clients})


def random_multiplicity() -> int:
    """Return v, uniform in 1 .. p - 1, from the system's generator: who could repeat the draw could count clients."""
    return 1 + secrets.randbelow(MODULUS - 1)


def label_union(
    labels_of: Mapping[int, Iterable[str]],
    rank_of: Mapping[int, int],
    channel: Channel,
    ledger: Ledger,
    streams: RandomStreams,
    options: LabelUnionOptions,
    secure_aggregation: SecureAggregation,
    draw: Callable[[], int] = random_multiplicity,
) -> LabelUnion:
    """Bring the labels of all clients together and return them on every rank; every rank calls it.

    Args:
        labels_of: The labels of each client that this rank hosts, in any spelling.
        rank_of: The rank of every client, by id; the same on all ranks.
        channel: Connects the ranks.
        ledger: Counts what the protocol sends; its rounds are the attempts.
        streams: The run's random streams; they give the seeds of the hash functions, which are public.
        options: Size of the table and what it tells.
        secure_aggregation: How the tables are masked; what it says of floats does not matter here.
        draw: Draws v for one label of one client in the mode "blind".

    Raises:
        UsageError: There are too few clients, or one has a label that is empty or too long.
        FlgenError: No attempt's table was read to its end; labels are never returned in part.

    Source: specification of GPT-FL, sections 2.2 to 2.5.
    """
    cohort = sorted(rank_of)
    fewest = max(2, secure_aggregation.min_participants)
    if len(cohort) < fewest:
        or_lower = ", or lower --secure_aggregation.min_participants" if fewest > 2 else ""
        raise UsageError(
            f"{len(cohort)} client{'s' * (len(cohort) != 1)} cannot hide the labels from the server, at least {fewest} "
            f"are needed: raise --partition.clients{or_lower}"
        )
    if len(cohort) < FEW and channel.rank == 0:
        log.warning("only %d clients: who knows the labels of some can tell much about the others'", len(cohort))
    v = draw if options.count_mode == "blind" else _once
    sent_bytes = 0
    for attempt in range(1, options.attempts + 1):
        layout = options.layout(attempt, streams.seed_for("label table", round=attempt))
        sent_bytes += layout.nbytes
        secure = secure_sum.SecureSum(
            channel, ledger, secure_aggregation, modulus=MODULUS, round=attempt, purpose="label tables", streams=streams
        )
        secure.open(cohort, rank_of)
        total = _add_up(labels_of, layout, v, secure)
        read = None if total is None else _read(total, len(cohort), options, attempt, sent_bytes)
        union = _tell_everyone(read, secure)
        if union.complete:
            return union
        if secure.is_server and attempt < options.attempts:
            log.warning(
                "label table %d of at most %d could not be read (%d of %d cells are left): trying twice as many cells",
                attempt,
                options.attempts,
                union.residual_cells,
                union.k * union.m,
            )
    tried = f"{options.attempts} attempt{'s' * (options.attempts > 1)}"
    raise FlgenError(
        f"the labels could not be read in {tried} ({layout.hashes} x {layout.width} cells in the last): the clients "
        f"probably have more than --union.capacity {options.capacity}; raise it to a bound of all clients' distinct "
        "labels, or raise --union.attempts"
    )


def client_table(client: int, labels: Iterable[str], layout: TableLayout, draw: Callable[[], int]) -> LabelTable:
    """Return what one client sends: each of its distinct labels once.

    Args:
        client: Its id, for messages.
        labels: Its labels, in any spelling.
        layout: The table's.
        draw: Returns v for the next label.

    Raises:
        UsageError: A label is empty or too long.
    """
    table = LabelTable(layout)
    for label in sorted({canonical(label) for label in labels}):
        try:
            table.insert(label, draw())
        except UsageError as error:
            raise UsageError(f"client {client}: {error}") from None
    return table


def _once() -> int:
    return 1


def _add_up(
    labels_of: Mapping[int, Iterable[str]], layout: TableLayout, draw: Callable[[], int], secure: SecureSum
) -> LabelTable | None:
    """Return the sum of all clients' tables on the server, None elsewhere; this rank masks those of its clients."""
    masked_sum = residues.zeros(math.prod(layout.shape), MODULUS)
    for client, labels in labels_of.items():  # one table at a time: there may be thousands of clients
        table = client_table(client, labels, layout, draw)
        masked = secure.mask(client, table.cells.reshape(-1))
        secure.ledger.record(secure.round, "upload", "client->server", messages=1, bytes=masked.nbytes)
        residues.add(masked_sum, masked, MODULUS)
    total = secure.unmask(secure.sum_over_ranks(masked_sum), secure.cohort)
    return None if total is None else LabelTable(layout, total.reshape(layout.shape))


def _read(total: LabelTable, clients: int, options: LabelUnionOptions, attempt: int, sent_bytes: int) -> LabelUnion:
    """Return what the server reads; a count of more clients than there are is a table that was not read right."""
    peeled = total.peel()
    counted = options.count_mode == "clients"
    complete = peeled.complete and not (counted and any(c > clients for c in peeled.multiplicities.values()))
    labels = peeled.labels if complete else ()
    return LabelUnion(
        labels=labels,
        complete=complete,
        residual_cells=peeled.residual_cells,
        attempts=attempt,
        k=total.layout.hashes,
        m=total.layout.width,
        p=MODULUS,
        seed=total.layout.seed,
        bytes_per_client=sent_bytes,
        capacity=options.capacity,
        key_cells=options.key_cells,
        count_mode=options.count_mode,
        clients=tuple(peeled.multiplicities[label] for label in labels) if counted else None,
    )


def _tell_everyone(union: LabelUnion | None, secure: SecureSum) -> LabelUnion:
    """Send the server's result to every client: all need the same class ids, or to know that there is a next table."""
    message = None if union is None else torch.frombuffer(bytearray(union.to_json(), "utf-8"), dtype=torch.uint8)
    message = secure.channel.broadcast(message, secure.server_rank)
    if secure.is_server:
        clients, copies = len(secure.cohort), secure.channel.world_size - 1
        secure.ledger.record(
            secure.round,
            "download",
            "server->client",
            messages=clients,
            bytes=clients * message.numel(),
            wire_bytes=copies * message.numel(),
        )
    return LabelUnion.from_json(message.cpu().numpy().tobytes().decode("utf-8"))
