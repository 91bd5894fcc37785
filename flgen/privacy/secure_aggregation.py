"""The options of secure aggregation, and what they make possible (gptfl.md, sections 2.6 and 2.7)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from flgen.errors import UsageError
from flgen.wire.fixed_point import FixedPoint

log = logging.getLogger("flgen")

OPTION = "--method.topology.secure_aggregation"
"""How the options begin when they are typed."""

COMPLETE_UP_TO = 32
FEW = 5


@dataclass(frozen=True)
class SecureAggregation:
    """Clients hide their uploads under masks that cancel in the sum, so the server sees the sum alone.

    Each client shares the secrets behind its masks among its neighbourhood: the clients it has pair masks with, and
    itself. The round's sum is recovered if enough of every neighbourhood is still there at the end.

    Args:
        threshold: Share of a neighbourhood of m clients that must be exceeded by those still there: t of them are
            needed, t = floor(threshold m) + 1 (at most m). At least half, so that no two halves can be asked apart.
        neighbours: Number of clients that each one has pair masks with. Null: every other one up to 32 clients,
            3 ceil(log2 n) of them beyond.
        clip: Bound B on a coordinate; what lies outside [-B, B] is cut to it.
        fraction_bits: Binary places f that a float keeps; it is rounded to a multiple of 2^-f.
        modulus_bits: Bits k of a masked number; sums are taken mod R = 2^k.
        min_participants: Fewest clients that a sum may be of, t_min; 1 also lets a single client's upload be seen.

    Raises:
        UsageError: A number is out of its range.
    """

    threshold: float = 2 / 3
    neighbours: int | None = None
    clip: float = 4.0
    fraction_bits: int = 20
    modulus_bits: int = 32
    min_participants: int = 2

    def __post_init__(self) -> None:
        if not 0.5 <= self.threshold <= 1:
            raise UsageError(f"{OPTION}.threshold is {self.threshold}: give a share from 0.5 to 1")
        if self.neighbours is not None and self.neighbours < 3:
            raise UsageError(f"{OPTION}.neighbours is {self.neighbours}: give 3 or more, or null")
        if not (self.clip > 0 and math.isfinite(self.clip)):
            raise UsageError(f"{OPTION}.clip is {self.clip}: give a number above 0")
        if not 1 <= self.fraction_bits <= 50:
            raise UsageError(f"{OPTION}.fraction_bits is {self.fraction_bits}: give 1 to 50")
        if not 16 <= self.modulus_bits <= 62:
            raise UsageError(f"{OPTION}.modulus_bits is {self.modulus_bits}: give 16 to 62")
        if self.min_participants < 1:
            raise UsageError(f"{OPTION}.min_participants is {self.min_participants}: give 1 or more")

    @property
    def code(self) -> FixedPoint:
        """How floats become residues."""
        return FixedPoint(self.clip, self.fraction_bits, self.modulus_bits)

    def degree(self, clients: int) -> int:
        """Return how many neighbours each of n clients has.

        3 ceil(log2 n) is the least multiple of log n at which a tenth of 100 clients may fail and fewer than one round
        in a hundred is lost, and a coalition of a fifth of them opens a client's masks once in a million rounds.
        """
        wanted = self.neighbours
        if wanted is None:
            wanted = clients - 1 if clients <= COMPLETE_UP_TO else 3 * math.ceil(math.log2(clients))
        return min(wanted, clients - 1)

    def needed(self, neighbourhood: int) -> int:
        """Return how many of a neighbourhood of m clients must answer, t; at 2/3, floor(2 m / 3) + 1."""
        return min(math.floor(self.threshold * neighbourhood + 1e-9) + 1, neighbourhood)  # 2/3 of 3 is 2, not 1.99

    def check_cohort(self, clients: int, most_samples: int) -> None:
        """Refuse a cohort whose sum would show a single upload, or would not fit the modulus.

        Args:
            clients: Number of clients in a round.
            most_samples: Upper bound of the number of training samples of each of them.

        Raises:
            UsageError: There are fewer than `min_participants`, or more than can be added up.
        """
        if clients < self.min_participants:
            alone = "the sum of one upload is that upload" if clients == 1 else "too few to hide among"
            raise UsageError(
                f"{clients} client{'s' * (clients > 1)} per round under secure aggregation ({alone}), "
                f"{OPTION}.min_participants asks for {self.min_participants}: raise --trainer.clients_per_round or "
                "--partition.clients, or lower it"
            )
        if clients > self.code.capacity:
            raise UsageError(
                f"the sum of {clients} clients could leave its {self.modulus_bits} bits (room for "
                f"{self.code.capacity}): raise {OPTION}.modulus_bits, or lower .clip or .fraction_bits"
            )
        if not self.code.fits(clients * most_samples):
            raise UsageError(
                f"{OPTION}.modulus_bits is {self.modulus_bits}: too few to count the samples of {clients} clients with "
                f"up to {most_samples}"
            )
        if clients < FEW:
            log.warning("secure aggregation hides each client among %d only; the sum says much about each", clients)
