"""Every draw has a stream of its own, named by seed, purpose, round and client, and no other draw moves it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flgen.federation.streams import RandomStreams

names = st.tuples(
    st.integers(0, 2**40),
    st.text(max_size=12),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.integers(0, 10**6)),
)


def seed_of(name: tuple[int, str, int, int | None]) -> int:
    seed, purpose, round, client = name
    return RandomStreams(seed).seed_for(purpose, round=round, client=client)


@settings(max_examples=200, deadline=None)
@given(names, names)
def test_streams_are_the_same_exactly_if_their_names_are(a: tuple, b: tuple) -> None:
    assert (seed_of(a) == seed_of(b)) == (a == b)


def test_no_two_streams_of_a_long_run_share_a_seed() -> None:
    streams = RandomStreams(0)
    seeds = {
        streams.seed_for(purpose, round=round, client=client)
        for purpose in ("masks", "noise", "upload", "batches")
        for round in range(50)
        for client in [None, *range(100)]
    }
    assert len(seeds) == 4 * 50 * 101
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seeds_of_a_name_never_change() -> None:
    # A checkpoint of today must go on tomorrow: these two numbers are part of the format.
    assert RandomStreams(7).seed_for("masks", round=3, client=2) == 2480245430365573795
    assert RandomStreams(7).seed_for("masks", round=3) == 3537084103655881291


def test_draws_do_not_depend_on_what_else_was_drawn() -> None:
    streams = RandomStreams(1)
    first = torch.rand(5, generator=streams.torch("noise", round=2, client=3))
    torch.rand(1000, generator=streams.torch("noise", round=2, client=4))
    streams.numpy("cohort", round=2).random(1000)
    torch.manual_seed(99)
    assert torch.equal(torch.rand(5, generator=streams.torch("noise", round=2, client=3)), first)


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(5, generator=RandomStreams(1).torch("noise"))
    RandomStreams(1).numpy("noise").random(5)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("draw", ["torch", "numpy"])
def test_different_names_draw_differently(draw: str) -> None:
    def sample(streams: RandomStreams, purpose: str, round: int, client: int | None) -> tuple[float, ...]:
        if draw == "torch":
            return tuple(torch.rand(4, generator=streams.torch(purpose, round=round, client=client)).tolist())
        return tuple(streams.numpy(purpose, round=round, client=client).random(4).tolist())

    drawn = {
        sample(RandomStreams(seed), purpose, round, client)
        for seed in (0, 1)
        for purpose in ("a", "b")
        for round in (0, 1, 2)
        for client in (None, 0, 1)
    }
    assert len(drawn) == 2 * 2 * 3 * 3
