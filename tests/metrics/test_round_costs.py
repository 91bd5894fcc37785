"""What a round sends, counted and by formula, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from flgen.errors import FlgenError
from flgen.metrics.round_costs import DirectionCost, round_costs


def row(
    t: int, up: dict[str, int], down: dict[str, int], formula: tuple[int, int] | None = (60, 500)
) -> dict[str, float]:
    found: dict[str, float] = {"round": t}
    found |= {f"comm/up_scalars/{name}": count for name, count in up.items()}
    found |= {f"comm/down_scalars/{name}": count for name, count in down.items()}
    if formula is not None:
        found |= {"comm/up_scalars_formula": formula[0], "comm/down_scalars_formula": formula[1]}
    return found


def sent(t: int, phase: str, bytes: int) -> dict[str, Any]:
    link = "client->server" if phase in ("upload", "keys") else "server->client"
    return {"round": t, "phase": phase, "link": link, "messages": 2, "bytes": bytes, "wire_bytes": 0}


UP, DOWN = {"prototypes": 60, "labels": 6}, {"images": 400, "latents": 100}
METRICS = [row(1, UP, {}), row(2, UP, DOWN), row(3, UP, DOWN)]
LEDGER = [
    sent(1, "setup", 80),
    sent(1, "download", 0),
    sent(1, "upload", 999),
    *(sent(t, phase, bytes) for t in (2, 3) for phase, bytes in (("download", 2000), ("upload", 250 + 2 * t))),
]


def test_means_are_over_the_rounds_from_the_second_on() -> None:
    costs = round_costs(METRICS, LEDGER)
    assert costs.rounds == 2
    assert costs.up == DirectionCost(255.0, UP, 60.0, {"labels": 6.0})
    assert costs.down == DirectionCost(2000.0, DOWN, 500.0, {})
    assert (costs.up.total, costs.down.total) == (66.0, 500.0)
    assert (costs.once_bytes, costs.secure_aggregation_bytes) == (80, 0)


def test_several_entries_beside_the_formula_are_all_named() -> None:
    down = {"head": 200, "generator": 300, "statistics": 40, "label_counts": 10}
    costs = round_costs([row(2, UP, down)], LEDGER)
    assert costs.down.beside == {"statistics": 40.0, "label_counts": 10.0}


def test_a_difference_that_no_entries_make_is_not_explained() -> None:
    costs = round_costs([row(2, {"prototypes": 100, "held": 7}, DOWN)], LEDGER)  # a table with rows of zeros
    assert costs.up.beside is None
    assert costs.up.total == 107


def test_an_entry_that_some_rounds_lack_counts_as_nothing_there() -> None:
    costs = round_costs([row(2, UP, DOWN), row(3, {**UP, "label_counts": 10}, DOWN)], LEDGER)
    assert costs.up.scalars == {"prototypes": 60.0, "labels": 6.0, "label_counts": 5.0}
    assert costs.up.beside == {"labels": 6.0, "label_counts": 5.0}


def test_secure_aggregation_is_apart() -> None:
    costs = round_costs(METRICS, [*LEDGER, sent(2, "keys", 64), sent(3, "unmask", 36)])
    assert costs.secure_aggregation_bytes == 50
    assert (costs.up.bytes, costs.down.bytes) == (255, 2000)


def test_without_a_formula_or_counts_there_are_none() -> None:
    costs = round_costs([{"round": 2}], LEDGER)
    assert (costs.up.scalars, costs.up.total, costs.up.formula, costs.up.beside) == (None, None, None, None)


def test_who_sends_nothing_pays_nothing() -> None:
    nothing = {**sent(2, "model", 0), "link": "client->client"}
    for ledger in ([], [nothing]):
        costs = round_costs([{"round": 1}, {"round": 2}], ledger)
        assert (costs.up.bytes, costs.up.total, costs.down.total, costs.once_bytes) == (0, 0, 0, 0)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(FlgenError, match=r"^there is no round 2: costs are means from there on, so run two rounds"):
        round_costs(METRICS[:1], LEDGER)
    with pytest.raises(FlgenError, match=r"^its clients send to each other"):
        round_costs(METRICS, [{**sent(2, "model", 9), "link": "client->client"}])
