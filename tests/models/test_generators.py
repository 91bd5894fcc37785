"""PRISM's generator: its published sizes, its seeds, its recalibration."""

import subprocess
import sys

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flgen.errors import UsageError
from flgen.masks import network
from flgen.masks.layers import MaskedLayer
from flgen.models.generators import ResnetGenerator
from flgen.models.residual import upsampled_conv3x3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small() -> ResnetGenerator:
    model = ResnetGenerator(image_size=8, latent=16, width=8)
    network.sample_masks(model, generator(1))
    return model


@pytest.fixture(scope="module")
def published() -> dict[tuple[int, int], ResnetGenerator]:
    return {(size, channels): ResnetGenerator(size, channels) for size in (32, 64) for channels in (1, 3)}


@pytest.mark.parametrize(
    ("size", "channels", "weights", "packed_bytes", "layers", "normalised_channels"),
    [
        (32, 1, 3_543_616, 442_952, 11, 1_408),
        (32, 3, 3_544_768, 443_096, 11, 1_408),
        (64, 1, 12_194_368, 1_524_296, 14, 2_944),
        (64, 3, 12_195_520, 1_524_440, 14, 2_944),
    ],
)
def test_published_counts(published, size, channels, weights, packed_bytes, layers, normalised_channels):
    model = published[size, channels]
    masked = network.masked_layers(model)
    count = sum(layer.scores.numel() for _, layer in masked)
    assert count == weights
    assert -(-count // 8) == packed_bytes
    assert len(masked) == layers
    assert count == sum(parameter.numel() for parameter in model.parameters())  # nothing else is trained
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(norm.num_features for norm in norms) == normalised_channels
    assert all(norm.weight is None for norm in norms)


BLOCKS_32 = [0.0208333, 0.0294628, 0.0625, 0.0294628, 0.0416667, 0.0883883, 0.0416667, 0.0589256, 0.125]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (32, [0.0156250, *BLOCKS_32, 0.0589256]),
        (64, [0.0110485, 0.0147314, 0.0208333, 0.0441942, *BLOCKS_32, 0.0589256]),
    ],
)
def test_each_layer_has_one_weight_magnitude(published, size, expected):
    magnitudes = [layer.weight.abs().unique().tolist() for _, layer in network.masked_layers(published[size, 1])]
    assert [len(values) for values in magnitudes] == [1] * len(expected)
    assert [values[0] for values in magnitudes] == pytest.approx(expected, rel=4e-6)  # the table's last digit


def test_layer_shapes_at_32_pixels(published):
    shapes = {name: tuple(layer.weight.shape) for name, layer in network.masked_layers(published[32, 3])}
    assert shapes == {
        "first": (128, 512, 4, 4),
        "blocks.0.conv1": (256, 512, 3, 3),
        "blocks.0.conv2": (256, 256, 3, 3),
        "blocks.0.bypass": (256, 512, 1, 1),
        "blocks.1.conv1": (128, 256, 3, 3),
        "blocks.1.conv2": (128, 128, 3, 3),
        "blocks.1.bypass": (128, 256, 1, 1),
        "blocks.2.conv1": (64, 128, 3, 3),
        "blocks.2.conv2": (64, 64, 3, 3),
        "blocks.2.bypass": (64, 128, 1, 1),
        "last": (3, 64, 3, 3),
    }


@pytest.mark.parametrize(("size", "entries"), [(32, 6_038_080), (64, 22_291_008)])
def test_reference_accounting_counts_block_convolutions_twice(published, size, entries):
    model = published[size, 1]
    weights = model.accounting_weights()
    assert weights.sum().item() == entries
    assert weights.numel() == sum(parameter.numel() for parameter in model.parameters())
    multiplicity = model.layer_multiplicity()
    assert [name for name, times in multiplicity.items() if times == 1] == ["first", "last"]
    assert all(weights[place].unique().tolist() == [multiplicity[name]]
               for name, place in network.layer_slices(model).items())  # fmt: skip


def test_the_smallest_generator_of_the_digits():
    assert sum(parameter.numel() for parameter in ResnetGenerator(8, latent=64).parameters()) == 250_432


def test_layers_run_in_the_order_of_the_flat_vector(small):
    order: list[str] = []
    for name, layer in network.masked_layers(small):
        layer.register_forward_hook(lambda *_, name=name: order.append(name))
    small(small.noise(2, generator()))
    assert order == [name for name, _ in network.masked_layers(small)]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 2)])
def test_images_have_the_asked_shape_and_range(size, channels):
    model = ResnetGenerator(size, channels, latent=16, width=4)
    network.sample_masks(model, generator())
    images = model(model.noise(3, generator()))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert images.std() > 0.1
    assert model(model.example_input_array).shape == (2, channels, size, size)


def test_upsampling_and_convolution_are_one_operator():
    maps = torch.randn(2, 3, 5, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator(2), dtype=torch.float64)
    plain = F.conv2d(F.interpolate(maps, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    fused = upsampled_conv3x3(maps, weight, bias)
    torch.testing.assert_close(fused, plain)
    upstream = torch.randn(plain.shape, generator=generator(3), dtype=torch.float64)
    gradients = torch.autograd.grad(fused, (maps, weight), upstream)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, (maps, weight), upstream))


