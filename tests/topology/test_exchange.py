"""Any graph, any placement, any sizes: every message arrives at the ranks that need it, and nothing can hang.

The ranks are started once per number of ranks. Rank 0 makes the examples and shrinks them; the others follow what it
says, so that the processes stay the same from example to example and leftovers of one would show in the next.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.federation.launch import RanksFailed
from flgen.topology import channel as channel_module
from flgen.topology.channel import Channel, Transfer

OnRanks = Callable[..., list[Any]]


class Example(NamedTuple):
    """Clients with a message each, the rank that hosts each, and who reads from whom, in the order of the plan."""

    hosts: list[int]
    sizes: list[int]
    edges: list[tuple[int, int]]
    """(source, reader)"""

    def plan(self) -> list[Transfer]:
        routes = dict.fromkeys((source, self.hosts[reader]) for source, reader in self.edges)
        return [Transfer(source, self.hosts[source], rank, self.sizes[source]) for source, rank in routes]


class NoAnswer(BaseException):
    """An exchange failed: the processes cannot go on, so that nothing may be shrunk."""


@st.composite
def examples(draw: st.DrawFn, ranks: int) -> Example:
    clients = draw(st.integers(1, 10))
    ids = st.integers(0, clients - 1)
    few = st.one_of(st.integers(0, 3), st.integers(0, 5000), st.sampled_from([0, 70_000, 1_500_000]))
    return Example(
        draw(st.lists(st.integers(0, ranks - 1), min_size=clients, max_size=clients)),
        draw(st.lists(few, min_size=clients, max_size=clients)),
        draw(st.lists(st.tuples(ids, ids), unique=True, max_size=40)),
    )


def content(client: int, size: int) -> Tensor:
    return (torch.arange(size) * (2 * client + 1) + client).to(torch.uint8)


def differences(channel: Channel, example: Example) -> list[str]:
    """Carry out an example; return what this rank did not get as it should."""
    own = {
        client: content(client, example.sizes[client])
        for client, host in enumerate(example.hosts)
        if host == channel.rank
    }
    received = channel.exchange(own, example.plan())
    needed = {source for source, reader in example.edges if example.hosts[reader] == channel.rank}
    found = [f"rank {channel.rank} has {sorted(received)}, not {sorted(needed)}"] if set(received) != needed else []
    for client in needed & set(received):
        if not torch.equal(received[client], content(client, example.sizes[client])):
            found.append(f"rank {channel.rank} has something else for {client}")
        if client in own and received[client] is not own[client]:
            found.append(f"rank {channel.rank} copied its own {client}")
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_graph_placement_and_sizes_arrive(ranks: int, on_ranks: OnRanks) -> None:
    def lead(channel: Channel) -> tuple[int, str]:
        tried = 0

        @settings(max_examples=100, deadline=None, derandomize=True, database=None)
        @given(examples(ranks))
        def every_message_arrives(example: Example) -> None:
            nonlocal tried
            tried += 1
            channel.agree(example)
            try:
                found = differences(channel, example)
            except RuntimeError as error:
                raise NoAnswer(f"{error} in {example}") from error
            assert channel.agree(found) == [[]] * ranks

        report = ""
        try:
            every_message_arrives()
        except Exception as error:
            report = "".join(traceback.format_exception(error))
        channel.agree(None)
        return tried, report

    def work(channel: Channel) -> tuple[int, str]:
        if channel.rank == 0:
            return lead(channel)
        followed = 0
        while (example := channel.agree(None)[0]) is not None:
            channel.agree(differences(channel, example))
            followed += 1
        return followed, ""

    results = on_ranks(ranks, work, timeout_s=30, round_timeout_s=60)
    tried, report = results[0]
    assert not report, report
    assert tried >= 100
    assert results == [(tried, "")] * ranks


def test_a_circle_of_large_messages_in_both_directions_does_not_wait_for_itself(on_ranks: OnRanks) -> None:
    # Whoever sends first and receives later, or the other way round, waits for ever here.
    size = 8_000_000
    circle = Example([0, 1, 2, 3], [size] * 4, [(k, (k + step) % 4) for step in (1, 3) for k in range(4)])
    started = time.monotonic()
    assert on_ranks(4, lambda channel: differences(channel, circle), timeout_s=30) == [[]] * 4
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("ranks", [1, 2])
def test_messages_without_bytes_post_nothing(ranks: int, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(operations: list[dist.P2POp]) -> Any:
        raise AssertionError(f"{len(operations)} operations for nothing")

    monkeypatch.setattr(channel_module.dist, "batch_isend_irecv", refuse)
    empty = Example(list(range(ranks)), [0] * ranks, [(j, k) for j in range(ranks) for k in range(ranks)])
    assert on_ranks(ranks, lambda channel: differences(channel, empty)) == [[]] * ranks


def test_one_call_posts_all_its_operations_at_once(on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[int] = []

    def count(operations: list[dist.P2POp]) -> Any:
        posted.append(len(operations))
        return real(operations)

    real = dist.batch_isend_irecv
    monkeypatch.setattr(channel_module.dist, "batch_isend_irecv", count)
    # Clients 0 and 1 on rank 0, 2 on rank 1, 3 on rank 2; 3 reads twice from rank 0, and 0 and 1 both read from 2.
    example = Example([0, 0, 1, 2], [5, 6, 7, 8], [(0, 3), (1, 3), (0, 1), (2, 0), (2, 1), (0, 2)])
    assert on_ranks(3, lambda channel: (differences(channel, example), posted)) == [([], [4]), ([], [2]), ([], [2])]


def test_a_rank_that_dies_in_the_middle_of_an_exchange_ends_the_job(on_ranks: OnRanks) -> None:
    ring = Example([0, 1, 2], [4_000_000] * 3, [(k, (k + step) % 3) for step in (1, 2) for k in range(3)])

    def die(operations: list[dist.P2POp]) -> Any:
        posted = [each.op(each.tensor, each.peer, group=each.group) for each in operations[:2]]
        assert len(posted) == 2
        os.kill(os.getpid(), signal.SIGKILL)

    def work(channel: Channel) -> list[str]:
        assert differences(channel, ring) == []
        if channel.rank == 1:
            channel_module.dist.batch_isend_irecv = die  # type: ignore[assignment]
        return differences(channel, ring)

    started = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank 1 was killed by SIGKILL|others lost contact"):
        on_ranks(3, work)  # whose limits are a minute
    assert time.monotonic() - started < 30


def test_a_rank_that_never_posts_its_part_ends_the_job_in_bounded_time(on_ranks: OnRanks, capfd: Any) -> None:
    def work(channel: Channel) -> None:
        if channel.rank == 1:
            time.sleep(3)
        channel.exchange({channel.rank: content(0, 100)}, [Transfer(0, 0, 1, 100), Transfer(1, 1, 0, 100)])

    started = time.monotonic()
    with pytest.raises(RanksFailed):
        on_ranks(2, work, timeout_s=1)
    assert 1 <= time.monotonic() - started < 15
    printed = capfd.readouterr().err
    assert printed.count("rank 0 had no answer from the other ranks in time") == 1
    assert "Traceback" not in printed
