"""Communication to a target, counted by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flgen.errors import FlgenError
from flgen.metrics.communication import OneOffCost, communication_to_target, label_union_cost

D = 320010  # parameters of the ConvNet of CIFAR-10
METRICS: list[dict[str, float]] = [
    {"round": t, "comm/scalars": 2 * 10 * D, **({"test/accuracy": 0.1 * t} if t % 2 == 0 else {})} for t in range(1, 7)
]
LEDGER: list[dict[str, Any]] = [
    {"round": t, "phase": phase, "link": link, "messages": 10, "bytes": count, "wire_bytes": 0}
    for t in range(1, 7)
    for phase, link, count in (
        ("download", "server->client", 4000),
        ("upload", "client->server", 5000),
        ("keys", "client->server", 64),
        ("keys", "server->client", 640),
        ("shares", "client->server", 300),
        ("unmask", "client->server", 7),
    )
]


def test_all_rounds_up_to_the_first_evaluated_one_that_reaches_the_target_count() -> None:
    spent = communication_to_target(METRICS, LEDGER, 0.4)
    assert spent.round == 4
    assert spent.bytes == 4 * (4000 + 5000)
    assert spent.scalars == 4 * 6_400_200  # gptfl.md, section 10, check 12
    assert spent.secure_aggregation_bytes == 4 * (64 + 640 + 300 + 7)
    assert communication_to_target(METRICS, LEDGER, 0.41).round == 6


def test_what_is_never_reached_costs_infinitely_much() -> None:
    spent = communication_to_target(METRICS, LEDGER, 0.9)
    assert spent.round is None
    assert spent.bytes == spent.scalars == spent.secure_aggregation_bytes == math.inf


def test_one_off_costs_are_listed_beside_it() -> None:
    # 5 clients send tables of k = 4 times m = 11 cells of Cc + 2 = 10 numbers of 8 bytes
    union = label_union_cost({"bytes_per_client": 8 * 4 * 11 * 10}, 5)
    assert union == OneOffCost("label union", 5 * 3520, 5 * 4 * 11 * 10)
    with_union = communication_to_target(METRICS, LEDGER, 0.4, one_off=[union])
    assert with_union.one_off == (union,)
    assert with_union.bytes == communication_to_target(METRICS, LEDGER, 0.4).bytes


def test_numbers_are_unknown_where_a_run_did_not_count_them() -> None:
    metrics = [{"round": 1, "test/accuracy_trained": 0.9}]
    ledger = [{"round": 1, "phase": "exchange", "link": "client->client", "bytes": 77}]
    spent = communication_to_target(metrics, ledger, 0.9, metric="test/accuracy_trained")
    assert (spent.round, spent.bytes, spent.scalars) == (1, 77, None)


@pytest.mark.parametrize(
    ("target", "metric", "message"),
    [(80, "test/accuracy", "target accuracy is 80: give a share"), (0.8, "test/f1", "no round has test/f1")],
)
def test_a_wrong_question_is_one_line(target: float, metric: str, message: str) -> None:
    with pytest.raises(FlgenError, match=message):
        communication_to_target(METRICS, LEDGER, target, metric=metric)


def test_another_file_is_no_label_union() -> None:
    with pytest.raises(FlgenError, match="lacks bytes_per_client"):
        label_union_cost({"labels": []}, 5)
