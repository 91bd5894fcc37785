"""What every topology is: who may send to whom, over a process group of its own."""

from __future__ import annotations

from flgen.deferred import TYPE_CHECKING

if TYPE_CHECKING:
    from flgen.topology.channel import Channel
    from flgen.wire.ledger import Ledger


class Topology:
    """Who may send to whom."""

    def open(self, channel: Channel, ledger: Ledger) -> None:
        """Take the process group that carries this topology and the ledger that counts what it carries."""
        self.channel = channel
        self.ledger = ledger

    def check(self, clients: int) -> None:
        """Refuse a number of clients that this topology cannot connect.

        Raises:
            UsageError: The request is impossible.
        """
