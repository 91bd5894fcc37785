"""What a client minimises: its state, its value, its gradient, its refusals."""

import pytest
import torch
from client_images import Images, fakes, generator, pixels
from torch import Tensor

from flgen.errors import UsageError
from flgen.models.losses import KernelMMD


class TestKernelMMD:
    def test_bandwidths_are_multiples_of_the_clients_median_distance(self):
        # three images at distances 2, 2 and 4 in [-1, 1]: one pixel differs
        images = torch.zeros(3, 1, 1, 4, dtype=torch.uint8)
        images[1, ..., 0] = images[2, ..., 1] = 255
        expected = 2.0  # the median of 2, 2, sqrt(8)
        state = KernelMMD(bandwidths=[0.5, 1.0]).prepare(Images(images), generator())
        assert state["bandwidths"].tolist() == pytest.approx([0.5 * expected, expected])

    def test_value_against_the_written_out_sum(self):
        loss = KernelMMD(bandwidths=[1.0], unbiased=False)
        real = pixels(4, size=8)
        state = loss.prepare(Images(real), generator())
        fake = fakes(3, size=8)
        a, b = fake.flatten(1), real.flatten(1).float() / 127.5 - 1

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return torch.exp(-torch.cdist(x, y).square() / (2 * state["bandwidths"][0] ** 2)).mean()

        expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
        value = loss(fake, state, real)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        assert state["distance"].item() == value.item()

    def test_descent_brings_fakes_to_reals(self):
        loss = KernelMMD()
        real = pixels(64, size=4)
        state = loss.prepare(Images(real), generator())
        fake = torch.zeros(64, 1, 4, 4).add_(0.1 * torch.randn(64, 1, 4, 4, generator=generator())).requires_grad_()
        optimiser = torch.optim.Adam([fake], lr=0.05)
        values = []
        for _ in range(60):
            optimiser.zero_grad()
            value = loss(fake, state, real)
            value.backward()
            optimiser.step()
            values.append(value.item())
        assert values[-1] < 0.1 * values[0]

    def test_identical_images_leave_a_usable_bandwidth(self):
        loss = KernelMMD()
        real = torch.full((3, 1, 4, 4), 7, dtype=torch.uint8)
        state = loss.prepare(Images(real), generator())
        assert (state["bandwidths"] > 0).all()
        assert loss(fakes(3, size=4), state, real).isfinite()

    def test_it_asks_for_real_images(self):
        loss = KernelMMD(real_batch=17)
        assert loss.real_batch == 17
        state = loss.prepare(Images(pixels(4, size=4)), generator())
        with pytest.raises(ValueError, match="real_batch"):
            loss(fakes(3, size=4), state)

    @pytest.mark.parametrize("options", [{"bandwidths": []}, {"bandwidths": [1.0, 0.0]}, {"real_batch": 0}])
    def test_impossible_settings_are_refused(self, options):
        with pytest.raises(UsageError, match=f"--model.loss.{next(iter(options))}"):
            KernelMMD(**options)

    def test_a_client_with_one_image_is_refused(self):
        with pytest.raises(UsageError, match="at least two images"):
            KernelMMD().prepare(Images(pixels(1)), generator())

    def test_it_cannot_be_private(self):
        assert not KernelMMD.can_release
        with pytest.raises(UsageError, match=r"--model\.loss KernelMMD looks at real images in every step"):
            KernelMMD().check_private()

    def test_it_has_seen_no_data_set_and_keeps_nothing(self):
        assert KernelMMD().public_data() is None
        assert KernelMMD().cache_dir is None


def test_half_precision_does_not_reach_the_statistics():
    loss, real, fake = KernelMMD(), pixels(8), fakes(6)
    state = loss.prepare(Images(real), generator())
    exact = loss(fake, state, real).item()
    half = fake.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, state, real)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=0.02)
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0
