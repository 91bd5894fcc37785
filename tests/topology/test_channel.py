"""The channel moves the same bytes and sums over one process and over several."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flgen.federation.launch import RanksFailed
from flgen.topology.channel import Channel

OnRanks = Callable[..., list[Any]]
RANKS = [1, 2, 3]


def noise(seed: int, size: int) -> Tensor:
    return torch.randint(256, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("ranks", RANKS)
def test_agree_tells_every_rank_what_each_said(ranks: int, on_ranks: OnRanks) -> None:
    said = [{"rank": rank, "text": "x" * 1000 * rank} for rank in range(ranks)]
    assert on_ranks(ranks, lambda channel: channel.agree(said[channel.rank])) == [said] * ranks


@pytest.mark.parametrize("ranks", RANKS)
def test_broadcast_brings_the_sources_bytes_to_every_rank(ranks: int, on_ranks: OnRanks) -> None:
    messages = [noise(size, size) for size in (1, 0, 70_001)]

    def work(channel: Channel) -> list[Tensor]:
        source = ranks - 1
        return [channel.broadcast(message if channel.rank == source else None, source) for message in messages]

    for received in on_ranks(ranks, work):
        assert all(torch.equal(got, sent) for got, sent in zip(received, messages, strict=True))


@pytest.mark.parametrize("ranks", RANKS)
def test_reduce_adds_up_on_the_destination(ranks: int, on_ranks: OnRanks) -> None:
    def parts(rank: int) -> list[Tensor]:
        draws = torch.Generator().manual_seed(rank)
        return [
            torch.randint(80, (1000,), generator=draws, dtype=torch.uint8),
            torch.randint(10**9 // 4, (7, 3), generator=draws, dtype=torch.int32),
            torch.randint(-(2**60), 2**60, (33,), generator=draws),
            torch.empty(0, dtype=torch.int64),
        ]

    def work(channel: Channel) -> list[Tensor]:
        totals = parts(channel.rank)
        for total in totals:
            channel.reduce(total, 0)
        return totals

    expected = [torch.stack(each).sum(0, dtype=each[0].dtype) for each in zip(*map(parts, range(ranks)), strict=True)]
    for total, sum_of_parts in zip(on_ranks(ranks, work)[0], expected, strict=True):
        assert torch.equal(total, sum_of_parts)


@pytest.mark.parametrize("ranks", RANKS)
def test_messages_of_any_plan_arrive_under_their_keys(ranks: int, on_ranks: OnRanks) -> None:
    dice = random.Random(ranks)
    plans = []
    for _ in range(12):
        destination = dice.randrange(ranks)
        sizes = [0, 1, 1, 17, 17, dice.randrange(5_000), 200_000]
        plan = [(key, dice.randrange(ranks), dice.choice(sizes)) for key in dice.sample(range(1000), dice.randrange(9))]
        plans.append((plan, destination))

    def work(channel: Channel) -> list[dict[int, Tensor]]:
        received = []
        for plan, destination in plans:
            own = {key: noise(key, size) for key, source, size in plan if source == channel.rank}
            received.append(channel.gather_messages(own, plan, destination))
        return received

    by_rank = on_ranks(ranks, work)
    for number, (plan, destination) in enumerate(plans):
        for rank in range(ranks):
            got = by_rank[rank][number]
            assert sorted(got) == (sorted(key for key, _, _ in plan) if rank == destination else [])
        for key, _, size in plan:
            assert torch.equal(by_rank[destination][number][key], noise(key, size))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_tensors_of_different_shapes_are_gathered_by_rank(ranks: int, dtype: torch.dtype, on_ranks: OnRanks) -> None:
    shapes = [(4, 3), (0, 3), (2, 5)]

    def part(rank: int) -> Tensor:
        return (100 * torch.rand(shapes[rank], generator=torch.Generator().manual_seed(rank))).to(dtype)

    first, *others = on_ranks(ranks, lambda channel: channel.gather_tensors(part(channel.rank).T, 0))
    assert others == [[]] * (ranks - 1)
    for rank in range(ranks):
        assert first[rank].dtype == dtype
        assert torch.equal(first[rank], part(rank).T)


def test_a_fast_rank_waits_for_a_slow_source_as_long_as_a_round_may_take(on_ranks: OnRanks) -> None:
    def work(channel: Channel) -> Tensor:
        if channel.rank == 0:
            time.sleep(2.5)  # evaluation, say: longer than one exchange of data may take
        return channel.broadcast(noise(0, 100) if channel.rank == 0 else None, 0)

    for received in on_ranks(2, work, timeout_s=1, round_timeout_s=30):
        assert torch.equal(received, noise(0, 100))


def test_a_rank_that_never_answers_ends_the_job_in_bounded_time(on_ranks: OnRanks, capfd: Any) -> None:
    def work(channel: Channel) -> None:
        if channel.rank == 1:
            time.sleep(4)
        channel.agree("here")

    started = time.monotonic()
    with pytest.raises(RanksFailed):
        on_ranks(2, work, timeout_s=1, round_timeout_s=1)
    assert 1 <= time.monotonic() - started < 15
    printed = capfd.readouterr().err
    assert printed.count("rank 0 had no answer from the other ranks in time") == 1
    assert "--trainer.round_timeout_s" in printed
    assert "Traceback" not in printed
