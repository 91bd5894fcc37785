"""Bytes that a codec made are changed on their way: flipped, cut, extended, replaced.

Promised (design, section 5): what arrives is what was sent, or one error that says where it came from; never a wrong
tensor, never a wait without an end, and no memory for what damaged bytes merely claim. An upload that its own rank
finds damaged is its client's failure (`on_client_error`); what another rank has sent ends the job.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import assert_equal
from torch import Tensor

import flgen.peer_round as peers
from flgen.client_turns import ClientFailed
from flgen.errors import FlgenError
from flgen.experiment.records import read_events
from flgen.federation.launch import RanksFailed
from flgen.topology import Ring
from flgen.topology.channel import Channel
from flgen.topology.star import Collector
from flgen.wire import codecs

CLIENT, ROUND = 3, 2


def flip(message: Tensor) -> Tensor:
    changed = message.clone()
    changed[2 * len(changed) // 3] ^= 8
    return changed


def swap_words(message: Tensor) -> Tensor:
    changed = message.clone()
    end = len(changed) - len(changed) % 8
    changed[end - 16 : end - 8], changed[end - 8 : end] = message[end - 8 : end], message[end - 16 : end - 8]
    return changed


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "flipped": flip,
    "swapped": swap_words,
    "cut": lambda message: message[:-1],
    "cut in half": lambda message: message[: len(message) // 2],
    "extended": lambda message: torch.cat([message, message[:7]]),
    "doubled": lambda message: torch.cat([message, message]),
    "noise": lambda message: (torch.arange(len(message)) * 73 % 251).to(torch.uint8),
}


@pytest.fixture
def damage_upload(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that damages what one client sends to the server in one round, after it was encoded."""

    def let(damage: Callable[[Tensor], Tensor]) -> None:
        encode, add = codecs.encode_payload, Collector.add

        def add_damaged(self: Any, client: int, samples: int, payload: Any) -> None:
            with monkeypatch.context() as patch:
                if (client, self._round) == (CLIENT, ROUND):
                    patch.setattr(codecs, "encode_payload", lambda payload: damage(encode(payload)))
                add(self, client, samples, payload)

        monkeypatch.setattr(Collector, "add", add_damaged)

    return let


@pytest.fixture
def damage_offer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that damages what one client offers to its peers in one round, after it was encoded."""

    def let(damage: Callable[[Tensor], Tensor]) -> None:
        attempt = peers.ClientTurns.attempt

        def attempt_damaged(self: Any, client: Any, work: Any) -> Any:
            done = attempt(self, client, work)
            if isinstance(done, tuple) and (client.id, self._t) == (CLIENT, ROUND):
                return damage(done[0]), done[1]
            return done

        monkeypatch.setattr(peers.ClientTurns, "attempt", attempt_damaged)

    return let


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_upload_is_its_clients_failure(how: str, damage_upload: Any, fit_small: Any, tmp_path: Path) -> None:
    damage_upload(DAMAGES[how])
    fit_small(tmp_path / "run", method="FedAvg", on_client_error="skip")
    (error,) = [event for event in read_events(tmp_path / "run" / "events.jsonl") if event["event"] == "client_error"]
    assert (error["round"], error["client"]) == (ROUND, CLIENT)
    assert re.match("entry 'weights': payload|payload ", error["error"])


@pytest.mark.parametrize("how", ["flipped", "cut", "extended"])
def test_a_damaged_upload_that_travelled_to_the_server_ends_the_job(
    how: str, damage_upload: Any, fit_small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage_upload(DAMAGES[how])
    with pytest.raises(RanksFailed):  # FedProto's server sees single uploads: they are decoded there
        fit_small(tmp_path / "run", method="FedProto", devices=2, on_client_error="skip")
    printed = capfd.readouterr().err
    assert printed.count("flgen: error:") == 1
    assert f"flgen: error: round {ROUND}, the upload of client {CLIENT} cannot be read: " in printed


def test_a_bit_that_flips_between_two_ranks_is_found(
    fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    exchange = Channel.exchange

    def exchange_damaged(self: Channel, messages: Any, plan: Any) -> Any:
        return exchange(self, {key: flip(message) for key, message in messages.items()}, plan)

    monkeypatch.setattr(Channel, "exchange", exchange_damaged)
    with pytest.raises(RanksFailed):
        fit_small(tmp_path / "run", method="FedAvg", devices=2, transport="messages")
    printed = capfd.readouterr().err
    assert printed.count("flgen: error:") == 1
    assert re.search(r"round 1, the upload of client \d cannot be read: entry 'weights': payload has another", printed)


def test_a_damaged_download_ends_the_job(
    fit_small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broadcast = Channel.broadcast

    def broadcast_damaged(self: Channel, message: Any, source: int) -> Tensor:
        arrived = broadcast(self, message, source)
        return arrived if self.rank == source else flip(arrived)

    monkeypatch.setattr(Channel, "broadcast", broadcast_damaged)
    with pytest.raises(RanksFailed):
        fit_small(tmp_path / "run", method="FedAvg", devices=2)
    printed = capfd.readouterr().err
    assert printed.count("flgen: error:") == 1
    assert "round 1, the server's download cannot be read: entry 'weights': payload has another checksum" in printed


@pytest.mark.parametrize("how", ["flipped", "cut", "extended"])
def test_whoever_reads_what_a_peer_sent_finds_the_damage(
    how: str, damage_offer: Any, fit_small: Any, tmp_path: Path
) -> None:
    damage_offer(DAMAGES[how])
    for name, devices in (("one", 1), ("two", 2)):
        ring = {"topology": Ring()}
        fit_small(tmp_path / name, method="DPSGD", devices=devices, on_client_error="skip", method_options=ring)
        assert_equal(tmp_path / name, tmp_path / "one")
    errors = [event for event in read_events(tmp_path / "two" / "events.jsonl") if event["event"] == "client_error"]
    assert {error["client"] for error in errors} == {CLIENT - 1, CLIENT, CLIENT + 1}  # itself, and those that read it
    assert all(error["round"] == ROUND for error in errors)
    assert all(error["error"].startswith(f"what client {CLIENT} sent cannot be read: ") for error in errors)


def test_a_damaged_offer_ends_the_job_if_failures_do(damage_offer: Any, fit_small: Any, tmp_path: Path) -> None:
    damage_offer(flip)
    sent = rf"round {ROUND}, client \d \(rank 0\): what client {CLIENT} sent cannot be read: entry 'weights': payload"
    with pytest.raises(ClientFailed, match=sent):
        fit_small(tmp_path / "run", method="DPSGD")


def test_no_memory_is_taken_for_what_bytes_merely_claim() -> None:
    message = codecs.encode_payload({"w": codecs.dense(torch.arange(1000.0))})
    start = bytes(message.tolist())
    tracemalloc.start()
    try:
        for place in range(8, 16):  # the size of the body, bytes
            for value in (0x01, 0x7F, 0xFF):
                claimed = torch.tensor([*start[:place], value, *start[place + 1 :]], dtype=torch.uint8)
                with pytest.raises(FlgenError):
                    codecs.decode_payload(claimed)
        for place in range(20, 28):  # the size of the tensor
            claimed = torch.tensor([*start[:place], 0x7F, *start[place + 1 :]], dtype=torch.uint8)
            with pytest.raises(FlgenError):
                codecs.decode_payload(claimed)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
