"""Siamese augmentation: the same for every image of a batch, differentiable, within its published bounds."""

from __future__ import annotations

import pytest
import torch

from flgen.data.siamese_augmentation import TRANSFORMATIONS, color, crop, cutout, flip, rotate, scale, siamese

EACH = pytest.mark.parametrize("name", TRANSFORMATIONS)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int = 3, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=draws(0))


def test_the_published_set_is_complete() -> None:
    assert list(TRANSFORMATIONS) == ["color", "crop", "cutout", "flip", "scale", "rotate"]


@EACH
@pytest.mark.parametrize("seed", range(5))
def test_every_image_of_a_batch_goes_through_the_same(name: str, seed: int) -> None:
    images = noise()
    together = TRANSFORMATIONS[name](images, draws(seed))
    assert together.shape == images.shape
    for image, transformed in zip(images, together, strict=True):
        alone = TRANSFORMATIONS[name](image.unsqueeze(0), draws(seed))
        assert torch.allclose(alone[0], transformed, atol=1e-6)


@EACH
def test_it_changes_the_images_and_lets_gradients_through(name: str) -> None:
    images = noise().requires_grad_()
    changed = [TRANSFORMATIONS[name](images, draws(seed)) for seed in range(8)]
    assert any(not torch.equal(each, images) for each in changed)
    (gradient,) = torch.autograd.grad(sum(each.square().sum() for each in changed), images)
    assert bool(gradient.any())
    assert bool(torch.isfinite(gradient).all())


def test_one_is_chosen_per_call_each_as_often_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(TRANSFORMATIONS, 0)

    def counting(name: str):  # type: ignore[no-untyped-def]
        def transformation(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            counts[name] += 1
            return images

        return transformation

    for name in list(TRANSFORMATIONS):
        monkeypatch.setitem(TRANSFORMATIONS, name, counting(name))
    generator, images = draws(1), noise(1, 1, 2)
    for _ in range(3000):
        siamese(images, generator)
    assert sum(counts.values()) == 3000
    assert all(abs(count - 500) < 100 for count in counts.values())


def test_it_follows_its_generator_alone() -> None:
    images = noise()
    torch.manual_seed(0)
    first = siamese(images, draws(4))
    torch.manual_seed(1)
    assert torch.equal(siamese(images, draws(4)), first)


def test_a_crop_moves_by_an_eighth_of_the_side_at_most() -> None:
    images = torch.zeros(1, 1, 16, 16)
    images[0, 0, 8, 8] = 1
    places = {tuple(crop(images, draws(seed)).nonzero()[0, 2:].tolist()) for seed in range(300)}
    assert places == {(row, column) for row in range(6, 11) for column in range(6, 11)}


def test_a_cutout_clears_a_square_of_half_the_side_that_may_hang_over_the_edge() -> None:
    ones = torch.ones(1, 1, 16, 16)
    cleared = [(cutout(ones, draws(seed)) == 0).sum().item() for seed in range(300)]
    assert max(cleared) == 64
    assert min(cleared) >= 16
    assert len(set(cleared)) > 3


def test_a_flip_mirrors_half_of_the_time() -> None:
    images = noise()
    mirrored = [torch.equal(flip(images, draws(seed)), images.flip(3)) for seed in range(400)]
    assert 150 < sum(mirrored) < 250
    assert all(
        torch.equal(flip(images, draws(seed)), images) for seed, is_mirrored in enumerate(mirrored) if not is_mirrored
    )


def test_a_rotation_turns_by_fifteen_degrees_at_most_and_keeps_the_centre() -> None:
    images = torch.zeros(1, 1, 33, 33)
    images[0, 0, 16, 28] = 1  # 12 pixels to the right of the centre
    images[0, 0, 16, 16] = 5
    rows = []
    for seed in range(100):
        turned = rotate(images, draws(seed))[0, 0]
        assert float(turned[16, 16]) == pytest.approx(5, abs=1e-4)
        turned[16, 16] = 0
        rows.append(int(turned.sum(dim=1).argmax()) - 16)
    # 12 sin(15 degrees) is 3.1
    assert max(rows) == 3
    assert min(rows) == -3


def test_a_scale_is_between_five_sixths_and_six_fifths() -> None:
    ramp = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33)
    slopes = [float(scale(ramp, draws(seed))[0, 0, 16, 20] / ramp[0, 0, 16, 20]) for seed in range(300)]
    assert 1 / 1.2 - 1e-4 <= min(slopes) < 0.86
    assert 1.16 < max(slopes) <= 1.2 + 1e-4


def test_color_changes_mean_and_spread_of_grey_images_within_its_bounds() -> None:
    grey = noise(2, 1)
    for seed in range(50):
        changed = color(grey, draws(seed))
        moved = changed.mean(dim=(1, 2, 3)) - grey.mean(dim=(1, 2, 3))
        assert float(moved.abs().max()) <= 0.5 + 1e-5  # brightness
        spread = changed.std(dim=(1, 2, 3)) / grey.std(dim=(1, 2, 3))
        assert 0.5 - 1e-4 <= float(spread.min()) <= float(spread.max()) <= 1.5 + 1e-4  # contrast
