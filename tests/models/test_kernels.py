"""Maximum mean discrepancy against sums written out."""

import math

import pytest
import torch

from flgen.models.kernels import gaussian_mixture, median_distance, squared_distances, squared_mmd

FAKE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
REAL = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
BANDWIDTHS = torch.tensor([0.5, 2.0])


def kernel(squared: float) -> float:
    return sum(math.exp(-squared / (2 * bandwidth**2)) for bandwidth in (0.5, 2.0)) / 2


def test_squared_distances():
    assert squared_distances(FAKE, REAL).tolist() == [[0, 9], [1, 4], [4, 13]]


def test_the_median_distance_is_over_different_rows():
    assert median_distance(torch.tensor([[0.0], [1.0], [5.0]])).item() == 4


def test_the_kernel_is_the_mean_over_bandwidths():
    assert gaussian_mixture(torch.tensor([[4.0]]), BANDWIDTHS).item() == pytest.approx(kernel(4.0), rel=1e-6)


def test_unbiased_estimate():
    expected = (
        2 * (kernel(1) + kernel(4) + kernel(5)) / 6
        + kernel(9)
        - 2 * (kernel(0) + kernel(9) + kernel(1) + kernel(4) + kernel(4) + kernel(13)) / 6
    )
    assert squared_mmd(FAKE, REAL, BANDWIDTHS).item() == pytest.approx(expected, rel=1e-6)


def test_biased_estimate_is_zero_for_the_same_sample_and_positive_for_others():
    assert squared_mmd(FAKE, FAKE, BANDWIDTHS, unbiased=False).item() == pytest.approx(0, abs=1e-6)
    expected = (
        (3 + 2 * (kernel(1) + kernel(4) + kernel(5))) / 9
        + (2 + 2 * kernel(9)) / 4
        - 2 * (1 + kernel(9) + kernel(1) + 2 * kernel(4) + kernel(13)) / 6
    )
    assert squared_mmd(FAKE, REAL, BANDWIDTHS, unbiased=False).item() == pytest.approx(expected, rel=1e-6)


def test_the_unbiased_estimate_averages_to_zero_between_equal_distributions():
    generator = torch.Generator().manual_seed(0)
    estimates = torch.stack(
        [
            squared_mmd(
                torch.randn(16, 3, generator=generator), torch.randn(16, 3, generator=generator), torch.tensor([1.0])
            )
            for _ in range(400)
        ]
    )
    assert abs(estimates.mean().item()) < 4 * estimates.std().item() / 20
    assert estimates.min() < 0


def test_the_gradient_pulls_fakes_to_the_reals():
    fake = torch.tensor([[0.0], [0.1]], requires_grad=True)
    squared_mmd(fake, torch.tensor([[1.0], [1.2]]), torch.tensor([1.0])).backward()
    assert (fake.grad < 0).all()


def test_identical_fakes_have_a_finite_gradient():
    fake = torch.zeros(4, 3, requires_grad=True)
    squared_mmd(fake, torch.ones(4, 3), torch.tensor([1.0])).backward()
    assert fake.grad.isfinite().all()
    assert (fake.grad < 0).all()


def test_one_real_image_counts_as_its_own_pair():
    one = torch.tensor([[1.0, 1.0]])
    expected = squared_mmd(FAKE, one.expand(2, 2), BANDWIDTHS)
    assert squared_mmd(FAKE, one, BANDWIDTHS).item() == pytest.approx(expected.item(), rel=1e-6)
