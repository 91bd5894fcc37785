"""Values of DisPFL's specification, section 13, checks 3, 4, 7 and 8, and what every exchange of connections keeps."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.federation.streams import RandomStreams
from flgen.masks.prune_regrow import (
    my2_mask,
    positions_moved,
    prune_rate,
    prune_smallest,
    random_mask,
    regrow_largest,
    regrow_random,
)

quick = settings(max_examples=100, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mask_of(*bits: int) -> Tensor:
    return torch.tensor(bits, dtype=torch.bool)


def ones(mask: Tensor) -> list[int]:
    return mask.nonzero().view(-1).tolist()


@pytest.mark.parametrize(
    ("t", "rate"),
    [
        (0, 0.5),
        (1, 0.499995065),
        (50, 0.487764129),
        (85, 0.465185507),
        (100, 0.452254249),
        (125, 0.426776695),
        (250, 0.25),
        (375, 0.073223305),
        (450, 0.012235871),
        (499, 4.935e-6),
    ],
)
def test_the_prune_rate_falls_along_half_a_cosine(t: int, rate: float) -> None:
    assert prune_rate(t, 500, 0.5) == pytest.approx(rate, rel=1e-6 if t < 499 else 1e-3)
    assert prune_rate(t, 500, 0.2) == pytest.approx(0.4 * prune_rate(t, 500, 0.5), rel=1e-12)


def test_the_prune_rate_of_a_round_after_the_last_is_zero() -> None:
    assert prune_rate(500, 500, 0.5) == 0.0


@pytest.mark.parametrize(
    ("rate", "active", "q"),
    [
        (0.5, 6, 3),
        (0.25, 6, 2),
        (prune_rate(499, 500, 0.5), 6, 1),
        (prune_rate(99_999, 100_000, 0.5), 6, 1),  # 7.4e-10 of a position is still one
        (prune_rate(18, 500, 0.5), 424_498, 211_572),  # in float32 one less
        (0.1, 30, 3),  # 0.1 * 30 is 3, not a little more
        (0.1 + 0.2, 10, 3),
        (0.3, 11, 4),
        (0.0, 6, 0),
        (0.5, 0, 0),
        (1.0, 7, 7),
        (0.01, 1, 1),
    ],
)
def test_the_positions_moved_are_rounded_up(rate: float, active: int, q: int) -> None:
    assert positions_moved(rate, active) == q


W = torch.tensor([0.5, -0.1, 0.3, -0.7, 0.05, 0.2, 0, 0, 0, 0])
M = mask_of(1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
G = torch.tensor([0.01, 0.6, -0.03, 0.2, 0.05, 0.3, 0.02, -0.9, 0.4, 0.1])


@pytest.mark.parametrize(
    ("t", "q", "pruned", "new"),
    [
        (0, 3, [1, 4, 5], mask_of(1, 1, 1, 1, 0, 0, 0, 1, 1, 0)),
        (250, 2, [1, 4], mask_of(1, 1, 1, 1, 0, 1, 0, 1, 0, 0)),
        (499, 1, [4], mask_of(1, 1, 1, 1, 0, 1, 0, 1, 0, 0)),
    ],
)
def test_the_smallest_weights_give_way_to_the_largest_gradients(t: int, q: int, pruned: list[int], new: Tensor) -> None:
    assert positions_moved(prune_rate(t, 500, 0.5), 6) == q
    kept = prune_smallest(M, W, q)
    assert ones(M & ~kept) == pruned
    assert torch.equal(regrow_largest(kept, G, q), new)


def test_my_1_differs_from_dispfl_only_in_where_the_gradient_is_taken() -> None:
    w = torch.tensor([0.9, 0.1, 0.5, 0, 0, 0])
    wbar = torch.tensor([1, 0.2, 0.4, 2, -1, 0])
    c = torch.tensor([1, 1, 1, 0.5, 0.3, 0.7])
    kept = prune_smallest(mask_of(1, 1, 1, 0, 0, 0), w, positions_moved(0.5, 3))
    assert ones(kept) == [0]
    assert ones(regrow_largest(kept, w - c, 2)) == [0, 1, 5]
    assert ones(regrow_largest(kept, wbar - c, 2)) == [0, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_of_equals_the_lower_index_goes_first_and_comes_first(dtype: torch.dtype) -> None:
    weights = torch.tensor([-0.0, 1, -1, 0.0, 1, -2, 0.0], dtype=dtype)
    everything = torch.ones(7, dtype=torch.bool)
    left = [ones(prune_smallest(everything, weights, q)) for q in range(8)]
    gone = [0, 3, 6, 1, 2, 4, 5]
    assert left == [sorted(set(range(7)) - set(gone[:q])) for q in range(8)]
    nothing = torch.zeros(7, dtype=torch.bool)
    come = [5, 1, 2, 4, 0, 3, 6]
    assert [ones(regrow_largest(nothing, weights, q)) for q in range(8)] == [sorted(come[:q]) for q in range(8)]


def test_a_layer_of_equals_is_pruned_from_the_front_and_regrown_from_the_front() -> None:
    size = 100_000  # far beyond the sizes that a sort treats in one piece
    mask = torch.ones(size, dtype=torch.bool)
    assert ones(prune_smallest(mask, torch.full((size,), 0.1), 60_000)) == list(range(60_000, size))
    assert ones(regrow_largest(~mask, torch.zeros(size), 60_000)) == list(range(60_000))


def test_infinities_are_the_largest_and_tiny_numbers_are_not_zero() -> None:
    values = torch.tensor([1.0, -1e-45, float("inf"), 0.0, -1e38])
    everything = torch.ones(5, dtype=torch.bool)
    assert [ones(everything & ~prune_smallest(everything, values, q)) for q in (1, 2, 4)] == [[3], [1, 3], [0, 1, 3, 4]]
    assert [ones(regrow_largest(~everything, values, q)) for q in (1, 2, 4)] == [[2], [2, 4], [0, 1, 2, 4]]


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """A mask, weights and gradients with many ties, and a number of positions to move."""
    size = draw(st.integers(1, 40))
    values = st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size).map(torch.tensor)
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return mask, draw(values), draw(values), draw(st.integers(0, int(mask.sum())))


@quick
@given(layers())
def test_what_is_pruned_and_regrown_is_what_plain_sorting_gives(layer: tuple[Tensor, Tensor, Tensor, int]) -> None:
    mask, w, g, q = layer
    by_size, by_slope = w.abs().tolist(), g.abs().tolist()
    kept = prune_smallest(mask, w, q)
    assert ones(mask & ~kept) == sorted(sorted(ones(mask), key=lambda i: by_size[i])[:q])
    assert int((kept & ~mask).sum()) == 0
    new = regrow_largest(kept, g, q)
    assert ones(new & ~kept) == sorted(sorted(ones(~kept), key=lambda i: -by_slope[i])[:q])
    assert int((kept & ~new).sum()) == 0


@quick
@given(layers(), seeds)
def test_counts_are_kept_and_nothing_is_changed_in_place(layer: tuple[Tensor, Tensor, Tensor, int], seed: int) -> None:
    mask, w, g, q = layer
    before = [tensor.clone() for tensor in (mask, w, g)]
    a_l = int(mask.sum())
    kept = prune_smallest(mask, w, q)
    pruned = kept.clone()
    assert int(kept.sum()) == a_l - q
    for new in (
        regrow_largest(kept, g, q),
        regrow_random(kept, q, draws(seed)),
        my2_mask(mask, w, g, q, draws(seed))[0],
    ):
        assert new.dtype == torch.bool
        assert new.shape == mask.shape
        assert int(new.sum()) == a_l
        assert bool((new | ~kept).all())
    assert all(torch.equal(tensor, old) for tensor, old in zip((mask, w, g, kept), (*before, pruned), strict=True))


def test_moving_nothing_returns_an_equal_mask_of_its_own() -> None:
    news = [prune_smallest(M, W, 0), regrow_largest(M, G, 0), regrow_random(M, 0, draws())]
    for new in (*news, *my2_mask(M, W, G, 0, draws())):
        assert torch.equal(new, M)
        assert new.data_ptr() != M.data_ptr()


def test_moving_everything_leaves_nothing_and_regrows_as_much() -> None:
    kept = prune_smallest(M, W, 6)
    assert ones(kept) == []
    assert ones(regrow_largest(kept, G, 6)) == [1, 3, 5, 7, 8, 9]
    assert int(regrow_random(kept, 6, draws()).sum()) == 6
    assert int(my2_mask(M, W, G, 6, draws())[0].sum()) == 6


def test_a_full_layer_regrows_what_it_has_lost() -> None:
    full = torch.ones(10, dtype=torch.bool)
    kept = prune_smallest(full, W, 4)
    assert ones(kept) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(regrow_random(kept, 4, draws()), full)
    assert torch.equal(regrow_largest(kept, G, 4), full)


@quick
@given(st.integers(1, 60), st.data(), seeds)
def test_a_random_mask_has_exactly_its_count(size: int, data: st.DataObject, seed: int) -> None:
    active = data.draw(st.integers(0, size))
    mask = random_mask(size, active, draws(seed))
    assert (mask.shape, mask.dtype, int(mask.sum())) == ((size,), torch.bool, active)
    assert torch.equal(mask, random_mask(size, active, draws(seed)))


def chi_square(counts: Counter[int], places: list[int]) -> float:
    expected = counts.total() / len(places)
    assert set(counts) == set(places)
    return sum((counts[place] - expected) ** 2 / expected for place in places)


def test_a_random_mask_is_uniform_over_positions() -> None:
    generator = draws(1)
    counts: Counter[int] = Counter()
    for _ in range(3000):
        counts.update(ones(random_mask(10, 3, generator)))
    # Without replacement the statistic is (10 - 3) / 9 of chi-square's with 9 degrees, whose 99.9 % point is 27.88.
    assert chi_square(counts, list(range(10))) < 27.88 * 7 / 9


def test_random_regrowth_is_uniform_over_the_zeros_and_may_take_back_what_was_pruned() -> None:
    kept = prune_smallest(M, W, 3)
    generator = draws(2)
    counts: Counter[int] = Counter()
    for _ in range(3000):
        new = regrow_random(kept, 3, generator)
        assert int(new.sum()) == 6
        assert bool((new | ~kept).all())
        counts.update(ones(new & ~kept))
    # 1, 4 and 5 have just been pruned; 6 degrees of freedom, 99.9 % point 22.46, times (7 - 3) / 6.
    assert chi_square(counts, [1, 4, 5, 6, 7, 8, 9]) < 22.46 * 4 / 6


def test_random_regrowth_takes_every_pair_equally_often() -> None:
    generator = draws(3)
    counts: Counter[int] = Counter()
    for _ in range(3000):
        first, second = ones(regrow_random(torch.zeros(5, dtype=torch.bool), 2, generator))
        counts[5 * first + second] += 1
    pairs = [5 * first + second for first in range(5) for second in range(first + 1, 5)]
    assert chi_square(counts, pairs) < 27.88  # 9 degrees of freedom, 99.9 % point


MY2_W = torch.tensor([0.9, 0.1, 0.5, 0, 0, 0])
MY2_A = (MY2_W + torch.tensor([1.2, 0, 0, 1.8, -1.5, 0]) + torch.tensor([0, 0.8, 0, 0.6, 0, -0.3])) / 3


def test_my_2_keeps_the_largest_of_its_own_and_of_the_mean_and_draws_the_rest() -> None:
    assert MY2_A.tolist() == pytest.approx([0.7, 0.3, 0.166667, 0.8, -0.5, -0.1], rel=1e-5)
    mask = mask_of(1, 1, 1, 0, 0, 0)
    streams = RandomStreams(2022)
    counts: Counter[int] = Counter()
    for t in range(2000):
        new, kappa = my2_mask(mask, MY2_W, MY2_A, 2, streams.torch("regrow", round=t, client=0))
        assert ones(kappa) == [0]
        assert int(new.sum()) == 3
        assert {0, 3} <= set(ones(new))
        counts.update(set(ones(new)) - {0, 3})
    assert chi_square(counts, [1, 2, 4, 5]) < 16.27  # 3 degrees of freedom, 99.9 % point


def test_my_2_draws_nothing_where_the_mean_is_large_outside_its_own() -> None:
    average = torch.tensor([0, 0, 0, 3.0, -2.0, 0.5])
    for seed in range(20):
        new, kappa = my2_mask(mask_of(1, 1, 1, 0, 0, 0), MY2_W, average, 2, draws(seed))
        assert (ones(kappa), ones(new)) == ([0], [0, 3, 4])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_moves_what_a_cpu_moves() -> None:
    generator = draws(4)
    values = torch.randint(-50, 50, (2, 100_000), generator=generator).float()  # many ties
    mask = random_mask(100_000, 40_000, generator)
    kept = prune_smallest(mask, values[0], 20_000)
    new = regrow_largest(kept, values[1], 20_000)
    on_gpu = prune_smallest(mask.cuda(), values[0].cuda(), 20_000)
    assert torch.equal(on_gpu.cpu(), kept)
    assert torch.equal(regrow_largest(on_gpu, values[1].cuda(), 20_000).cpu(), new)
    drawn = regrow_random(on_gpu, 20_000, torch.Generator("cuda").manual_seed(0))
    assert drawn.is_cuda
    assert int(drawn.sum()) == 40_000
    assert random_mask(10, 5, torch.Generator("cuda").manual_seed(0)).is_cuda
