"""ResNet-20: its published size, its shortcuts without weights, its statistics of the batch at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flgen.errors import UsageError
from flgen.models import ResNet20
from flgen.models.basic_block import BasicBlock, PaddedShortcut


def test_published_count():
    with torch.device("meta"):
        model = ResNet20()
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    assert list(model.buffers()) == []


def test_it_has_twenty_layers_and_two_shortcuts_that_change_the_shape():
    model = ResNet20()
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == 20
    assert sum(isinstance(layer, PaddedShortcut) for layer in model.modules()) == 2


@pytest.mark.parametrize(("size", "sides"), [(32, [32, 16, 8]), (8, [8, 4, 2]), (9, [9, 5, 3])])
def test_stages_double_channels_and_halve_maps(size, sides):
    model = ResNet20(size, classes=7, width=4)
    shapes: list[tuple[int, ...]] = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda _, __, maps: shapes.append(tuple(maps.shape)))
    assert model.features(torch.zeros(2, 3, size, size)).shape == (2, 16)
    assert shapes == [(2, channels, side, side) for channels, side in zip((4, 8, 16), sides, strict=True)]
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_a_shortcut_keeps_every_second_pixel_between_channels_of_zeros():
    maps = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    out = PaddedShortcut(2, 2)(maps)
    assert torch.equal(out[:, 1:3], maps[:, :, ::2, ::2])
    assert not out[:, 0].any()
    assert not out[:, 3].any()


def test_a_block_whose_convolutions_give_nothing_is_its_shortcut():
    block = BasicBlock(2, 4, 2, lambda channels: nn.BatchNorm2d(channels, track_running_stats=False), projects=False)
    nn.init.zeros_(block.norm2.weight)
    maps = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(maps), block.shortcut(maps).relu())
    assert sum(parameter.numel() for parameter in block.shortcut.parameters()) == 0


def test_tests_too_use_the_statistics_of_their_batch():
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = ResNet20(8, width=4)
    trained = model.train()(images)
    assert torch.equal(model.eval()(images), trained)
    assert not torch.allclose(model(images[:3]), trained[:3])


def test_a_batch_of_one_small_image_can_be_trained_on():
    assert ResNet20(8, width=4).train()(torch.randn(1, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_size": 7},
            "--model.image_size 7: ResNet20 normalises over maps of a quarter of the side and needs at least 8",
        ),
        ({"classes": 0}, "--model.classes 0: it must be at least 1"),
        ({"width": 5}, "--model.width 5: ResNet20 pads its channels on both sides; give an even number"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError) as refusal:
        ResNet20(**options)
    assert str(refusal.value) == message