def test_a_generator_is_the_network_of_the_specification(small):
    """Rebuilt from plain operators on the frozen weights, all of them kept."""
    network.fix_masks(small, torch.ones(network.weights_vector(small).numel()))
    noise = small.noise(4, generator(2))
    weights = {name: layer.weight for name, layer in network.masked_layers(small)}

    def norm(maps):
        return F.batch_norm(maps, None, None, training=True)

    def double(maps):
        return F.interpolate(maps, scale_factor=2, mode="nearest")

    start = F.conv_transpose2d(noise, weights["first"])
    assert start.shape == (4, 16, 4, 4)
    main = F.conv2d(double(F.relu(norm(start))), weights["blocks.0.conv1"], padding=1)
    main = F.conv2d(F.relu(norm(main)), weights["blocks.0.conv2"], padding=1)
    block = main + double(F.conv2d(start, weights["blocks.0.bypass"]))
    expected = torch.tanh(F.conv2d(F.relu(norm(block)), weights["last"], padding=1))
    torch.testing.assert_close(small(noise), expected, rtol=1e-4, atol=1e-5)


def test_seeds_decide_weights_and_scores(small):
    def weights(seed: int) -> torch.Tensor:
        small.reset_weights(seed)
        return network.weights_vector(small)

    def scores(seed: int) -> torch.Tensor:
        small.reset_scores(generator(seed))
        return network.scores_vector(small)

    for draw in (weights, scores):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))


def test_building_reads_no_global_generator():
    before = torch.get_rng_state()
    first, second = ResnetGenerator(8, latent=16, width=8), ResnetGenerator(8, latent=16, width=8)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(network.scores_vector(first), network.scores_vector(second))
    assert torch.equal(network.weights_vector(first), network.weights_vector(second))


def test_noise_is_standard_normal_and_follows_its_generator(small):
    noise = small.noise(500, generator(3))
    assert noise.shape == (500, 16, 1, 1)
    assert noise.std().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(noise, small.noise(500, generator(3)))


def test_gradients_reach_the_scores_only(small):
    small(small.noise(8, generator())).square().mean().backward()
    for _, layer in network.masked_layers(small):
        assert layer.scores.grad.abs().sum() > 0
        assert layer.weight.grad is None


def test_bias_is_masked_like_a_weight():
    model = ResnetGenerator(8, latent=16, width=8, bias=True)
    network.sample_masks(model, generator())
    biases = [layer.bias for _, layer in network.masked_layers(model)]
    assert [bias.numel() for bias in biases] == [16, 8, 8, 8, 1]
    plain = ResnetGenerator(8, latent=16, width=8)
    assert network.scores_vector(model).numel() == network.scores_vector(plain).numel() + 41
    scores = network.flatten_scores(model)
    scores.backward(model(model.noise(8, generator())).mean())
    assert scores.grad[network.layer_slices(model)["last.bias"]].abs().item() > 0


def test_recalibration_averages_noise_batches_and_changes_nothing_else(small):
    norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.fill_(float("inf"))
    untouched = {
        name: value.clone()
        for name, value in small.state_dict().items()
        if "running" not in name and "num_batches" not in name
    }
    seen: list[torch.Tensor] = []
    handle = norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    small.recalibrate(generator(5), batches=4, batch_size=16)
    handle.remove()

    assert not small.training
    assert [maps.shape[0] for maps in seen] == [16] * 4
    torch.testing.assert_close(norms[0].running_mean, torch.stack(seen).mean((0, 1, 3, 4)), rtol=1e-4, atol=1e-5)
    variances = torch.stack([maps.var((0, 2, 3)) for maps in seen])
    torch.testing.assert_close(norms[0].running_var, variances.mean(0), rtol=1e-4, atol=1e-5)
    assert {norm.momentum for norm in norms} == {0.1}
    for name, value in untouched.items():
        assert torch.equal(small.state_dict()[name], value)
    assert small(small.noise(1, generator())).isfinite().all()


def test_recalibration_repeats_exactly(small):
    def calibrated() -> list[torch.Tensor]:
        network.threshold_masks(small)
        small.recalibrate(generator(5), batches=3, batch_size=8)
        return [value.clone() for name, value in small.state_dict().items() if "running" in name]

    assert all(torch.equal(*pair) for pair in zip(calibrated(), calibrated(), strict=True))


@pytest.mark.parametrize("size", [0, 4, 12, 33, -8])
def test_a_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(UsageError, match=f"--model.image_size {size}"):
        ResnetGenerator(image_size=size)


@pytest.mark.parametrize("option", ["channels", "latent", "width"])
def test_numbers_must_be_positive(option):
    with pytest.raises(UsageError, match=f"--model.{option} 0"):
        ResnetGenerator(**{option: 0})


def test_it_is_a_lightning_module(small):
    assert isinstance(small, lightning.LightningModule)
    assert all(isinstance(layer, MaskedLayer) for _, layer in network.masked_layers(small))


def test_signatures_are_read_without_torch():
    code = (
        "import sys, inspect, flgen.models\n"
        "for name in flgen.models.__all__:\n"
        "    inspect.signature(getattr(flgen.models, name).__init__)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
