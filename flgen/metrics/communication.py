"""Communication to a target: what clients and server exchanged until the accuracy was first reached (gptfl.md, 7.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flgen.errors import FlgenError

SECURE_AGGREGATION_PHASES = ("keys", "shares", "unmask")
"""Phases of ledger.csv that there are for the sake of secure aggregation alone."""

CELL_BYTES = 8
"""Bytes of a number of the label union's tables, which are added modulo 2^61 - 1."""


@dataclass(frozen=True)
class OneOffCost:
    """What is exchanged once, before the first round.

    Args:
        name: What for.
        bytes: In all.
        scalars: Numbers in all.
    """

    name: str
    bytes: int
    scalars: int


@dataclass(frozen=True)
class CommunicationToTarget:
    """What it took to reach an accuracy.

    Args:
        target: The accuracy tau, in [0, 1].
        round: The first evaluated round r* with at least tau; None if there is none.
        bytes: Encoded bytes up and down of rounds 1 to r*, secure aggregation's own messages left out; inf if never.
        scalars: Numbers up and down of these rounds, whatever their width; inf if never, None if the run did not count
            them (between peers).
        secure_aggregation_bytes: Bytes of keys, shares and unmasking in these rounds; inf if never.
        one_off: What was exchanged once; in none of the numbers above.
    """

    target: float
    round: int | None
    bytes: float
    scalars: float | None
    secure_aggregation_bytes: float
    one_off: tuple[OneOffCost, ...] = ()


def communication_to_target(
    metrics: Sequence[Mapping[str, float]],
    ledger: Sequence[Mapping[str, Any]],
    target: float,
    *,
    metric: str = "test/accuracy",
    one_off: Sequence[OneOffCost] = (),
) -> CommunicationToTarget:
    """Return what a run exchanged up to the first evaluated round that reaches an accuracy, Comm(tau).

    Args:
        metrics: Rows of metrics.csv, by ascending round.
        ledger: Rows of ledger.csv.
        target: The accuracy tau, in [0, 1]; fixed before the runs are looked at.
        metric: The accuracy that is meant.
        one_off: What was exchanged before the first round, to be listed beside it.

    Raises:
        FlgenError: The target is no share, or no row has the metric.

    Source: specification of GPT-FL, section 7.3.
    """
    if not 0 <= target <= 1:
        raise FlgenError(f"the target accuracy is {target}: give a share from 0 to 1, such as 0.8 for 80 %")
    if not any(metric in row for row in metrics):
        raise FlgenError(f"no round has {metric}: choose a run that measures it, or another metric")
    reached = next((int(row["round"]) for row in metrics if row.get(metric, -math.inf) >= target), None)
    if reached is None:
        return CommunicationToTarget(target, None, math.inf, math.inf, math.inf, tuple(one_off))
    carried = [row for row in ledger if row["round"] <= reached]
    overhead = sum(row["bytes"] for row in carried if row["phase"] in SECURE_AGGREGATION_PHASES)
    scalars = [row.get("comm/scalars") for row in metrics if row["round"] <= reached]
    counted = [count for count in scalars if count is not None]
    return CommunicationToTarget(
        target,
        reached,
        bytes=sum(row["bytes"] for row in carried) - overhead,
        scalars=sum(counted) if len(counted) == len(scalars) else None,
        secure_aggregation_bytes=overhead,
        one_off=tuple(one_off),
    )


def label_union_cost(union: Mapping[str, Any], clients: int) -> OneOffCost:
    """Return what all clients sent for the label union: N k m (Cc + 2) numbers per attempt, as tables.

    Args:
        union: What labels.json holds.
        clients: Number of clients N.

    Raises:
        FlgenError: It does not say how many bytes a client sent.
    """
    sent = union.get("bytes_per_client")
    if not isinstance(sent, int):
        raise FlgenError("this is no labels.json of `flgen labels`: it lacks bytes_per_client")
    return OneOffCost("label union", clients * sent, clients * sent // CELL_BYTES)
