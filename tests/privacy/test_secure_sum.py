"""The server gets the sum of those who are there, whoever drops out, and each upload it sees is noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import p_value
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.errors import FlgenError
from flgen.privacy import participant, secure_sum
from flgen.privacy.mask_stream import MaskStream
from flgen.privacy.pairing_graph import is_connected
from flgen.privacy.secure_aggregation import SecureAggregation
from flgen.privacy.secure_sum import SecureSum
from flgen.topology.channel import Channel
from flgen.wire import residues
from flgen.wire.ledger import Ledger

PRIME = 2**61 - 1


def one_process() -> Channel:
    return Channel(0, 1, torch.device("cpu"), 1, 1)


def opened(clients: Sequence[int], *, modulus: int = 2**32, round: int = 1, **options: Any) -> SecureSum:
    made = SecureSum(
        one_process(), Ledger(), SecureAggregation(**options), modulus=modulus, round=round, purpose="test"
    )
    made.open(clients, dict.fromkeys(clients, 0))
    return made


def vectors(clients: Sequence[int], modulus: int, count: int = 50) -> dict[int, np.ndarray]:
    draws = np.random.default_rng(1)
    return {u: draws.integers(0, modulus, count, dtype=np.uint64) for u in clients}


def add_up(made: SecureSum, uploads: dict[int, np.ndarray]) -> np.ndarray:
    total = residues.zeros(len(next(iter(uploads.values()))), made.modulus)
    for u, x in uploads.items():
        residues.add(total, made.mask(u, x), made.modulus)
    return total


def true_sum(uploads: dict[int, np.ndarray], modulus: int) -> list[int]:
    return [sum(int(x[i]) for x in uploads.values()) % modulus for i in range(len(next(iter(uploads.values()))))]


@pytest.mark.parametrize("modulus", [2**32, 2**20, 2**62, PRIME, 97])
@pytest.mark.parametrize("dropped", [(), (4,), (0, 11, 30)])
def test_the_sum_is_that_of_those_who_are_there(modulus: int, dropped: tuple[int, ...]) -> None:
    clients = (0, 4, 11, 12, 20, 30, 31, 32, 35, 40)
    made = opened(clients, modulus=modulus)
    uploads = vectors([u for u in clients if u not in dropped], modulus)
    z = made.unmask(add_up(made, uploads), list(uploads))
    assert z is not None
    assert z.tolist() == true_sum(uploads, modulus)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_drop_outs_that_leave_enough_of_every_neighbourhood_are_recovered(data: st.DataObject) -> None:
    clients = range(data.draw(st.integers(2, 12)))
    neighbours = data.draw(st.sampled_from([None, 3, 4]))
    made = opened(clients, modulus=PRIME, round=data.draw(st.integers(1, 50)), neighbours=neighbours, threshold=0.5)
    arrived = data.draw(st.lists(st.sampled_from(clients), min_size=1, unique=True))
    uploads = vectors(arrived, PRIME, count=3)
    total = add_up(made, uploads)
    asked_for = [u for u in clients if u in arrived or set(made.neighbourhood[u]) & set(arrived)]
    enough = len(arrived) >= 2 and all(
        len(set(made.neighbourhood[u]) & set(arrived)) > len(made.neighbourhood[u]) // 2 for u in asked_for
    )
    enough = enough and is_connected(made.neighbourhood, arrived)
    if enough:
        z = made.unmask(total, arrived)
        assert z is not None
        assert z.tolist() == true_sum(uploads, PRIME)
    else:
        with pytest.raises(
            FlgenError, match=r"are needed to remove its masks|min_participants asks for 2|fall into groups"
        ):
            made.unmask(total, arrived)


def test_groups_that_share_no_masks_any_more_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients 0 to 2 and 4 to 6 are joined by client 3 alone; without it each group's masks cancel by themselves."""
    pairs = {u: tuple(v for v in range(3) if v != u) for u in range(3)}
    pairs |= {u: tuple(v for v in range(4, 7) if v != u) for u in range(4, 7)}
    pairs[2], pairs[3], pairs[4] = (0, 1, 3), (2, 4), (3, 5, 6)
    monkeypatch.setattr(secure_sum, "pairing_graph", lambda *_: pairs)
    uploads = vectors([u for u in range(7) if u != 3], PRIME)
    made = opened(range(7), modulus=PRIME, threshold=0.5)
    masked = {u: made.mask(u, x) for u, x in uploads.items()}

    # What the server would read if it got the shares of everybody's self masks and of the pair masks of client 3.
    seen = residues.zeros(50, PRIME)
    for u in range(3):
        residues.add(seen, masked[u], PRIME)
        key = participant.self_mask_key(made.participants[u]._seed, made.run, u)
        MaskStream(key, PRIME).add_to(seen, -1)
    key = participant.pair_mask_key(made.participants[3]._masking_key, made.keys[2][32:], made.run, 2, 3)
    MaskStream(key, PRIME).add_to(seen, -participant.pair_sign(2, 3))
    assert seen.tolist() == true_sum({u: uploads[u] for u in range(3)}, PRIME)

    given: list[int] = []
    monkeypatch.setattr(participant.Participant, "answer", lambda self, arrived: given.append(self.client))
    message = (
        r"the 6 of 7 clients that are left fall into groups with no masks between them, and the server would see the "
        r"sum of each; raise --method.topology.secure_aggregation.neighbours$"
    )
    with pytest.raises(FlgenError, match=message):
        made.unmask(residues.zeros(50, PRIME), list(uploads))
    assert given == []


