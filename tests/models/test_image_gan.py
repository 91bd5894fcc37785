"""Generators with ordinary weights, and the discriminator that judges them."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flgen import DenseGenerator, ImageGAN, ResnetGenerator
from flgen.errors import UsageError
from flgen.masks import network


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.fixture
def small() -> DenseGenerator:
    return DenseGenerator(image_size=8, latent=16, width=8)


@pytest.mark.parametrize(
    ("size", "channels", "weights"), [(32, 1, 3_543_616), (32, 3, 3_544_768), (64, 1, 12_194_368), (64, 3, 12_195_520)]
)
def test_a_dense_generator_learns_as_many_numbers_as_prism(size: int, channels: int, weights: int) -> None:
    with torch.device("meta"):
        model = DenseGenerator(size, channels)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == weights


def test_its_layers_are_those_of_prisms_generator_in_the_same_order(small: DenseGenerator) -> None:
    masked = network.masked_layers(ResnetGenerator(image_size=8, latent=16, width=8))
    assert [(name, parameter.shape) for name, parameter in small.named_parameters()] == [
        (f"{name}.weight", layer.weight.shape) for name, layer in masked
    ]


def test_with_the_weights_that_a_mask_keeps_it_draws_what_prisms_generator_draws(small: DenseGenerator) -> None:
    masked = ResnetGenerator(image_size=8, latent=16, width=8)
    mask = torch.randint(0, 2, (network.weights_vector(masked).numel(),), generator=stream(1))
    network.fix_masks(masked, mask)
    kept = iter((network.weights_vector(masked) * mask).split([p.numel() for p in small.parameters()]))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.copy_(next(kept).view_as(parameter))
        z = small.noise(4, stream(2))
        assert torch.equal(small(z), masked(z))
        for model in (small, masked):
            model.recalibrate(stream(3), batches=2, batch_size=8)
        assert torch.equal(small(z), masked(z))


def test_initial_weights_are_he_normal_with_pytorchs_fan() -> None:
    model = DenseGenerator(image_size=8, latent=64, width=32)
    for parameter in model.parameters():
        parameter, fan = parameter.detach(), parameter[0].numel()
        assert float(parameter.std() / (2 / fan) ** 0.5) == pytest.approx(1, abs=0.1)
        assert float(parameter.mean() / parameter.std()) == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("kind", [DenseGenerator, ImageGAN])
def test_weights_follow_their_stream_and_building_reads_no_global_generator(kind: Any) -> None:
    before = torch.get_rng_state()
    first, second = (kind(image_size=8, latent=16, width=8) for _ in range(2))
    assert torch.equal(weights_of(first), weights_of(second))
    first.reset_weights(stream(1))
    second.reset_weights(stream(1))
    assert torch.equal(weights_of(first), weights_of(second))
    second.reset_weights(stream(2))
    assert not torch.equal(weights_of(first), weights_of(second))
    assert torch.equal(before, torch.get_rng_state())


def test_every_weight_has_a_gradient(small: DenseGenerator) -> None:
    small(small.noise(8, stream())).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in small.parameters())


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 2)])
def test_images_become_one_logit_each(size: int, channels: int) -> None:
    gan = ImageGAN(size, channels, latent=4, width=4, discriminator_width=4)
    images = gan(gan.example_input_array)
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    assert gan.discriminator(images).shape == (2,)


def test_a_discriminator_is_three_kinds_of_convolutions_with_leaky_rectifiers() -> None:
    D = ImageGAN(image_size=16, channels=3, latent=4, width=4, discriminator_width=4).discriminator
    images = torch.rand(2, 3, 16, 16, generator=stream()) * 2 - 1
    parameters = [p.detach() for p in D.parameters()]
    assert [tuple(w.shape) for w in parameters[::2]] == [(4, 3, 3, 3), (8, 4, 4, 4), (16, 8, 4, 4), (1, 16, 4, 4)]
    maps = F.leaky_relu(F.conv2d(images, parameters[0], parameters[1], padding=1), 0.2)
    for weight, bias in zip(parameters[2:6:2], parameters[3:6:2], strict=True):
        maps = F.leaky_relu(F.conv2d(maps, weight, bias, stride=2, padding=1), 0.2)
    torch.testing.assert_close(D(images), F.conv2d(maps, *parameters[6:]).flatten())


def test_a_logit_does_not_depend_on_the_other_images_of_the_batch() -> None:
    D = ImageGAN(image_size=8, latent=4, width=4).discriminator
    images = torch.rand(6, 1, 8, 8, generator=stream())
    torch.testing.assert_close(D(images)[:2], D(images[:2]))


def test_both_are_lightning_modules() -> None:
    for model in (DenseGenerator(8, latent=4, width=4), ImageGAN(8, latent=4, width=4)):
        assert isinstance(model, lightning.LightningModule)


@pytest.mark.parametrize("kind", [DenseGenerator, ImageGAN])
@pytest.mark.parametrize(("option", "value"), [("image_size", 12), ("channels", 0), ("latent", 0), ("width", 0)])
def test_sizes_out_of_range_are_refused(kind: Any, option: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"--model.{option} {value}"):
        kind(**{option: value})


def test_a_discriminator_needs_a_channel() -> None:
    with pytest.raises(UsageError, match=r"--model.discriminator_width 0: it must be at least 1"):
        ImageGAN(discriminator_width=0)
