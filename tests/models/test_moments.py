"""Feature moments, the moving average and the loss, with the specification's worked numbers (checks 6 and 7)."""

import pytest
import torch

from flgen.models.moments import (
    StreamingMoments,
    feature_moments,
    linearised_loss,
    moment_distance,
    moving_average_step,
)

FAKE = torch.tensor([[1.0, 0.0, 2.0], [3.0, 2.0, 0.0], [2.0, 4.0, 1.0]])
TARGET = torch.tensor([[1.0, 1.0, 1.0], [0.5, 1.0, 2.0]])


def test_moment_loss_of_the_worked_example():
    fake = FAKE.clone().requires_grad_()
    moments = feature_moments([fake])
    assert moments.tolist() == [[2, 2, 1], [1, 4, 1]]
    average = TARGET - moments.detach()
    assert average.tolist() == [[-1, -1, 0], [-0.5, -3, 1]]

    loss = linearised_loss(average, TARGET, moments)
    assert loss.item() == 12.25
    loss.backward()
    sixth = 1 / 6
    expected = torch.tensor([[-sixth, -34 * sixth, -1], [5 * sixth, 2 * sixth, 1], [2 * sixth, 38 * sixth, 0]])
    torch.testing.assert_close(fake.grad, expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_half_the_distance():
    fake = FAKE.clone().requires_grad_()
    half = 0.5 * ((TARGET[0] - fake.mean(0)).square().sum() + (TARGET[1] - fake.var(0)).square().sum())
    assert half.item() == pytest.approx(6.125, rel=1e-6)
    moments = feature_moments([fake])
    loss = linearised_loss(TARGET - moments, TARGET, moments)
    torch.testing.assert_close(torch.autograd.grad(loss, fake), torch.autograd.grad(half, fake))
    assert moment_distance(TARGET, moments).item() == pytest.approx(12.25, rel=1e-6)


def test_the_mean_part_is_the_biased_squared_mmd_of_the_linear_kernel():
    real = torch.tensor([[1.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    gram = {(a, b): (x @ y.T).mean() for a, x in (("f", FAKE), ("r", real)) for b, y in (("f", FAKE), ("r", real))}
    mmd = gram["f", "f"] + gram["r", "r"] - 2 * gram["f", "r"]
    difference = feature_moments([real])[0] - feature_moments([FAKE])[0]
    assert mmd.item() == pytest.approx(2, rel=1e-6)
    assert difference.square().sum().item() == pytest.approx(2, rel=1e-6)


def test_moments_of_several_feature_maps_equal_autograd_on_their_concatenation():
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(5, 2, 3, 3), (5, 4)]
    ]
    flat = torch.cat([feature.flatten(1) for feature in features], dim=1)
    plain = torch.stack([flat.mean(0), flat.var(0)])
    moments = feature_moments(features)
    torch.testing.assert_close(moments, plain)
    upstream = torch.randn(2, 22, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(moments, features, upstream), torch.autograd.grad(plain, features, upstream)
    )


def take_steps(width: int, target: float, steps: int) -> list[float]:
    average, first, second = torch.zeros(3, width)
    count = torch.zeros((), dtype=torch.int64)
    values = []
    for _ in range(steps):
        moving_average_step(average, first, second, count, torch.full((width,), target), learning_rate=1e-5)
        assert (average == average[0]).all()
        values.append(average[0].item())
    assert count.item() == steps
    return values


@pytest.mark.parametrize(
    ("width", "target", "expected"),
    [
        (3, 0.01, [1.0000e-5, 1.9998e-5, 2.9994e-5]),
        (303_104, 0.01, [8.6839e-6, 1.7366e-5, 2.6046e-5]),
        (303_104, 0.001, [3.9753e-6, 7.9432e-6, 1.1902e-5]),
    ],
)
def test_moving_average_of_the_worked_example(width, target, expected):
    assert take_steps(width, target, 3) == pytest.approx(expected, rel=5e-5)  # five printed digits


def test_moving_average_after_a_hundred_steps():
    assert take_steps(303_104, 0.01, 100)[-1] == pytest.approx(8.480e-4, rel=1e-3)


def test_moving_average_is_adam_on_the_mean_square():
    generator = torch.Generator().manual_seed(0)
    parameter = torch.randn(2, 7, generator=generator).requires_grad_()
    average = parameter.detach().clone()
    first, second = torch.zeros(2, 2, 7)
    step = torch.zeros((), dtype=torch.int64)
    optimiser = torch.optim.Adam([parameter], lr=1e-2, betas=(0.5, 0.999), eps=1e-8)
    for _ in range(20):
        target = torch.randn(2, 7, generator=generator)
        optimiser.zero_grad()
        (parameter - target).square().mean(dim=1).sum().backward()
        optimiser.step()
        moving_average_step(average, first, second, step, target, learning_rate=1e-2)
    torch.testing.assert_close(average, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_streamed_moments_equal_those_of_all_samples():
    samples = torch.randn(150, 2, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    stream = StreamingMoments()
    for batch in samples.split(64):
        stream.add([batch[:, 0], batch[:, 1]])
    flat = samples.flatten(1).double()
    assert stream.count == 150
    torch.testing.assert_close(stream.moments(), torch.stack([flat.mean(0), flat.var(0)]).float(), rtol=1e-6, atol=1e-7)


def test_streamed_variance_does_not_cancel():
    samples = 1000 + 0.01 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    stream = StreamingMoments()
    for batch in samples.split(64):
        stream.add([batch])
    assert stream.moments()[1].item() == pytest.approx(samples.double().var().item(), rel=1e-4)
    naive = ((samples**2).sum() - samples.sum() ** 2 / 200) / 199  # what float32 sums would give
    assert naive.item() != pytest.approx(samples.double().var().item(), rel=0.5)
