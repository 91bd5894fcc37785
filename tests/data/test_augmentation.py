"""Random crops and flips of a batch: pixel by pixel against the plain rule, and how often each comes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from flgen.data.augmentation import AUGMENTATIONS, crop_and_flip, rectangles, resized_crop_and_flip
from flgen.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=seeded(9))


def one_by_one(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """The same draws, image by image: pad with zeros, cut out, mirror."""
    count, channels, height, width = images.shape
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).tolist()
    flips = torch.randint(0, 2, (count,), generator=generator).tolist()
    results = []
    for image, top, left, flip in zip(images, tops, lefts, flips, strict=True):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, top : top + height, left : left + width]
        results.append(crop.flip(-1) if flip else crop)
    return torch.stack(results)


@pytest.mark.parametrize(
    ("shape", "padding"), [((40, 3, 32, 32), 4), ((25, 1, 8, 8), 1), ((9, 3, 5, 7), 6), ((8, 2, 4, 4), 0)]
)
def test_a_batch_is_augmented_like_its_images_one_by_one(shape, padding):
    images = random_batch(*shape)
    result = crop_and_flip(images, seeded(), padding)
    assert result.dtype == torch.uint8
    assert torch.equal(result, one_by_one(images, seeded(), padding))


def test_the_given_images_stay_as_they_are():
    images = random_batch(6, 3, 8, 8)
    before = images.clone()
    crop_and_flip(images, seeded())
    assert torch.equal(images, before)


def test_the_next_batch_of_a_generator_is_augmented_differently():
    images, generator = random_batch(20, 1, 8, 8), seeded()
    assert not torch.equal(crop_and_flip(images, generator), crop_and_flip(images, generator))


def test_every_shift_is_equally_frequent_and_half_of_the_images_are_mirrored():
    # One white pixel and, on its right, a grey one tell shift and mirroring: 81 shifts, 16,200 images.
    images = torch.zeros(16_200, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 8, 7], images[:, 0, 8, 8] = 255, 100
    result = crop_and_flip(images, seeded())[:, 0].flatten(1)
    white, grey = result.argmax(1), (result == 100).to(torch.int8).argmax(1)
    mirrored = grey < white
    assert abs(mirrored.float().mean() - 0.5) < 0.015  # standard error 0.004
    rows, columns = white // 16, white % 16
    columns = torch.where(mirrored, 15 - columns, columns)
    shifts = torch.bincount((rows - 4) * 9 + columns - 3, minlength=81)
    assert len(shifts) == 81
    assert ((shifts - 200) ** 2 / 200).sum() < 140  # chi squared with 80 degrees of freedom: mean 80, deviation 12.6


def test_a_batch_without_images_is_left_empty():
    assert crop_and_flip(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), seeded()).shape == (0, 3, 8, 8)


def test_a_negative_padding_is_refused():
    with pytest.raises(UsageError, match="padding of an augmented batch is -1"):
        crop_and_flip(random_batch(2, 1, 8, 8), seeded(), padding=-1)


@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (25, 1, 8, 8), (30, 3, 12, 40), (9, 3, 40, 5)])
def test_a_random_part_is_resized_as_torchvision_does_it(shape):
    images = random_batch(*shape)
    result = resized_crop_and_flip(images, seeded())
    generator = seeded()
    parts = rectangles(len(images), *images.shape[-2:], generator).T.tolist()
    flips = torch.randint(0, 2, (len(images),), generator=generator).tolist()
    assert result.dtype == torch.uint8
    for image, part, flip, ours in zip(images, parts, flips, result, strict=True):
        theirs = transforms.resized_crop(image, *part, image.shape[-2:], antialias=True)
        theirs = theirs.flip(-1) if flip else theirs
        assert (theirs.int() - ours.int()).abs().max() <= 1  # torchvision rounds after each axis


def test_parts_are_drawn_as_torchvision_draws_them():
    count = 4_000
    ours = rectangles(count, 32, 32, seeded()).double()
    draw = RandomResizedCrop(32)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        drawn = [draw.make_params([torch.empty(3, 32, 32)]) for _ in range(count)]
    theirs = torch.tensor([[part[name] for part in drawn] for name in ("top", "left", "height", "width")]).double()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.mean().item() == pytest.approx(other.mean().item(), abs=0.5)  # standard error 0.15
        assert mine.std().item() == pytest.approx(other.std().item(), abs=0.4)


def test_parts_lie_inside_the_image_and_are_not_too_small_or_long():
    top, left, rows, columns = rectangles(2_000, 32, 24, seeded()).tolist()
    for up, aside, high, wide in zip(top, left, rows, columns, strict=True):
        assert 0 <= up <= 32 - high
        assert 0 <= aside <= 24 - wide
        assert high * wide >= 0.06 * 32 * 24  # rounding to pixels takes a little from 8 %
        assert 0.65 <= wide / high <= 1.5


def test_where_no_part_fits_the_largest_central_one_of_an_allowed_ratio_is_taken():
    # In a strip of 3 x 300 pixels a part of 8 % would have to be longer than 4/3 of its width.
    top, left, rows, columns = rectangles(5, 3, 300, seeded()).tolist()
    assert (top, left, rows, columns) == ([0] * 5, [148] * 5, [3] * 5, [4] * 5)


def test_half_of_the_random_parts_are_mirrored_and_the_images_stay():
    images = torch.zeros(2_000, 1, 8, 8, dtype=torch.uint8)
    images += torch.arange(0, 240, 30, dtype=torch.uint8)  # brighter to the right
    before = images.clone()
    result = resized_crop_and_flip(images, seeded()).int()
    rising = (result[:, 0, 0, -1] > result[:, 0, 0, 0]).float().mean().item()
    falling = (result[:, 0, 0, -1] < result[:, 0, 0, 0]).float().mean().item()
    assert rising + falling > 0.99
    assert rising == pytest.approx(0.5, abs=0.05)
    assert torch.equal(images, before)


@pytest.mark.parametrize("augment", AUGMENTATIONS.values())
def test_the_same_generator_gives_the_same_batch(augment):
    images = random_batch(6, 3, 8, 8)
    assert torch.equal(augment(images, seeded()), augment(images, seeded()))
    assert not torch.equal(augment(images, seeded()), augment(images, seeded(1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_pixels():
    images = random_batch(40, 3, 32, 32)
    assert torch.equal(crop_and_flip(images.cuda(), seeded()).cpu(), crop_and_flip(images, seeded()))
