"""Small networks with features of any width: their sizes, what stays as it was, what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from flgen.errors import UsageError
from flgen.models import PooledClassifier, SmallCNN, SmallMLP, SmallResNet


def images(count: int = 3, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_size_of_the_perceptron_is_that_of_three_linear_layers():
    assert parameters(SmallMLP(8, hidden=32, classes=10)) == (64 * 32 + 32) + (32 * 32 + 32) + (32 * 10 + 10)


def test_the_size_of_the_residual_network():
    # 3x3 stem; a block without and one with a convolution in its shortcut; BatchNorm has two numbers per channel.
    w = 4
    stem, first = 9 * w + 2 * w, 2 * (9 * w * w + 2 * w)
    second = (9 * w * 2 * w + 4 * w) + (9 * 4 * w * w + 4 * w) + (2 * w * w + 4 * w)
    assert parameters(SmallResNet(8, width=w, stages=2, classes=10)) == stem + first + second + (2 * w * 10 + 10)


@pytest.mark.parametrize(
    ("build", "own_width"),
    [
        (lambda **options: SmallCNN(8, width=4, **options), 16),
        (lambda **options: SmallMLP(8, hidden=24, **options), 24),
        (lambda **options: SmallResNet(8, width=4, stages=3, **options), 16),
    ],
    ids=["SmallCNN", "SmallMLP", "SmallResNet"],
)
def test_features_have_the_width_that_is_asked_for(build: Any, own_width: int):
    torch.manual_seed(0)
    own = build(classes=5).eval()
    torch.manual_seed(0)
    wide = build(classes=5, feature_width=2 * own_width).eval()
    assert own.features(images()).shape == (3, own_width)
    assert torch.equal(wide.features(images()), own.features(images()).repeat_interleave(2, dim=1))
    assert wide.head(wide.features(images())).shape == (3, 5)
    assert torch.equal(wide(images()), wide.head(wide.features(images())))


def test_the_small_cnn_without_a_width_has_the_weights_it_always_had():
    torch.manual_seed(0)
    names = list(SmallCNN(8, width=4).state_dict())
    assert names == [f"network.{layer}.{kind}" for layer in (0, 3, 7, 9) for kind in ("weight", "bias")]


@pytest.mark.parametrize("build", [SmallMLP, SmallResNet])
def test_the_smallest_image_trains_alone(build: Any):
    model = build(2, 3, feature_width=6).train()
    nn.functional.cross_entropy(model(images(1, 3, 2)), torch.tensor([1])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_every_layer_with_weights_can_be_drawn_again():
    for model in (SmallCNN(8, width=4, feature_width=8), SmallMLP(8), SmallResNet(8, width=4)):
        torch.manual_seed(1)
        before = copy.deepcopy(model.state_dict())
        for layer in model.modules():
            if next(layer.parameters(recurse=False), None) is not None:
                layer.reset_parameters()
        weights = [name for name, value in model.named_parameters() if value.ndim > 1]
        assert weights
        assert not [name for name in weights if torch.equal(model.state_dict()[name], before[name])]


def test_four_networks_for_digits_with_features_of_one_width():
    four = [
        SmallCNN(8, width=8, feature_width=64),
        SmallMLP(8, feature_width=64),
        SmallResNet(8, feature_width=64),
        PooledClassifier("resnet4", 8, 1, feature_width=64),
    ]
    assert len({parameters(model) for model in four}) == 4
    for model in four:
        assert model.features(images()).shape == (3, 64)
        assert model(images()).shape == (3, 10)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (SmallCNN, {"feature_width": 0}, "--model.feature_width 0: it must be at least 1"),
        (SmallMLP, {"feature_width": 0}, "--model.feature_width 0: it must be at least 1"),
        (SmallMLP, {"hidden": 0}, "--model.hidden 0: it must be at least 1"),
        (SmallMLP, {"image_size": 0}, "--model.image_size 0: it must be at least 1"),
        (SmallResNet, {"stages": 0}, "--model.stages 0: it must be at least 1"),
        (SmallResNet, {"width": 0}, "--model.width 0: it must be at least 1"),
        (SmallResNet, {"feature_width": 0}, "--model.feature_width 0: it must be at least 1"),
        (
            SmallResNet,
            {"image_size": 3, "stages": 3},
            "--model.image_size 3: SmallResNet halves an image twice and needs at least 4",
        ),
        (SmallResNet, {"learning_rate": -1}, "--model.learning_rate -1: it must be a finite number of at least 0"),
    ],
)
def test_impossible_options_are_refused(build: Any, options: dict[str, Any], message: str):
    with pytest.raises(UsageError) as refusal:
        build(**options)
    assert str(refusal.value) == message
