"""The ledger adds what links carried, per round, phase and link, over one process and over many."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.wire.ledger import Ledger, LedgerRow, Link, add_up

LINKS: tuple[Link, ...] = ("server->client", "client->server", "client->client")

entries = st.tuples(
    st.integers(1, 3),
    st.sampled_from(["download", "upload"]),
    st.sampled_from(LINKS),
    st.integers(0, 5),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
)


def record(ledger: Ledger, entry: tuple[int, str, Link, int, int, int]) -> None:
    round, phase, link, messages, size, moved = entry
    ledger.record(round, phase, link, messages=messages, bytes=size, wire_bytes=moved)


def test_records_of_one_phase_and_link_are_added() -> None:
    ledger = Ledger()
    ledger.record(1, "upload", "client->server", messages=1, bytes=100)
    ledger.record(1, "upload", "client->server", messages=1, bytes=50, wire_bytes=7)
    ledger.record(2, "upload", "client->server", bytes=1)
    assert ledger.take() == [
        LedgerRow(1, "upload", "client->server", messages=2, bytes=150, wire_bytes=7),
        LedgerRow(2, "upload", "client->server", messages=0, bytes=1, wire_bytes=0),
    ]


def test_what_was_taken_is_gone() -> None:
    ledger = Ledger()
    ledger.record(1, "download", "server->client", messages=3, bytes=30)
    assert len(ledger.take()) == 1
    assert ledger.take() == []
    ledger.record(1, "download", "server->client", messages=1, bytes=10)
    assert ledger.take()[0].bytes == 10


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), entries), max_size=20))
def test_several_processes_add_up_to_what_one_would_have_counted(said: list) -> None:
    alone = Ledger()
    ranks = [Ledger() for _ in range(4)]
    for rank, entry in said:
        record(alone, entry)
        record(ranks[rank], entry)
    total = add_up([ledger.take() for ledger in ranks])
    assert total == alone.take()
    assert total == sorted(total, key=lambda row: (row.round, row.phase, row.link))


def test_nothing_adds_up_to_nothing() -> None:
    assert add_up([[], []]) == []
