"""A client raises, loses its numbers, or sends some that nothing can be done with.

Promised (design, section 6): with `on_client_error raise` the job ends and names the round, the client and the reason
once; with `skip` the client is left out of that round, the event is logged and counted, and the round goes on if at
least `min_clients` are left. Either way it does not matter how many ranks there are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from harness import assert_equal
from small_methods import small_method
from torch import Tensor

from flgen.client_turns import ClientFailed
from flgen.experiment.checkpoints import find_checkpoint
from flgen.experiment.records import read_clients, read_events, read_metrics
from flgen.federation.launch import RanksFailed

CLIENT, ROUND = 3, 2

Fault = Literal["raises", "NaN", "too large"]
REASONS = {
    "FedAvg": {
        "raises": "RuntimeError: its battery is empty",
        "NaN": "its upload 'weights' holds NaN or infinity",
        "too large": "the exact sum of 'weights' would overflow",
    },
    "DPSGD": {
        "raises": "RuntimeError: its battery is empty",
        "NaN": "its state 'weights' holds NaN or infinity",
    },
}
CASES = [(method, fault) for method, reasons in REASONS.items() for fault in reasons]
HOW_LARGE = {"NaN": float("nan"), "too large": 1e30}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets one client of a method fail in one round."""

    def let(method: str, fault: Fault) -> None:
        class_ = type(small_method(method))
        client_step = class_.client_step

        def failing(self: Any, client: Any, *rest: Any) -> Any:
            sent = client_step(self, client, *rest)
            if (client.id, rest[-1]) != (CLIENT, ROUND):
                return sent
            if fault == "raises":
                raise RuntimeError("its battery is empty")
            fill(client, sent, fault)
            return sent

        monkeypatch.setattr(class_, "client_step", failing)

    return let


def fill(client: Any, sent: Any, fault: Fault) -> None:
    """Put a number into what a client sends, or else into what it keeps."""
    tensors: dict[str, Tensor] = {name: entry.tensor for name, entry in sent.items()} if sent else client.state
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.view(-1)[0] = HOW_LARGE[fault]


@pytest.mark.parametrize(("method", "fault"), CASES)
def test_skip_leaves_the_client_out_of_the_round_alike_on_any_number_of_ranks(
    method: str, fault: Fault, faulty: Any, fit_small: Any, tmp_path: Path
) -> None:
    faulty(method, fault)
    ways = [("one", {"devices": 1}), ("two", {"devices": 2})]
    if method == "FedAvg" and fault == "too large":
        ways.append(("by message", {"devices": 2, "transport": "messages"}))
    for name, way in ways:
        fit_small(tmp_path / name, method=method, on_client_error="skip", min_clients=4, **way)
        assert_equal(tmp_path / name, tmp_path / "one")
    events = read_events(tmp_path / "one" / "events.jsonl")
    (error,) = [event for event in events if event["event"] == "client_error"]
    assert (error["round"], error["client"]) == (ROUND, CLIENT)
    assert REASONS[method][fault] in error["error"]
    assert [row["clients/failed"] for row in read_metrics(tmp_path / "one" / "metrics.csv")] == [0, 1]
    rows = read_clients(tmp_path / "one" / "clients.csv")
    took_part = {(row["round"], row["client"]) for row in rows if "train/loss" in row}
    assert took_part == {(t, k) for t in (1, 2) for k in range(5)} - {(ROUND, CLIENT)}
    checkpoint = find_checkpoint(tmp_path / "one" / "checkpoints" / "last")
    kept = [checkpoint.server_state()["method"].get("weights"), *checkpoint.client_states().values()]
    for tensor in [tensor for each in kept for tensor in (each.values() if isinstance(each, dict) else [each])]:
        assert tensor is None or torch.isfinite(tensor.float()).all()


@pytest.mark.parametrize(("method", "fault"), CASES)
def test_raise_ends_the_job_and_names_round_client_and_reason_once(
    method: str, fault: Fault, faulty: Any, fit_small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faulty(method, fault)
    where = f"round {ROUND}, client {CLIENT} "
    with pytest.raises(ClientFailed, match=rf"{where}\(rank 0\): {REASONS[method][fault]}"):
        fit_small(tmp_path / "one", method=method)
    if fault == "raises":
        capfd.readouterr()
        with pytest.raises(RanksFailed):
            fit_small(tmp_path / "two", method=method, devices=2)
        printed = capfd.readouterr().err
        assert printed.count("flgen: error:") == 1
        assert re.search(rf"{where}\(rank \d\): {REASONS[method][fault]}", printed)
    for run_dir in tmp_path.iterdir():
        assert find_checkpoint(run_dir / "checkpoints" / "last").round == ROUND - 1
        assert read_events(run_dir / "events.jsonl")[-1]["event"] == "failed"


@pytest.mark.parametrize("method", ["FedAvg", "DPSGD"])
def test_too_few_clients_left_end_the_job(method: str, faulty: Any, fit_small: Any, tmp_path: Path) -> None:
    faulty(method, "raises")
    left = rf"round {ROUND}: 4 of 5 clients are left, --trainer.min_clients asks for 5; client {CLIENT}: RuntimeError"
    with pytest.raises(ClientFailed, match=left):
        fit_small(tmp_path / "run", method=method, on_client_error="skip", min_clients=5)
    assert find_checkpoint(tmp_path / "run" / "checkpoints" / "last").round == ROUND - 1
