"""The diversity of updates over ranks: the same bits wherever the clients are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flgen.errors import FlgenError
from flgen.topology.channel import Channel
from flgen.topology.update_diversity import UpdateDiversity

OnRanks = Callable[..., list[Any]]
ALONE = Channel(0, 1, torch.device("cpu"), 1, 1)


def update(client: int) -> Tensor:
    return 10.0 ** (client - 4) * torch.randn(500, generator=torch.Generator().manual_seed(client))


def measured(channel: Channel, rank_of: dict[int, int], make: Callable[[int], Tensor] = update) -> dict[str, float]:
    diversity = UpdateDiversity(channel, len(rank_of))
    for client, rank in rank_of.items():
        if rank == channel.rank:
            diversity.add(client, make(client))
    return diversity.collect()


def test_it_is_that_of_the_vectors() -> None:
    g = [(1.0, 0.0), (0.0, 2.0), (1.0, -1.0)]  # gptfl.md, section 10, check 5
    assert measured(ALONE, dict.fromkeys(range(3), 0), lambda k: torch.tensor(g[k])) == {
        "diversity/gradient": pytest.approx(1.4, abs=1e-9),
        "diversity/times_cohort": pytest.approx(4.2, abs=1e-9),
        "diversity/cosine": pytest.approx(0.0, abs=1e-9),
    }


def test_small_updates_lose_nothing_that_matters() -> None:
    updates = torch.stack([update(k).double() for k in range(6)]) * 1e-3
    found = measured(ALONE, dict.fromkeys(range(6), 0), lambda k: updates[k])
    expected = float(updates.square().sum() / updates.sum(dim=0).square().sum())
    assert found["diversity/gradient"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("ranks", "rank_of"), [(2, {0: 1, 1: 0, 2: 1, 3: 0, 4: 1, 5: 1}), (3, {5: 0, 2: 2, 3: 0, 0: 0, 1: 2, 4: 0})]
)
def test_ranks_and_order_do_not_change_a_bit(ranks: int, rank_of: dict[int, int], on_ranks: OnRanks) -> None:
    server, *others = on_ranks(ranks, lambda channel: measured(channel, rank_of))
    assert server == measured(ALONE, dict.fromkeys(range(6), 0))
    assert others == [{}] * (ranks - 1)


def test_a_round_without_uploads_has_none() -> None:
    assert UpdateDiversity(ALONE, 3).collect() == {}


def test_an_update_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(FlgenError, match=r"client 7 moved a weight by 1e\+06, too far for --evaluation"):
        UpdateDiversity(ALONE, 10).add(7, torch.tensor([0.0, -1e6]))
