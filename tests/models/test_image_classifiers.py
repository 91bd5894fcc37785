"""ResNet-18 and VGG-11: their published sizes (DisPFL, section 8.3), and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from flgen.errors import UsageError
from flgen.models import VGG11, ResNet18
from flgen.models.basic_block import BasicBlock

NETWORKS = pytest.mark.parametrize("network", [ResNet18, VGG11])
SMALLEST = {ResNet18: 8, VGG11: 32}


@pytest.fixture
def silent(monkeypatch) -> None:
    monkeypatch.setattr(lightning.LightningModule, "log", lambda *_, **__: None)


def small(network: Callable[..., Any], **options: Any) -> Any:
    return network(**{"image_size": SMALLEST[network], "width": 4, "groups": 2, **options})


def two_groups(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


@pytest.mark.parametrize(
    ("network", "classes", "parameters"),
    [
        (ResNet18, 10, 11_173_962),
        (ResNet18, 100, 11_220_132),
        (ResNet18, 200, 11_271_432),
        (VGG11, 10, 9_231_114),
        (VGG11, 100, 9_277_284),
    ],
)
def test_published_counts(network, classes, parameters):
    with torch.device("meta"):
        model = network(classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert list(model.buffers()) == []


@pytest.mark.parametrize(("network", "tensors", "matrices"), [(ResNet18, 62, 21), (VGG11, 34, 9)])
def test_published_tensors(network, tensors, matrices):
    with torch.device("meta"):
        parameters = list(network().parameters())
    assert len(parameters) == tensors
    assert sum(parameter.ndim >= 2 for parameter in parameters) == matrices


@pytest.mark.parametrize(("size", "sides"), [(8, [8, 4, 2, 1]), (9, [9, 5, 3, 2]), (32, [32, 16, 8, 4])])
def test_the_stages_of_resnet_double_channels_and_halve_maps(size, sides):
    model = small(ResNet18, image_size=size)
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, maps: shapes.append(tuple(maps.shape)))
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert shapes == [(2, channels, side, side) for channels, side in zip((4, 8, 16, 32), sides, strict=True)]


@NETWORKS
@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 1, 7), (64, 3, 10), (45, 3, 2)])
def test_logits_have_one_column_per_class(network, size, channels, classes):
    model = small(network, image_size=size, channels=channels, classes=classes)
    assert model(torch.zeros(3, channels, size, size)).shape == (3, classes)
    assert isinstance(model, lightning.LightningModule)


@NETWORKS
def test_logits_are_the_head_of_the_features(network):
    model = small(network)
    images = torch.randn(3, 3, SMALLEST[network], SMALLEST[network], generator=torch.Generator().manual_seed(0))
    z = model.features(images)
    assert z.shape == (3, 32)
    assert torch.equal(model.head(z), model(images))


@NETWORKS
def test_every_normalisation_is_over_groups(network):
    norms = [layer for layer in small(network).modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == {ResNet18: 20, VGG11: 8}[network]
    assert {norm.num_groups for norm in norms} == {2}


def test_a_block_adds_its_input_or_its_projection():
    same, changed = BasicBlock(4, 4, 1, two_groups), BasicBlock(4, 8, 2, two_groups)
    maps = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for block in (same, changed):
        nn.init.zeros_(block.norm2.weight)  # nothing comes out of the convolutions
    assert torch.equal(same(maps), maps.relu())
    convolution, norm = changed.shortcut
    assert convolution.kernel_size == (1, 1)
    assert torch.equal(changed(maps), norm(convolution(maps)).relu())


def test_initial_weights_of_vgg():
    torch.manual_seed(0)
    model = VGG11()
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions[3:]:
        assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.01)
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(not layer.bias.any() for layer in (*convolutions, model.linear))


def test_vgg_can_be_drawn_anew():
    torch.manual_seed(0)
    model = small(VGG11)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    for name, value in model.state_dict().items():
        drawn = value.ndim > 1
        assert torch.equal(value, first[name]) == (not drawn), name
        assert not (value == 7).any(), name


@NETWORKS
def test_the_seed_of_pytorch_draws_the_initial_weights(network):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(torch.cat([parameter.detach().flatten() for parameter in small(network).parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@NETWORKS
def test_its_own_steps_and_optimiser_learn(network, silent):
    torch.manual_seed(0)
    size = {ResNet18: 16, VGG11: 32}[network]
    model = network(size, 1, 2, width=8, groups=4, learning_rate=0.01, momentum=0.9)
    labels = torch.arange(32) % 2
    images = 0.3 * torch.randn(32, 1, size, size)
    images[labels == 1, :, : size // 2] += 1
    optimiser = model.configure_optimizers()
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.training_step((images, labels), 0)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@NETWORKS
def test_the_published_optimiser_is_the_default(network):
    (group,) = small(network).configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 5e-4, 0.0)
    assert len(group["params"]) == {ResNet18: 62, VGG11: 34}[network]


@NETWORKS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "--model.channels 0: it must be at least 1"),
        ({"classes": 0}, "--model.classes 0: it must be at least 1"),
        ({"width": 0}, "--model.width 0: it must be at least 1"),
        ({"groups": 0}, "--model.groups 0: it must be at least 1"),
        ({"width": 48}, "--model.groups 32 does not divide --model.width 48: give 16, which does"),
        ({"width": 8}, "--model.groups 32 does not divide --model.width 8: give 8, which does"),
        ({"momentum": -0.1}, "--model.momentum -0.1: it must be a finite number of at least 0"),
    ],
)
def test_impossible_sizes_are_refused(network, options, message):
    with pytest.raises(UsageError) as refusal:
        network(**options)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ResNet18, "--model.image_size 7: ResNet18 halves an image 3 times and needs at least 8"),
        (VGG11, "--model.image_size 31: VGG11 halves an image 5 times and needs at least 32"),
    ],
)
def test_images_that_are_too_small_are_refused(network, message):
    small(network)
    with pytest.raises(UsageError) as refusal:
        small(network, image_size=SMALLEST[network] - 1)
    assert str(refusal.value) == message
