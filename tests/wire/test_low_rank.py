"""Low-rank messages: the smallest rank that keeps enough, and whatever is shorter as it is (FedKD, check 9.11)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flgen.wire.low_rank import compress, count_numbers, decompress, energy_rank

SHAPES = [(6, 3, 5, 5), (6,), (4, 2, 1, 1), (20, 30), (3, 1)]


def spectrum(*sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def elements_of(shapes: list[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.6, 1), (0.7, 2), (0.9, 2), (0.95, 3), (0.98, 3), (1.0, 3)])
def test_the_rank_is_the_smallest_that_keeps_the_energy(energy: float, rank: int) -> None:
    """The published loop finds 0 from 0.95 on, where the first two do not suffice (section 8, defect 18)."""
    assert energy_rank(spectrum(3, 2, 1), energy) == rank


@pytest.mark.parametrize("sigma", [(1.0,), (1, 1, 1, 1), (0, 0)])
@pytest.mark.parametrize("energy", [0.01, 0.98, 1.0])
def test_no_spectrum_has_rank_0(sigma: tuple[float, ...], energy: float) -> None:
    assert 1 <= energy_rank(spectrum(*sigma), energy) <= len(sigma)


def test_a_matrix_arrives_as_its_leading_directions() -> None:
    X = torch.zeros(4, 5, dtype=torch.float64)
    X[0, 0], X[1, 1] = 3, 4
    values, ranks = compress(X.reshape(-1), [X.shape], 0.6)
    assert ranks.tolist() == [1]
    assert len(values) == 4 + 1 + 5
    arrived = decompress(values, ranks, [X.shape]).view(4, 5)
    assert float(arrived[1, 1]) == pytest.approx(4)
    assert float((arrived - X).square().sum()) == pytest.approx(9)


def test_a_matrix_that_is_shorter_than_its_factors_goes_as_it_is() -> None:
    X = torch.tensor([[3.0, 0, 0], [0, 4, 0]])  # one direction has 2 + 1 + 3 numbers, as many as the matrix
    values, ranks = compress(X.reshape(-1), [X.shape], 0.6)
    assert ranks.tolist() == [0]
    assert torch.equal(decompress(values, ranks, [X.shape]), X.reshape(-1))


def test_a_linear_layer_as_pytorch_draws_it_goes_as_it_is() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        X = torch.nn.Linear(1600, 512).weight.detach()
    r = energy_rank(torch.linalg.svdvals(X), 0.95)
    assert r == pytest.approx(429, abs=3)
    assert r * (512 + 1600 + 1) > X.numel() == 819_200
    values, ranks = compress(X.reshape(-1), [X.shape], 0.95)
    assert ranks.tolist() == [0]
    assert torch.equal(values, X.reshape(-1))


def test_a_convolution_is_one_matrix_of_its_filters() -> None:
    """Not one for each place of its kernel, 25 times as many factors (section 8, defect 19)."""
    shape = (8, 3, 5, 5)
    X = torch.outer(noise(8), noise(75)).view(shape)
    values, ranks = compress(X.reshape(-1), [shape], 0.98)
    assert ranks.tolist() == [1]
    assert len(values) == 8 + 1 + 75
    assert torch.allclose(decompress(values, ranks, [shape]).view(shape), X)


def test_a_convolution_of_single_pixels_does_not_vanish() -> None:
    """In the published code it is all zeros, always (section 8, defect 18)."""
    shape = (16, 16, 1, 1)
    X = torch.eye(16, dtype=torch.float64).view(shape)
    values, ranks = compress(X.reshape(-1), [shape], 0.98)
    assert torch.equal(decompress(values, ranks, [shape]).view(shape), X)


@pytest.mark.parametrize("energy", [0.3, 0.7, 1.0])
def test_each_tensor_keeps_its_energy_and_the_ranks_say_how_long_the_message_is(energy: float) -> None:
    vector = noise(elements_of(SHAPES))
    values, ranks = compress(vector, SHAPES, energy)
    assert len(values) == count_numbers(ranks, SHAPES) <= len(vector)
    arrived = decompress(values, ranks, SHAPES)
    sizes = [math.prod(shape) for shape in SHAPES]
    for sent, got, rank in zip(vector.split(sizes), arrived.split(sizes), ranks.tolist(), strict=True):
        lost = float((got - sent).square().sum() / sent.square().sum())
        assert lost <= (1 - energy + 1e-12 if rank else 0)
    assert ranks[1] == 0  # a vector has no factors
    assert (len(values) < len(vector)) == (energy < 1)


def test_a_matrix_of_zeros_arrives_as_zeros() -> None:
    values, ranks = compress(torch.zeros(12 * 10), [(12, 10)], 0.95)
    assert ranks.tolist() == [1]
    assert torch.equal(decompress(values, ranks, [(12, 10)]), torch.zeros(120))


def test_what_is_not_finite_is_left_for_the_receiver_to_find() -> None:
    X = torch.ones(12, 10)
    X[3, 3] = math.nan
    values, ranks = compress(X.reshape(-1), [X.shape], 0.95)
    assert ranks.tolist() == [0]
    assert int(values.isnan().sum()) == 1
