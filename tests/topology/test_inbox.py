"""An inbox: payloads by sender, decoded once while they fit and again where they do not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from flgen.topology import inbox
from flgen.topology.inbox import Inbox, OpenedMessages
from flgen.wire.codecs import decode_payload, dense, encode_payload

SIZE = 4 * 5  # five floats


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Count how often each message is decoded, by the first number in it."""
    count: Counter[float] = Counter()

    def counting(message: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = decode_payload(message)
        count[float(tensors["w"][0])] += 1
        return tensors

    monkeypatch.setattr(inbox, "decode_payload", counting)
    return count


def opened(budget: float, senders: int = 3) -> OpenedMessages:
    """Messages of five floats, the first of which is the sender's number."""
    messages = {sender: encode_payload({"w": dense(torch.arange(5.0) + sender)}) for sender in range(senders)}
    return OpenedMessages(messages, budget)


def test_a_message_is_decoded_when_it_is_first_looked_at_and_never_again(decoded: Counter[float]) -> None:
    messages = opened(budget=3 * SIZE)
    assert not decoded
    for _ in range(3):
        for sender in (2, 0):
            assert messages.open(sender)["w"].tolist() == [sender + i for i in range(5)]
    assert decoded == {2.0: 1, 0.0: 1}


def test_clients_of_a_rank_share_what_is_decoded(decoded: Counter[float]) -> None:
    messages = opened(budget=1000)
    first, second = Inbox((0, 1), messages), Inbox((1, 2), messages)
    assert first[1]["w"] is second[1]["w"]
    assert decoded == {1.0: 1}


def test_what_does_not_fit_the_budget_is_decoded_at_every_use(decoded: Counter[float]) -> None:
    messages = opened(budget=2 * SIZE + SIZE - 1)  # two of three
    for _ in range(3):
        for sender in range(3):
            assert messages.open(sender)["w"][0] == sender
    assert decoded == {0.0: 1, 1.0: 1, 2.0: 3}


def test_a_smaller_message_still_fits_after_a_large_one_did_not(decoded: Counter[float]) -> None:
    sizes = {0: 10, 1: 3}
    messages = OpenedMessages(
        {sender: encode_payload({"w": dense(torch.full((size,), float(sender)))}) for sender, size in sizes.items()},
        budget_bytes=12,
    )
    for _ in range(2):
        assert [len(messages.open(sender)["w"]) for sender in (0, 1)] == [10, 3]
    assert decoded == {0.0: 2, 1.0: 1}


def test_without_a_budget_nothing_is_kept(decoded: Counter[float]) -> None:
    messages = opened(budget=0)
    assert messages.open(1)["w"] is not messages.open(1)["w"]
    assert decoded == {1.0: 2}


def test_senders_come_in_the_order_given() -> None:
    received = Inbox((2, 0, 1), opened(budget=1000))
    assert list(received) == [2, 0, 1]
    assert [payload["w"][0].item() for payload in received.values()] == [2.0, 0.0, 1.0]
    assert len(received) == 3


def test_who_was_not_heard_is_not_in_the_inbox_although_the_rank_has_the_message() -> None:
    received = Inbox((0, 2), opened(budget=1000))
    assert 1 not in received
    with pytest.raises(KeyError, match="1"):
        received[1]
    assert received.get(1) is None
