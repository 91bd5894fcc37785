"""The laws of a federated run where clients have different networks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_trial import two_kinds
from same_run import assert_same_run, client_states, table

from flgen import Evaluation


@pytest.mark.parametrize("method", ["FedKTL", "FML", "FedTGP", "FedDistill", "LGFedAvg"])
def test_laws_1_and_2_hold_for_clients_with_two_kinds_of_networks(method: str, fit_small: Any, tmp_path: Path) -> None:
    """The second has BatchNorm, whose statistics and counters are part of a client's state."""

    def fit(run: str, **options: Any) -> None:
        fit_small(tmp_path / run, method=method, model=two_kinds(), every=1, **options)

    fit("whole", rounds=3)
    fit("parts", rounds=2, devices=2)
    fit("parts", rounds=3, ckpt_path="last")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    states = client_states(tmp_path / "whole")
    assert ["counters" in states[k] for k in range(5)] == [False, True, False, True, False]


METHODS = ["FedKTL", "LGFedAvg", "FedGenHeads", "FedGH", "FML", "FedKD", "FedDistill", "FedProto", "FedTGP"]


@pytest.mark.parametrize("method", METHODS)
def test_law_3_on_a_star_the_ledger_counts_the_bytes_handed_to_the_process_group(
    method: str, fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every upload travels as a message of its own, every download once to each other rank."""
    import torch.distributed as dist

    exchange, broadcast = dist.batch_isend_irecv, dist.broadcast

    def note(way: str, numbers: int) -> None:
        with (tmp_path / f"{way}-{os.getpid()}").open("a") as file:
            file.write(f"{numbers}\n")

    def counted_exchange(operations: list[dist.P2POp]) -> list[dist.Work]:
        note("up", sum(operation.tensor.numel() for operation in operations if operation.op is dist.isend))
        return exchange(operations)

    def counted_broadcast(tensor: torch.Tensor, source: int, **options: Any) -> Any:
        if dist.get_rank() != source:
            note("down", tensor.numel())
        return broadcast(tensor, source, **options)

    monkeypatch.setattr(dist, "batch_isend_irecv", counted_exchange)
    monkeypatch.setattr(dist, "broadcast", counted_broadcast)
    evaluation = Evaluation(every=100, personal=False)  # measuring clients is outside the protocol
    fit_small(tmp_path / "run", method=method, devices=3, transport="messages", evaluation=evaluation)
    handed_over = {
        way: sum(int(line) for path in tmp_path.glob(f"{way}-*") for line in path.read_text().split())
        for way in ("up", "down")
    }
    rows = table(tmp_path / "run" / "ledger.csv", leave_out=())
    moved = {"up": 0, "down": 0}
    for row in rows:
        moved["up" if row["link"] == "client->server" else "down"] += int(row["wire_bytes"])
    assert moved == handed_over
    assert moved["up"] > 0
    # The messages of the protocol are counted one per client, wherever it lives.
    per_round = [row for row in rows if row["round"] == "2"]
    assert {row["phase"]: int(row["messages"]) for row in per_round} == {"download": 5, "upload": 5}
