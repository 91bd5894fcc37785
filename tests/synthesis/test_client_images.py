"""From a generator's image to a client's (specification 1.5, check 9.13)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flgen import Digits
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import to_unit_range
from flgen.synthesis.client_images import standardize_unit, to_client_images


def test_check_9_13_a_corner_is_seen_only_by_a_filter_that_widens() -> None:
    corner = torch.zeros(1, 1, 8, 8)
    corner[0, 0, 0, 0] = 16.0 / 32  # half the scale of the check's picture, which is not of a range of [0, 1]
    antialiased = to_client_images(corner, 1, 2)
    assert antialiased[0, 0, 0, 0] == pytest.approx(0.510204 / 32, abs=1e-7)
    assert antialiased[0, 0].count_nonzero() == 1
    assert to_client_images(corner, 1, 2, antialias=False).count_nonzero() == 0


def test_the_shorter_side_is_resized_and_the_centre_kept() -> None:
    columns = torch.linspace(0, 1, 12).expand(1, 1, 6, 12)
    kept = to_client_images(columns, 1, 6)
    assert torch.equal(kept, columns[..., 3:9])
    upright = to_client_images(columns.transpose(2, 3), 1, 6)
    assert torch.equal(upright, columns.transpose(2, 3)[..., 3:9, :])
    half = to_client_images(torch.rand(2, 3, 20, 10, generator=torch.Generator().manual_seed(0)), 3, 5)
    assert half.shape == (2, 3, 5, 5)


def test_images_of_the_right_size_are_left_alone_and_small_ones_enlarged() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_client_images(images, 3, 8), images)
    large = to_client_images(images, 3, 16)
    assert large.shape == (2, 3, 16, 16)
    torch.testing.assert_close(large.mean(), images.mean(), rtol=0, atol=0.02)
    assert large.min() >= 0
    assert large.max() <= 1


def test_resizing_agrees_with_torchvision() -> None:
    from torchvision.transforms.v2 import functional as transforms

    images = torch.rand(2, 3, 50, 37, generator=torch.Generator().manual_seed(0))
    for antialias in (True, False):
        resized = transforms.resize(images, [16], antialias=antialias)
        expected = transforms.center_crop(resized, [16, 16])
        torch.testing.assert_close(to_client_images(images, 3, 16, antialias), expected, rtol=0, atol=1e-6)


def test_grey_is_copied_and_colours_become_their_luminance() -> None:
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    coloured = to_client_images(grey, 3, 8)
    assert all(torch.equal(coloured[:, [channel]], grey) for channel in range(3))
    assert coloured.is_contiguous()
    torch.testing.assert_close(to_client_images(coloured, 1, 8), grey)
    primary = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 8, 8)
    torch.testing.assert_close(to_client_images(primary, 1, 8)[:, 0, 0, 0], torch.tensor([0.299, 0.587, 0.114]))


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 1 and 3"):
        to_client_images(torch.zeros(1, 2, 8, 8), 3, 8)


class Standardized(Digits):
    """Digits with a mean and a standard deviation."""

    def layout(self) -> ImageLayout:
        return replace(super().layout(), mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize("data", [Digits(), Standardized()])
def test_they_are_normalised_as_the_clients_bytes_are(data: Digits) -> None:
    stored = torch.arange(256).to(torch.uint8).view(4, 1, 8, 8)
    torch.testing.assert_close(standardize_unit(stored / 255, data), data.standardize(stored), rtol=0, atol=1e-6)


def test_what_lies_between_two_bytes_is_kept() -> None:
    half_a_level = torch.full((1, 1, 8, 8), 100.5 / 255)
    between = to_unit_range(torch.tensor([100, 101], dtype=torch.uint8)).mean()
    torch.testing.assert_close(standardize_unit(half_a_level, Digits()), between.expand(1, 1, 8, 8))