def test_clients_that_leave_when_their_upload_has_arrived_are_in_the_sum() -> None:
    clients = range(9)
    uploads = vectors([u for u in clients if u != 8], PRIME)  # 8 left before, 0 and 5 afterwards: 6 of 7 needed
    for silent in ((), (0,), (5,)):
        made = opened(clients, modulus=PRIME, threshold=0.7)
        z = made.unmask(add_up(made, uploads), list(uploads), silent)
        assert z is not None
        assert z.tolist() == true_sum(uploads, PRIME)
        answered = [row.messages for row in made.ledger.take() if (row.phase, row.link[:6]) == ("unmask", "client")]
        assert answered == [8 - len(silent)]
    with pytest.raises(FlgenError, match="6 of the 9 clients that hold shares of client 0 answered, 7 are needed"):
        made.unmask(add_up(opened(clients, modulus=PRIME), uploads), list(uploads), (0, 5))


def test_check_7_the_worked_example_mod_97(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of given size: b = (11, 22, 33), s_12 = 40, s_13 = 50, s_23 = 60."""
    masks = {1: 11, 2: 22, 3: 33, (1, 2): 40, (1, 3): 50, (2, 3): 60}

    class GivenMask:
        def __init__(self, key: Any, modulus: int) -> None:
            self.mask = np.full(1, masks[key], dtype=np.uint64)

        def add_to(self, total: np.ndarray, sign: int) -> None:
            (residues.add if sign > 0 else residues.subtract)(total, self.mask, 97)

    for module in (participant, secure_sum):
        monkeypatch.setattr(module, "MaskStream", GivenMask)
        monkeypatch.setattr(module, "self_mask_key", lambda seed, run, u: u)
        monkeypatch.setattr(module, "pair_mask_key", lambda secret, public, run, u, v: (min(u, v), max(u, v)))
    everybody = opened((1, 2, 3), modulus=97)
    y = {u: everybody.mask(u, np.array([10 * u], dtype=np.uint64)) for u in (1, 2, 3)}
    assert {u: int(masked[0]) for u, masked in y.items()} == {1: 28, 2: 22, 3: 76}
    z = everybody.unmask(np.array([(28 + 22 + 76) % 97], dtype=np.uint64), (1, 2, 3))
    assert z is not None
    assert z.tolist() == [60]

    without_3 = opened((1, 2, 3), modulus=97, threshold=0.5)
    for u in (1, 2):
        without_3.mask(u, np.array([10 * u], dtype=np.uint64))
    z = without_3.unmask(np.array([28 + 22], dtype=np.uint64), (1, 2))
    assert z is not None
    assert z.tolist() == [30]
    assert (28 + 22 - 11 - 22) % 97 == 17  # what the pair masks of client 3 would leave


def test_one_upload_is_noise_for_the_server_even_when_it_knows_the_self_mask() -> None:
    clients = range(4)
    made = opened(clients, threshold=0.5)
    x = np.full(20_000, 3, dtype=np.uint64)
    inbox = {u: made.mask(u, x) for u in clients}
    assert p_value(x, 2**32) == 0
    for y in inbox.values():
        assert p_value(y, 2**32) > 1e-3
    # From the shares the server rebuilds every b_u: the pair masks must hide what is left.
    for u in clients:
        left = inbox[u].copy()
        key = participant.self_mask_key(made.participants[u]._seed, made.run, u)
        MaskStream(key, 2**32).add_to(left, -1)
        assert p_value(left, 2**32) > 1e-3
    # Two of four together are noise as well; all four are not.
    pair = inbox[0] + inbox[1]
    assert p_value(pair, 2**32) > 1e-3
    z = made.unmask(inbox[0] + inbox[1] + inbox[2] + inbox[3], clients)
    assert z is not None
    assert set(z.tolist()) == {12}


def test_masks_of_two_rounds_and_of_two_clients_have_nothing_in_common() -> None:
    x = np.zeros(20_000, dtype=np.uint64)
    rounds = [opened(range(3), round=round) for round in (1, 2)]
    masked = [made.mask(u, x) for made in rounds for u in range(3)]
    for i, one in enumerate(masked):
        for other in masked[:i]:
            assert p_value(one - other, 2**32) > 1e-3


def test_too_few_are_one_line_that_says_what_to_do() -> None:
    made = opened(range(6))
    total = add_up(made, vectors(range(4), 2**32))
    message = (
        r"round 1: secure aggregation of test: 4 of the 6 clients that hold shares of client 0 answered, 5 are needed "
        r"to remove its masks; raise --method.topology.secure_aggregation.neighbours or lower .threshold$"
    )
    with pytest.raises(FlgenError, match=message):
        made.unmask(total, range(4))


def test_a_sum_of_one_is_opened_only_if_that_was_asked_for() -> None:
    x = vectors([3], 2**32)
    refused = opened([3])
    with pytest.raises(FlgenError, match=r"1 of 1 clients are left, .*min_participants asks for 2"):
        refused.unmask(refused.mask(3, x[3]), [3])
    forced = opened([3], min_participants=1)
    z = forced.unmask(forced.mask(3, x[3]), [3])
    assert z is not None
    assert z.tolist() == x[3].tolist()


def test_residues_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="residues mod 97 expected"):
        opened(range(3), modulus=97).mask(0, np.array([97], dtype=np.uint64))


def test_a_server_that_invents_shares_finds_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made = opened(range(3), threshold=0.5)
    total = add_up(made, vectors([0, 1], 2**32))
    monkeypatch.setattr(secure_sum.shamir, "rebuild", lambda shares, threshold: 12345)
    with pytest.raises(FlgenError, match="the shares of client 2 do not give the key it had shared"):
        made.unmask(total, [0, 1])


def test_the_ledger_counts_keys_shares_and_answers() -> None:
    made = opened(range(6), neighbours=4)
    made.unmask(add_up(made, vectors(range(6), 2**32)), range(6))
    rows = {(row.phase, row.link): (row.messages, row.bytes) for row in made.ledger.take()}
    assert rows == {
        ("keys", "client->server"): (6, 6 * 2 * 32),
        ("keys", "server->client"): (6, 6 * (16 + 4 * 2 * 32)),
        ("shares", "client->server"): (6, 6 * 4 * (2 * 66 + 16)),
        ("shares", "server->client"): (6, 6 * 4 * (2 * 66 + 16)),
        ("unmask", "server->client"): (6, 6 * 1),
        ("unmask", "client->server"): (6, 6 * 5 * 66),
    }


@pytest.mark.parametrize("modulus", [2**20, 2**32, 2**62, PRIME])
def test_two_ranks_find_the_same_sum(modulus: int, on_ranks: Callable[..., list[Any]]) -> None:
    rank_of = {0: 0, 1: 1, 2: 1, 3: 0, 4: 1}
    uploads = vectors([0, 1, 2, 4], modulus)  # client 3 drops out

    def work(channel: Channel) -> Any:
        made = SecureSum(channel, Ledger(), SecureAggregation(), modulus=modulus, round=1, purpose="test")
        made.open(list(rank_of), rank_of)
        mine = {u: x for u, x in uploads.items() if rank_of[u] == channel.rank}
        z = made.unmask(made.sum_over_ranks(add_up(made, mine)), list(uploads))
        return z, sum(row.wire_bytes for row in made.ledger.take() if row.phase == "upload")

    (server, _), (other, moved) = on_ranks(2, work)
    assert server.tolist() == true_sum(uploads, modulus)
    assert other is None
    assert moved == 50 * (4 if modulus <= 2**32 else 8)
