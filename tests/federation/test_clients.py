"""Who belongs to a federation, which rank hosts whom, and who takes part in a round."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.errors import FlgenError, UsageError
from flgen.federation.clients import Client, Federation, balance, cohort_size, place
from flgen.federation.streams import RandomStreams

quick = settings(max_examples=100, deadline=None)


def clients(count: int, seed: int = 0) -> list[Client]:
    streams = RandomStreams(seed)
    return [
        Client(id=number, samples=10 + number, streams=streams, key=number, open_data=lambda device: None)
        for number in range(count)
    ]


def federation(count: int, **options: Any) -> Federation:
    return Federation(clients(count), RandomStreams(0), **options)


@quick
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.integers(1, 8))
def test_no_rank_has_more_than_the_mean_and_one_client(work: list[float], ranks: int) -> None:
    host = place(work, ranks)
    load = np.bincount(host, weights=work, minlength=ranks)
    assert load.sum() == pytest.approx(sum(work))
    assert load.max() <= sum(work) / ranks + max(work) + 1e-9
    if len(work) >= ranks:
        assert load.min() > 0
    assert place(work, ranks) == host


@pytest.mark.parametrize(("count", "ranks"), [(10, 4), (100, 8), (5, 5), (7, 1)])
def test_equal_clients_are_spread_evenly(count: int, ranks: int) -> None:
    sizes = np.bincount(federation(count, world_size=ranks).host, minlength=ranks)
    assert sizes.max() - sizes.min() <= 1


def test_every_client_has_one_host_and_the_heavy_one_is_alone() -> None:
    everyone = federation(10, world_size=3)
    everyone.place_by_work(lambda client: 100.0 if client.id == 4 else 1.0)
    hosted = [everyone.hosted_by(rank) for rank in range(3)]
    assert sorted(client.id for part in hosted for client in part) == list(range(10))
    assert [len(part) for part in hosted] == [1, 5, 4]
    assert hosted[0][0].id == 4
    assert all([client.id for client in part] == sorted(client.id for client in part) for part in hosted)


@quick
@given(st.data(), st.integers(1, 5), st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_balancing_moves_work_only_to_bring_ranks_closer(data: Any, ranks: int, work: list[int]) -> None:
    home = data.draw(st.lists(st.integers(0, ranks - 1), min_size=len(work), max_size=len(work)))
    rank = balance(work, home, ranks)
    before, after = (np.bincount(where, weights=work, minlength=ranks) for where in (home, rank))
    assert after.sum() == before.sum()
    assert after.max() <= before.max()
    assert after.min() >= before.min()
    heaviest = int(after.argmax())
    for amount, where in zip(work, rank, strict=True):
        assert where != heaviest or amount == 0 or amount >= after.max() - after.min()  # no move would still help
    assert balance(work, rank, ranks) == rank
    assert balance(work, home, ranks) == rank


def test_clients_with_state_stay_with_their_host() -> None:
    everyone = federation(20, world_size=4, clients_per_round=6)
    for t in range(1, 30):
        cohort = everyone.cohort(t)
        assert everyone.ranks(cohort) == {client.id: everyone.host[client.id] for client in cohort}


def test_clients_without_state_are_spread_over_the_ranks() -> None:
    everyone = federation(100, world_size=2, clients_per_round=10)
    everyone.stateless = True
    crowded = 0
    for t in range(1, 50):
        cohort = everyone.cohort(t)
        rank_of = everyone.ranks(cohort)
        assert list(rank_of) == [client.id for client in cohort]
        assert np.bincount(list(rank_of.values()), minlength=2).tolist() == [5, 5]
        at_home = np.bincount([everyone.host[client.id] for client in cohort], minlength=2)
        crowded += at_home.max() > 5
        stayed = sum(rank == everyone.host[client] for client, rank in rank_of.items())
        assert stayed == 10 - (at_home.max() - 5)  # nobody moves without need
    assert crowded > 10


def test_everybody_takes_part_unless_a_cohort_size_is_given() -> None:
    for options in ({}, {"clients_per_round": 5}):
        everyone = federation(5, **options)
        assert [client.id for client in everyone.cohort(1)] == [0, 1, 2, 3, 4]
    assert len(everyone) == 5


@quick
@given(st.integers(1, 30), st.integers(1, 100), st.data())
def test_a_cohort_is_drawn_without_replacement_by_ascending_id(count: int, t: int, data: Any) -> None:
    size = data.draw(st.integers(1, count))
    ids = [client.id for client in federation(count, clients_per_round=size).cohort(t)]
    assert len(ids) == size
    assert ids == sorted(set(ids))
    assert set(ids) <= set(range(count))


def test_cohorts_do_not_depend_on_ranks_or_on_earlier_rounds() -> None:
    def cohorts(ranks: int, rounds: list[int]) -> dict[int, list[int]]:
        everyone = federation(20, world_size=ranks, clients_per_round=6)
        return {t: [client.id for client in everyone.cohort(t)] for t in rounds}

    straight = cohorts(1, [1, 2, 3, 4])
    assert cohorts(4, [1, 2, 3, 4]) == straight
    assert cohorts(3, [4, 2]) == {4: straight[4], 2: straight[2]}
    assert len({tuple(ids) for ids in straight.values()}) == 4


def test_cohorts_differ_by_seed_and_reach_everybody_equally_often() -> None:
    seen = np.zeros(20)
    everyone = federation(20, clients_per_round=5)
    for t in range(1, 401):
        for client in everyone.cohort(t):
            seen[client.id] += 1
    assert seen.sum() == 400 * 5
    assert abs(seen - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)
    other = Federation(clients(20), RandomStreams(1), clients_per_round=5)
    assert [c.id for c in other.cohort(1)] != [c.id for c in everyone.cohort(1)]


def test_the_client_that_took_part_most_often_is_counted_in_any_order() -> None:
    some = federation(7, clients_per_round=3)
    cohorts = [{client.id for client in some.cohort(t)} for t in range(1, 31)]
    most = [max(sum(k in cohort for cohort in cohorts[:t]) for k in range(7)) for t in range(31)]
    assert [some.most_rounds(t) for t in (30, 4, 0, 17)] == [most[t] for t in (30, 4, 0, 17)]
    assert [federation(7, clients_per_round=3).most_rounds(t) for t in range(31)] == most
    assert [federation(7, clients_per_round=size).most_rounds(9) for size in (None, 7)] == [9, 9]


def test_counting_attendance_keeps_one_number_per_round_and_one_per_client() -> None:
    some = federation(400, clients_per_round=40)
    some.most_rounds(10)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        some.most_rounds(150)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000  # bytes; a count of every client for every round takes more than a million


def test_renumbered_clients_are_drawn_by_their_key() -> None:
    order = [3, 0, 4, 1, 2]
    straight = federation(5, clients_per_round=2)
    renumbered = Federation(
        [replace(straight.clients[old], id=new) for new, old in enumerate(order)], RandomStreams(0), clients_per_round=2
    )
    for t in range(1, 20):
        assert {client.key for client in renumbered.cohort(t)} == {client.key for client in straight.cohort(t)}
        assert [client.id for client in renumbered.cohort(t)] == sorted(client.id for client in renumbered.cohort(t))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"world_size": 6}, "6 processes for 5 clients.*--trainer.devices.*--partition.clients"),
        ({"clients_per_round": 6}, "--trainer.clients_per_round is 6: give 1 to 5"),
        ({"clients_per_round": 0}, "--trainer.clients_per_round is 0"),
    ],
)
def test_impossible_federations_are_refused_in_one_line(options: dict[str, int], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as refusal:
        federation(5, **options)
    assert "\n" not in str(refusal.value)


def test_a_clients_data_is_opened_once_on_its_device_until_it_is_closed() -> None:
    opened = []
    client = replace(clients(1)[0], open_data=lambda device: opened.append(device) or "data", device="meta")
    assert opened == []
    assert (client.data, client.data) == ("data", "data")
    assert opened == ["meta"]
    client.close_data()
    client.close_data()
    assert client.data == "data"
    assert opened == ["meta", "meta"]


def test_a_clients_test_data_are_opened_once_by_themselves_and_closed_with_the_others() -> None:
    opened: list[Any] = []
    client = replace(
        clients(1)[0],
        open_data=lambda device: opened.append(("data", device)) or "data",
        open_test=lambda device: opened.append(("test", device)) or "test data",
        device="meta",
    )
    assert (client.test_data, client.test_data) == ("test data", "test data")
    assert opened == [("test", "meta")]
    assert client.data == "data"
    client.close_data()
    assert (client.data, client.test_data) == ("data", "test data")
    assert opened == [("test", "meta"), ("data", "meta"), ("data", "meta"), ("test", "meta")]


def test_a_client_without_test_data_says_so() -> None:
    with pytest.raises(FlgenError, match=r"^client 3 was made without test data$"):
        _ = clients(4)[3].test_data


def test_a_clients_validation_data_are_opened_and_closed_with_the_others_and_none_where_it_has_none() -> None:
    opened: list[Any] = []
    client = replace(clients(1)[0], open_validation=lambda device: opened.append(device) or "held back", device="meta")
    assert (client.validation_data, client.validation_data) == ("held back", "held back")
    client.close_data()
    assert client.validation_data == "held back"
    assert opened == ["meta", "meta"]
    assert clients(1)[0].validation_data is None


def test_the_samples_that_clients_are_measured_on_go_by_their_ids() -> None:
    measured = [replace(client, test_samples=10 + client.id, validation_samples=client.id) for client in clients(3)]
    assert Federation(measured, RandomStreams(0)).measured_samples == {
        "test": {0: 10, 1: 11, 2: 12},
        "val": {0: 0, 1: 1, 2: 2},
    }


@pytest.mark.parametrize(("clients", "share", "size"), [(20, 1.0, 20), (100, 0.5, 50), (50, 0.01, 1), (10, 0.26, 3)])
def test_a_sampling_ratio_gives_a_rounded_number_of_clients_and_at_least_one(clients, share, size) -> None:
    assert cohort_size(clients, share) == size


def test_a_clients_streams_are_named_by_its_key() -> None:
    a, b = clients(2)
    renumbered = replace(a, id=1)
    assert torch.equal(torch.rand(3, generator=a.random("x", 2)), torch.rand(3, generator=renumbered.random("x", 2)))
    assert not torch.equal(torch.rand(3, generator=a.random("x", 2)), torch.rand(3, generator=b.random("x", 2)))
