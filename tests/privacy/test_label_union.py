"""The union of the clients' labels through a real secure sum: who learns what, when it is tried again, what it says."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import p_value

from flgen.errors import FlgenError, UsageError
from flgen.federation.launch import RanksFailed
from flgen.federation.streams import RandomStreams
from flgen.privacy import SecureAggregation, secure_sum
from flgen.privacy.label_table import MODULUS, LabelTable, TableLayout, table_width
from flgen.privacy.label_union import LabelUnion, LabelUnionOptions, client_table, label_union, random_multiplicity
from flgen.topology.channel import Channel
from flgen.wire.ledger import Ledger, LedgerRow, add_up

OnRanks = Callable[..., list[Any]]

CLIENTS = [["Cat", "dog"], ["cat ", "ship", "CAT"], ["great_white shark"], [], ["dog", "cat"]]
LABELS = ("cat", "dog", "great white shark", "ship")
HOLDERS = (3, 2, 1, 1)


def alone() -> Channel:
    return Channel(0, 1, torch.device("cpu"), 10, 10)


def union_of(
    clients: Sequence[Sequence[str]], channel: Channel | None = None, seed: int = 3, **options: Any
) -> tuple[LabelUnion, list[LedgerRow]]:
    """The union over a channel that hosts every client on rank (its id mod the number of ranks), and its ledger."""
    channel = channel or alone()
    rank_of = {client: client % channel.world_size for client in range(len(clients))}
    hosted = {client: clients[client] for client, rank in rank_of.items() if rank == channel.rank}
    ledger = Ledger()
    chosen = LabelUnionOptions(**{"capacity": 10, **options})
    union = label_union(hosted, rank_of, channel, ledger, RandomStreams(seed), chosen, SecureAggregation())
    return union, add_up(channel.agree(ledger.take()))


def test_the_labels_are_canonical_sorted_and_those_of_all_clients() -> None:
    union, _ = union_of(CLIENTS)
    assert union.labels == LABELS
    assert (union.complete, union.residual_cells, union.attempts) == (True, 0, 1)


def test_blind_tells_no_count_and_clients_tells_how_many_hold_each_label() -> None:
    assert union_of(CLIENTS, count_mode="blind")[0].clients is None
    assert union_of(CLIENTS, count_mode="clients")[0].clients == HOLDERS


def test_the_number_of_ranks_changes_nothing(on_ranks: OnRanks) -> None:
    expected, rows = union_of(CLIENTS)
    for ranks in (2, 3):
        results = on_ranks(ranks, lambda channel: union_of(CLIENTS, channel))
        for union, rows_there in results:
            assert union == expected
            # What the protocol sends is the same; between ranks some of it now really moves.
            assert [(r.phase, r.link, r.messages, r.bytes) for r in rows_there] == [
                (r.phase, r.link, r.messages, r.bytes) for r in rows
            ]
            table_bytes = TableLayout(union.k, union.m, union.key_cells, 0).nbytes
            moved = {row.phase: row.wire_bytes for row in rows_there if row.link == "client->server"}
            assert moved["upload"] == (ranks - 1) * table_bytes  # every other rank sends one sum


def test_a_rank_without_clients_takes_part(on_ranks: OnRanks) -> None:
    (first, _), (second, _), (third, _) = on_ranks(3, lambda channel: union_of([["a"], ["b"]], channel))
    assert first == second == third
    assert first.labels == ("a", "b")


def test_the_report_says_how_the_table_was_made_and_survives_json() -> None:
    union, rows = union_of(CLIENTS, capacity=102, seed=11)
    assert (union.k, union.m, union.p, union.key_cells, union.capacity) == (4, 268, 2**61 - 1, 8, 102)
    assert union.seed == RandomStreams(11).seed_for("label table", round=1)
    assert union.bytes_per_client == 85_760
    (upload,) = [row for row in rows if row.phase == "upload"]
    assert (upload.messages, upload.bytes) == (5, 5 * 85_760)
    assert json.loads(union.to_json())["labels"] == list(LABELS)
    assert LabelUnion.from_json(union.to_json()) == union
    counted, _ = union_of(CLIENTS, count_mode="clients")
    assert LabelUnion.from_json(counted.to_json()) == counted


def test_every_client_is_sent_the_report() -> None:
    union, rows = union_of(CLIENTS)
    (download,) = [row for row in rows if row.phase == "download"]
    assert (download.messages, download.bytes) == (5, 5 * len(union.to_json().encode()))


class TestRetry:
    MANY = tuple([f"label {number}" for number in range(start, start + 12)] for start in (0, 8, 16))  # 28 labels

    def test_a_table_that_is_too_small_is_made_anew_with_twice_the_cells(self, caplog: Any) -> None:
        with caplog.at_level(logging.WARNING, "flgen"):
            union, rows = union_of(self.MANY, capacity=2, failure_rate=0.1)  # 2 cells for each hash
        assert set(union.labels) == {f"label {number}" for number in range(28)}
        assert union.attempts > 1
        first = table_width(2, 4, 0.1)
        assert union.m == first * 2 ** (union.attempts - 1)
        assert union.seed == RandomStreams(3).seed_for("label table", round=union.attempts)
        uploads = [row for row in rows if row.phase == "upload"]
        assert [row.round for row in uploads] == list(range(1, union.attempts + 1))
        assert union.bytes_per_client == sum(row.bytes // row.messages for row in uploads)
        said = [record.getMessage() for record in caplog.records if "could not be read" in record.getMessage()]
        assert len(said) == union.attempts - 1
        assert said[0].startswith("label table 1 of at most 5 could not be read (8 of 8 cells are left)")

    def test_every_attempt_has_keys_masks_and_multiplicities_of_its_own(self, monkeypatch: Any) -> None:
        masked, drawn = Inbox(monkeypatch), []

        def draw() -> int:
            drawn.append(random_multiplicity())
            return drawn[-1]

        options = LabelUnionOptions(capacity=2, failure_rate=0.1)
        hosted = dict(enumerate(self.MANY))
        union = label_union(
            hosted, dict.fromkeys(hosted, 0), alone(), Ledger(), RandomStreams(3), options, SecureAggregation(), draw
        )
        assert len(set(drawn)) == 36 * union.attempts
        assert len(masked.sums) == union.attempts
        keys = [secure.keys[client] for secure in masked.sums for client in hosted]
        assert len(set(keys)) == len(keys)

    @pytest.mark.parametrize("count_mode", ["blind", "clients"])
    def test_after_the_last_attempt_the_error_says_what_to_enlarge(self, count_mode: str) -> None:
        with pytest.raises(FlgenError) as raised:
            union_of(self.MANY, capacity=2, failure_rate=0.1, attempts=2, count_mode=count_mode)
        message = str(raised.value)
        assert message.startswith("the labels could not be read in 2 attempts (4 x 4 cells in the last)")
        assert "raise it to a bound of all clients' distinct labels, or raise --union.attempts" in message
        assert "--union.capacity 2" in message
        assert "label 1" not in message

    def test_a_union_in_parts_never_leaves_the_server(self, monkeypatch: Any) -> None:
        told: list[dict[str, Any]] = []
        read = LabelUnion.from_json

        def listening(text: str) -> LabelUnion:
            told.append(json.loads(text))
            return read(text)

        monkeypatch.setattr(LabelUnion, "from_json", listening)
        union, _ = union_of(self.MANY, capacity=8, failure_rate=0.1)
        assert [report["complete"] for report in told] == [False] * (union.attempts - 1) + [True]
        assert len(told) > 1
        assert all(report["labels"] == [] and report["residual_cells"] > 0 for report in told[:-1])

    def test_more_clients_than_there_are_is_a_table_that_was_not_read(self, monkeypatch: Any) -> None:
        def insert_twice(self: LabelTable, label: str, v: int) -> None:
            insert(self, label, 2 * v)  # as a client that does not keep to the protocol

        insert = LabelTable.insert
        monkeypatch.setattr(LabelTable, "insert", insert_twice)
        with pytest.raises(FlgenError, match="could not be read in 1 attempt "):
            union_of([["a"], ["a"]], count_mode="clients", attempts=1)
        assert union_of([["a"], ["a"]], count_mode="blind", attempts=1)[0].labels == ("a",)


class Inbox:
    """Keeps every secure sum that is opened and every masked vector that a client sends."""

    def __init__(self, monkeypatch: Any) -> None:
        self.sums: list[secure_sum.SecureSum] = []
        self.vectors: dict[int, np.ndarray] = {}
        inbox, open_, mask = self, secure_sum.SecureSum.open, secure_sum.SecureSum.mask

        def opening(self: Any, cohort: Sequence[int], rank_of: Mapping[int, int]) -> None:
            inbox.sums.append(self)
            open_(self, cohort, rank_of)

        def masking(self: Any, client: int, x: np.ndarray) -> np.ndarray:
            inbox.vectors[client] = mask(self, client, x)
            return inbox.vectors[client].copy()

        monkeypatch.setattr(secure_sum.SecureSum, "open", opening)
        monkeypatch.setattr(secure_sum.SecureSum, "mask", masking)


class TestPrivacy:
    def test_what_a_client_sends_is_noise_and_what_all_send_is_not(self, monkeypatch: Any) -> None:
        inbox = Inbox(monkeypatch)
        union, _ = union_of(CLIENTS, capacity=102)
        for client, sent in inbox.vectors.items():
            assert p_value(sent, MODULUS, bins=32) > 1e-3
            # Client 3 has no label at all: its table is nothing but zeros.
            layout = TableLayout(union.k, union.m, union.key_cells, union.seed)
            bare = client_table(client, CLIENTS[client], layout, random_multiplicity).cells
            assert (bare == 0).mean() > 0.98
            assert not (sent == 0).any()

    def test_every_draw_is_an_invertible_number(self) -> None:
        draws = [random_multiplicity() for _ in range(2000)]
        assert 1 <= min(draws) < max(draws) < MODULUS
        assert len(set(draws)) == len(draws)
        assert abs(sum(v > MODULUS // 2 for v in draws) - 1000) < 6 * 500**0.5

    def test_one_client_alone_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"1 client cannot hide the labels.*raise --partition.clients"):
            union_of([["cat"]])

    def test_forcing_a_single_participant_does_not_open_its_labels(self) -> None:
        options, forced = LabelUnionOptions(capacity=3), SecureAggregation(min_participants=1)
        with pytest.raises(UsageError, match="at least 2 are needed"):
            label_union({0: ["cat"]}, {0: 0}, alone(), Ledger(), RandomStreams(0), options, forced)

    def test_as_many_clients_are_needed_as_secure_aggregation_asks_for(self) -> None:
        options, many = LabelUnionOptions(capacity=3), SecureAggregation(min_participants=3)
        hosted = {0: ["cat"], 1: ["dog"]}
        with pytest.raises(
            UsageError, match=r"at least 3 are needed.*, or lower --secure_aggregation.min_participants$"
        ):
            label_union(hosted, {0: 0, 1: 0}, alone(), Ledger(), RandomStreams(0), options, many)

    @pytest.mark.parametrize("clients", [2, 5])
    def test_few_clients_are_warned_of(self, clients: int, caplog: Any) -> None:
        with caplog.at_level(logging.WARNING, "flgen"):
            union_of(CLIENTS[:clients])
        assert ("only 2 clients" in caplog.text) == (clients == 2)


class TestMistakes:
    @pytest.mark.parametrize(
        ("label", "why"),
        [
            (" _ ", "client 1: a label is empty"),
            ("x" * 60, "client 1: label 'x+' has 60 bytes.*--union.key_cells to 9"),
        ],
    )
    def test_a_client_with_an_impossible_label_is_named(self, label: str, why: str) -> None:
        with pytest.raises(UsageError, match=why):
            union_of([["cat"], ["dog", label]])

    def test_on_another_rank_it_ends_the_job_with_one_line(self, on_ranks: OnRanks, capfd: Any) -> None:
        with pytest.raises(RanksFailed) as raised:
            on_ranks(2, lambda channel: union_of([["cat"], ["dog", ""]], channel))
        assert raised.value.exit_status == 2
        printed = capfd.readouterr().err
        assert printed.count("flgen: error: client 1: a label is empty: name every class") == 1

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("capacity", 0),
            ("capacity", 10**9 + 1),
            ("attempts", 0),
            ("attempts", 21),
            ("hashes", 2),
            ("hashes", 7),
            ("failure_rate", 0.0),
            ("failure_rate", 1e-19),
            ("failure_rate", float("nan")),
            ("failure_rate", 1.0),
            ("key_cells", 0),
            ("key_cells", 37),
        ],
    )
    def test_an_option_out_of_its_range_is_named_as_it_is_typed(self, option: str, value: Any) -> None:
        with pytest.raises(UsageError, match=f"--union.{option} is {value}: give "):
            LabelUnionOptions(**{"capacity": 10, option: value})

    def test_a_table_that_no_memory_holds_is_refused_before_it_is_made(self) -> None:
        largest = 8 * 4 * 16 * table_width(1_000_000, 4, 1e-6) * (8 + 2) / 2**20
        with pytest.raises(
            UsageError, match=f"--union.capacity is 1000000: in attempt 5 every .* {largest:,.0f} MiB, more than 1,024;"
        ):
            LabelUnionOptions(capacity=1_000_000)
        LabelUnionOptions(capacity=1_000_000, attempts=3)
        for extreme in ({"capacity": 10**9}, {"capacity": 10, "attempts": 20}):
            with pytest.raises(UsageError, match=r"more than 1,024; lower it, --union.key_cells or --union.attempts"):
                LabelUnionOptions(**{"failure_rate": 1e-18, "hashes": 3, **extreme})
