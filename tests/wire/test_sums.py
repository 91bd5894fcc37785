"""Sums of uploads: the order of addition, and with it the number of ranks, does not change a bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flgen.errors import FlgenError
from flgen.wire.sums import RunningSum, Summand

CPU = torch.device("cpu")
quick = settings(max_examples=60, deadline=None)


def upload(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        "mask": torch.rand(40, generator=draws) < 0.5,
        "weights": scale * torch.randn(5, 8, generator=draws),
        "narrow": torch.randn(6, generator=draws).half(),
        "counts": torch.randint(-100, 100, (7,), generator=draws, dtype=torch.int32),
    }


def sum_of(uploads: list[tuple[dict[str, Tensor], int]], **options: Any) -> RunningSum:
    running = RunningSum(**{"weight_limit": sum(weight for _, weight in uploads), **options})
    for tensors, weight in uploads:
        running.add(tensors, weight)
    return running


@quick
@given(st.lists(st.integers(1, 500), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_change_a_bit(weights: list[int], random: Any) -> None:
    uploads = [(upload(seed), weight) for seed, weight in enumerate(weights)]
    straight = sum_of(uploads).values()
    random.shuffle(uploads)
    cut = random.randint(0, len(uploads))
    ranks = [sum_of(part, weight_limit=sum(weights)) for part in (uploads[:cut], uploads[cut:])]
    for name, total in straight.items():
        parts = [rank.totals[name] for rank in ranks if name in rank.totals]
        whole = RunningSum(sum(weights), summands=ranks[0].summands | ranks[1].summands)
        whole.totals[name] = torch.stack(parts).sum(0, dtype=parts[0].dtype)
        assert torch.equal(whole.values()[name], total)


@pytest.mark.parametrize("fraction_bits", [8, 20, 32])
def test_floats_are_rounded_once_per_upload(fraction_bits: int) -> None:
    uploads = [(upload(seed), weight) for seed, weight in ((0, 3), (1, 5), (2, 1))]
    running = sum_of(uploads, fraction_bits=fraction_bits).values()
    for name in ("weights", "narrow"):
        true = sum(weight * tensors[name].double() for tensors, weight in uploads)
        error = float((running[name] - true).abs().max())
        assert error <= 9 * 2.0 ** -(fraction_bits + 1)  # once per upload, times its weight
        assert running[name].dtype == torch.float64
    assert float((running["weights"] * 2.0**fraction_bits).frac().abs().max()) == 0


def test_rounding_is_to_the_nearest_multiple() -> None:
    running = RunningSum(weight_limit=1, fraction_bits=2)
    running.add({"x": torch.tensor([0.1, 0.2, -0.2, 0.9, 1.25])}, 1)
    assert running.values()["x"].tolist() == [0.0, 0.25, -0.25, 1.0, 1.25]


def test_bits_and_integers_stay_integers() -> None:
    uploads = [(upload(seed), 2) for seed in range(5)]
    running = sum_of(uploads).values()
    counts = sum(2 * tensors["mask"].long() for tensors, _ in uploads)
    assert not running["mask"].is_floating_point()
    assert running["mask"].long().equal(counts)
    assert running["counts"].dtype == torch.int64
    assert running["counts"].equal(sum(2 * tensors["counts"].long() for tensors, _ in uploads))


@pytest.mark.parametrize(
    ("clients", "dtype"), [(255, torch.uint8), (256, torch.int32), (2**31 - 1, torch.int32), (2**31, torch.int64)]
)
def test_bits_are_counted_in_the_smallest_type_that_holds_every_client(clients: int, dtype: torch.dtype) -> None:
    running = RunningSum(weight_limit=clients)
    running.add({"mask": torch.tensor([True, False])}, clients)
    assert running.totals["mask"].dtype == dtype
    assert running.values()["mask"].tolist() == [clients, 0]


def test_the_largest_element_that_fits_is_summed_exactly() -> None:
    largest = 2.0**62 / (4 * 2**32) - 1024
    running = RunningSum(weight_limit=4)
    for _ in range(4):
        running.add({"x": torch.tensor([largest, -largest], dtype=torch.float64)}, 1)
    assert running.values()["x"].tolist() == [4 * largest, -4 * largest]


@pytest.mark.parametrize("value", [2.0**62 / (4 * 2**32), -(2.0**40), float("inf"), float("nan")])
def test_floats_that_could_overflow_are_refused(value: float) -> None:
    running = RunningSum(weight_limit=4)
    with pytest.raises(FlgenError, match=r"'x' would overflow.*--method.topology.fraction_bits") as refusal:
        running.add({"x": torch.tensor([0.0, value])}, 1)
    assert "\n" not in str(refusal.value)
    assert running.totals == {}


def test_integers_that_could_overflow_are_refused() -> None:
    running = RunningSum(weight_limit=3)
    running.add({"x": torch.tensor([2**60])}, 3)
    assert running.values()["x"].tolist() == [3 * 2**60]
    for value in (2**62, -(2**63)):
        with pytest.raises(FlgenError, match="overflow"):
            running.add({"x": torch.tensor([value])}, 1)


def test_fast_sums_are_float32_and_have_no_range_to_leave() -> None:
    uploads = [(upload(seed, scale=1e12), 1) for seed in range(3)]
    running = sum_of(uploads, reduction="fast")
    assert running.totals["weights"].dtype == torch.float32
    true = sum(tensors["weights"].double() for tensors, _ in uploads)
    assert torch.allclose(running.values()["weights"], true, rtol=1e-5, atol=1e6)
    assert running.values()["mask"].long().equal(sum(tensors["mask"].long() for tensors, _ in uploads))


def test_a_rank_without_uploads_adds_zeros_of_the_right_type() -> None:
    busy, idle = sum_of([(upload(0), 1), (upload(1), 1)]), RunningSum(weight_limit=2)
    for name, summand in busy.summands.items():
        idle.expect(name, summand, CPU)
    assert idle.totals.keys() == busy.totals.keys()
    for name, total in busy.totals.items():
        assert idle.totals[name].dtype == total.dtype
        assert torch.equal(idle.totals[name] + total, total)
    assert all(float(value.abs().sum()) == 0 for value in idle.values().values())


def test_an_entry_expected_after_it_was_added_keeps_its_sum() -> None:
    running = sum_of([({"x": torch.tensor([1.5])}, 2)])
    running.expect("x", Summand((1,), torch.float32), CPU)
    assert running.values()["x"].tolist() == [3.0]


@pytest.mark.parametrize("other", [torch.zeros(1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64)])
def test_entries_that_do_not_fit_together_are_refused(other: Tensor) -> None:
    running = sum_of([({"x": torch.zeros(2)}, 1)])
    with pytest.raises(FlgenError, match=r"'x' is torch.float32 \(2,\) from one client"):
        running.add({"x": other}, 1)


def test_uploads_are_not_changed() -> None:
    tensors = upload(0)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    running = sum_of([(tensors, 7)])
    running.values()
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    assert torch.equal(running.values()["weights"], running.values()["weights"])


def test_an_empty_entry_sums_to_an_empty_entry() -> None:
    assert sum_of([({"x": torch.empty(0, 3)}, 1)]).values()["x"].shape == (0, 3)
