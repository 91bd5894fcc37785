"""A client gives away one kind of share of each neighbour, masks one vector, and helps to open large sums only."""

from __future__ import annotations

import numpy as np
import pytest

from flgen.errors import FlgenError
from flgen.privacy.participant import KEYS_BYTES, SEALED_BYTES, Participant

CLIENTS = (2, 5, 6, 9)


@pytest.fixture
def participants() -> dict[int, Participant]:
    """Four clients who have exchanged their keys and shares; three of them rebuild a secret."""
    made = {u: Participant(u, CLIENTS, threshold=3, min_participants=2, modulus=2**32) for u in CLIENTS}
    keys = {u: participant.advertise() for u, participant in made.items()}
    assert {len(key) for key in keys.values()} == {KEYS_BYTES}
    sealed = {u: participant.share("run", keys) for u, participant in made.items()}
    for u, participant in made.items():
        participant.receive({v: sealed[v][u] for v in participant.others})
    assert {len(share) for shares in sealed.values() for share in shares.values()} == {SEALED_BYTES}
    return made


def test_never_both_shares_of_one_client(participants: dict[int, Participant]) -> None:
    first = participants[2].answer((2, 5, 6))  # 9 dropped out
    assert participants[2].answer((2, 5, 6)) == first
    with pytest.raises(FlgenError, match="client 2 was asked for both shares of client 9"):
        participants[2].answer((2, 5, 6, 9))
    with pytest.raises(FlgenError, match="client 2 was asked for both shares of client 6"):
        participants[2].answer((2, 5, 9))


def test_a_client_does_not_help_to_open_small_sums_or_one_without_itself(
    participants: dict[int, Participant],
) -> None:
    for arrived in ((2, 5), (2,), (5, 6, 9)):
        with pytest.raises(FlgenError, match="client 2 does not help to open a sum"):
            participants[2].answer(arrived)


def test_a_client_masks_one_vector(participants: dict[int, Participant]) -> None:
    x = np.zeros(3, dtype=np.uint64)
    participants[5].mask(x)
    with pytest.raises(FlgenError, match="client 5 has sent its masked upload already"):
        participants[5].mask(x)


def test_what_a_client_sent_cannot_be_turned_back_to_it(participants: dict[int, Participant]) -> None:
    """Two clients seal their shares for each other with one key, under nonces of their own."""
    sent = participants[5]._sealed[2]
    participants[2].receive(dict.fromkeys(participants[2].others, sent))
    with pytest.raises(FlgenError, match="is not for its receiver"):
        participants[2].answer(CLIENTS)


def test_shares_of_somebody_else_cannot_be_read(participants: dict[int, Participant]) -> None:
    participants[2].receive({v: bytes(SEALED_BYTES) for v in participants[2].others})
    with pytest.raises(FlgenError, match="is not for its receiver"):
        participants[2].answer(CLIENTS)
