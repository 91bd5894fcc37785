"""The published groups: which networks in which order, features of one width, heads, who has which."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import flgen.models
from flgen.errors import UsageError
from flgen.models.model_groups import PublishedGroup

EIGHT = ["cnn4", "googlenet", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
GROUPS = {
    "HtFE1": ["resnet4"],
    "HtFE2": ["cnn4", "resnet18"],
    "HtFE3": ["resnet10", "resnet18", "resnet34"],
    "HtFE4": ["cnn4", "googlenet", "mobilenet_v2", "resnet18"],
    "HtFE8": EIGHT,
    "HtFE9": [
        "resnet4",
        "resnet6",
        "resnet8",
        "resnet10",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
    ],
    "HtFE8HtC4": EIGHT,
    "HtM10": [*EIGHT, "vit_b_16", "vit_b_32"],
}


def group(name: str, **options: object) -> PublishedGroup:
    with torch.device("meta"):
        made: PublishedGroup = getattr(flgen.models, name)(**options)
    return made


def test_every_group_is_in_the_table():
    assert {group.__name__ for group in PublishedGroup.__subclasses__()} == set(GROUPS)


@functools.cache
def published(name: str) -> PublishedGroup:
    """A group for 100 classes; tests only look at it."""
    return group(name, classes=100)


@pytest.mark.parametrize("name", GROUPS)
def test_the_networks_in_published_order_with_features_of_one_width(name):
    models = published(name).models
    assert [model.architecture for model in models] == GROUPS[name]
    for model in models:
        z = model.pooling(torch.zeros(2, 2048, device="meta"))  # of any width
        assert z.shape == (2, 512)
        assert model.head(z).shape == (2, 100)


def head_sizes(model: nn.Module) -> list[int]:
    layers = [layer for layer in model.linear.modules() if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_four_heads_go_round_the_eight_networks():
    models = published("HtFE8HtC4").models
    heads = [[512, 100], [512, 512, 100], [512, 256, 100], [512, 128, 100]]
    assert [head_sizes(model) for model in models] == heads * 2
    assert not [layer for model in models for layer in model.linear.modules() if isinstance(layer, nn.Tanh)]


def test_only_vits_have_a_head_with_tanh():
    models = published("HtM10").models
    assert [head_sizes(model) for model in models] == [[512, 100]] * 8 + [[512, 768, 100]] * 2
    tanh = [any(isinstance(layer, nn.Tanh) for layer in model.linear.modules()) for model in models]
    assert tanh == [False] * 8 + [True] * 2


def test_the_four_heads_follow_the_clients_when_networks_do():
    made = published("HtFE8HtC4")
    sizes = [head_sizes(made.models[made.architecture_of(client, 20)]) for client in range(20)]
    assert [size[1:-1] for size in sizes] == [[], [512], [256], [128]] * 5


@pytest.mark.parametrize("width", [64, 256, 1024])
def test_the_width_is_an_option(width):
    models = group("HtFE3", feature_width=width).models
    assert {model.features(torch.zeros(2, 3, 32, 32, device="meta")).shape[1] for model in models} == {width}


def test_options_reach_every_network():
    made = group("HtFE2", image_size=28, channels=1, classes=4, learning_rate=0.5, weight_decay=0.1, momentum=0.9)
    for model in (made, *made.models):
        assert (model.image_size, model.channels, model.classes) == (28, 1, 4)
        assert (model.learning_rate, model.weight_decay, model.momentum) == (0.5, 0.1, 0.9)


def test_who_has_which():
    assert [published("HtFE3").architecture_of(client, 6) for client in range(6)] == [0, 1, 2, 0, 1, 2]
    blocks = group("HtFE3", assignment="blocks")
    assert [blocks.architecture_of(client, 6) for client in range(6)] == [0, 0, 1, 1, 2, 2]
    listed = group("HtFE3", assignment=[2, 0])
    assert [listed.architecture_of(client, 2) for client in range(2)] == [2, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("HtFE2", {"image_size": 8}, "--model.image_size 8: cnn4 needs images of at least 16x16 pixels"),
        ("HtM10", {"image_size": 28}, "--model.image_size 28: vit_b_16 cuts images into patches of 16x16 pixels"),
        ("HtFE1", {"feature_width": 0}, "--model.feature_width 0: it must be at least 1"),
        ("HtFE1", {"assignment": [0, 1]}, "--model.assignment names network 1"),
        ("HtFE1", {"momentum": -1}, "--model.momentum -1: it must be a finite number of at least 0"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(UsageError) as refusal:
        group(name, **options)
    assert message in str(refusal.value)


def test_the_common_class_names_its_groups():
    with pytest.raises(UsageError, match="--model PublishedGroup has no networks of its own: name one of its groups"):
        PublishedGroup()


def test_a_group_can_be_copied_and_sent():
    torch.manual_seed(0)
    made = flgen.models.HtFE1(8, 1).eval()
    digits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = made.models[0](digits)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other.models[0](digits), expected)
        assert other.assignment == "cyclic"
