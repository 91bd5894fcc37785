"""The ledger: bytes of encoded payloads that the protocol sends, and bytes that moved between processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Link = Literal["server->client", "client->server", "client->client"]


@dataclass
class LedgerRow:
    """What one kind of link carried in one phase of a round.

    Args:
        round: The round.
        phase: "download", "upload", ...
        link: Who sends to whom.
        messages: Payloads that the protocol sends.
        bytes: Their encoded size, whether or not the two ends share a process.
        wire_bytes: Payload bytes handed to the process group for another process.
    """

    round: int
    phase: str
    link: Link
    messages: int = 0
    bytes: int = 0
    wire_bytes: int = 0


@dataclass
class Ledger:
    """The counts of one process."""

    rows: dict[tuple[int, str, Link], LedgerRow] = field(default_factory=dict)

    def record(
        self, round: int, phase: str, link: Link, *, messages: int = 0, bytes: int = 0, wire_bytes: int = 0
    ) -> None:
        """Add to the row of this round, phase and link."""
        row = self.rows.setdefault((round, phase, link), LedgerRow(round, phase, link))
        row.messages += messages
        row.bytes += bytes
        row.wire_bytes += wire_bytes

    def take(self) -> list[LedgerRow]:
        """Remove and return all rows, in a stable order."""
        rows = [self.rows[key] for key in sorted(self.rows)]
        self.rows = {}
        return rows


def add_up(ledgers: Iterable[list[LedgerRow]]) -> list[LedgerRow]:
    """Return the rows of several processes, those of the same round, phase and link added."""
    total = Ledger()
    for rows in ledgers:
        for row in rows:
            total.record(
                row.round,
                row.phase,
                row.link,
                messages=row.messages,
                bytes=row.bytes,
                wire_bytes=row.wire_bytes,
            )
    return total.take()
