"""What a round sends up and down, as counted, beside what a formula says (fedktl.md, section 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from flgen.errors import FlgenError
from flgen.metrics.communication import SECURE_AGGREGATION_PHASES

FIRST_COUNTED = 2
"""Costs are means from this round on: in the first one servers that have learned nothing yet send less, or nothing."""

SETUP = "setup"
"""The phase of ledger.csv of what is sent once, before the first round."""

LINKS = {"up": "client->server", "down": "server->client"}
MOST_LEFT_OUT = 3
"""Entries of a payload that a formula may leave out; every method's leaves out fewer."""


@dataclass(frozen=True)
class DirectionCost:
    """What all clients of a round together send, or receive; means over rounds.

    Args:
        bytes: Encoded bytes, without those of secure aggregation's own phases.
        scalars: The numbers that they encode, by the name of the entry; None if the run did not count them.
        formula: The numbers by the method's formula; None if it has none.
        beside: The entries, among `scalars`, that the formula leaves out, such as labels; None if no choice of entries
            gives exactly the formula's numbers, or there is no formula.
    """

    bytes: float
    scalars: Mapping[str, float] | None = None
    formula: float | None = None
    beside: Mapping[str, float] | None = None

    @property
    def total(self) -> float | None:
        """All numbers, None if they were not counted."""
        return None if self.scalars is None else sum(self.scalars.values())


@dataclass(frozen=True)
class RoundCosts:
    """What a round of a run on a star costs.

    Args:
        rounds: How many the means are over.
        up: From all clients to the server.
        down: From the server to all clients.
        secure_aggregation_bytes: Keys, shares and answers, both ways, mean over rounds.
        once_bytes: What all clients were sent once, before the first round.
    """

    rounds: int
    up: DirectionCost
    down: DirectionCost
    secure_aggregation_bytes: float = 0.0
    once_bytes: float = 0.0


def round_costs(metrics: Sequence[Mapping[str, float]], ledger: Sequence[Mapping[str, Any]]) -> RoundCosts:
    """Return what a run sends in a round, the mean from round 2 on.

    Args:
        metrics: Rows of metrics.csv.
        ledger: Rows of ledger.csv; none, or none with bytes, if nothing was ever sent.

    Raises:
        FlgenError: The run has one round alone, or its clients talk to each other.

    Source: fedktl.md, section 6.
    """
    counted = [row for row in metrics if row["round"] >= FIRST_COUNTED]
    if not counted:
        raise FlgenError(f"there is no round {FIRST_COUNTED}: costs are means from there on, so run two rounds or more")
    if any(row["bytes"] for row in ledger if row["link"] not in LINKS.values()):
        raise FlgenError("its clients send to each other: costs up and down are those of runs with a server")
    rounds = len(counted)
    later = [row for row in ledger if row["round"] >= FIRST_COUNTED]
    protection = sum(row["bytes"] for row in later if row["phase"] in SECURE_AGGREGATION_PHASES)
    once = sum(row["bytes"] for row in ledger if row["phase"] == SETUP)
    return RoundCosts(
        rounds, _direction("up", counted, later), _direction("down", counted, later), protection / rounds, once
    )


def _direction(
    way: Literal["up", "down"], metrics: Sequence[Mapping[str, float]], ledger: Sequence[Mapping[str, Any]]
) -> DirectionCost:
    rounds, prefix, name = len(metrics), f"comm/{way}_scalars/", f"comm/{way}_scalars_formula"
    payloads = [row for row in ledger if row["link"] == LINKS[way] and row["phase"] not in SECURE_AGGREGATION_PHASES]
    carried = sum(row["bytes"] for row in payloads)
    numbers: Counter[str] = Counter()
    for row in metrics:
        numbers.update({key.removeprefix(prefix): int(row[key]) for key in row if key.startswith(prefix)})
    formula = sum(row[name] for row in metrics) if all(name in row for row in metrics) else None
    beside = None if formula is None else _left_out(numbers, formula)
    return DirectionCost(
        bytes=carried / rounds,
        scalars=None if carried and not numbers else {entry: count / rounds for entry, count in numbers.items()},
        formula=None if formula is None else formula / rounds,
        beside=None if beside is None else {entry: numbers[entry] / rounds for entry in beside},
    )


def _left_out(numbers: Mapping[str, int], formula: float) -> tuple[str, ...] | None:
    """Return the fewest entries without which the others are exactly as many numbers as a formula says."""
    excess = sum(numbers.values()) - formula
    for count in range(min(MOST_LEFT_OUT, len(numbers)) + 1):
        for chosen in combinations(numbers, count):
            if sum(numbers[entry] for entry in chosen) == excess:
                return chosen
    return None
