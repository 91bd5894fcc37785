"""The networks of mixed federations: published sizes, features of one width, heads, draws, what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import get_args

import pytest
import torch
import torchvision.models
from torch import nn

from flgen.errors import UsageError
from flgen.models import PooledClassifier
from flgen.models.backbones import build
from flgen.models.batch_norm import BatchNorm
from flgen.models.pooled_classifier import Architecture

PUBLISHED = {  # parameters with a head of 100 classes for 32 pixels, and width of the network's own features
    "cnn4": (924_708, 512),
    "googlenet": (5_651_204, 1024),
    "mobilenet_v2": (2_275_172, 1280),
    "resnet4": (134_820, 64),
    "resnet6": (364_964, 128),
    "resnet8": (1_284_004, 256),
    "resnet10": (4_957_092, 512),
    "resnet18": (11_227_812, 512),
    "resnet34": (21_335_972, 512),
    "resnet50": (23_559_332, 2048),
    "resnet101": (42_551_460, 2048),
    "resnet152": (58_195_108, 2048),
    "vit_b_16": (85_702_500, 768),
    "vit_b_32": (87_469_668, 768),
}


def images(count: int = 2, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def drawn(seed: int, *given: object, **options: object) -> PooledClassifier:
    torch.manual_seed(seed)
    return PooledClassifier(*given, **options)  # type: ignore[arg-type]


def test_every_architecture_has_a_published_size():
    assert set(PUBLISHED) == set(get_args(Architecture))


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_published_counts_and_widths(architecture):
    parameters, own_width = PUBLISHED[architecture]
    with torch.device("meta"):
        model = PooledClassifier(architecture, classes=100)
        own = model.network(torch.zeros(2, 3, 32, 32))
        z = model.features(torch.zeros(2, 3, 32, 32))
        logits = model.head(z)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert own.shape == (2, own_width)
    assert z.shape == (2, 512)
    assert logits.shape == (2, 100)


def test_published_count_of_the_cnn_for_64_pixels():
    with torch.device("meta"):
        model = PooledClassifier("cnn4", image_size=64, classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_643_300


@pytest.mark.parametrize(("size", "pixels"), [(16, 64), (28, 1024), (32, 1600), (64, 10_816)])
def test_the_cnn_is_built_for_its_images(size, pixels):
    model = PooledClassifier("cnn4", image_size=size)
    assert model.network[7].in_features == pixels
    assert model(images(size=size)).shape == (2, 10)


@pytest.mark.parametrize(("architecture", "stages"), [("resnet4", 1), ("resnet6", 2), ("resnet8", 3), ("resnet10", 4)])
def test_shallow_resnets_have_one_block_in_each_of_their_stages(architecture, stages):
    with torch.device("meta"):
        network = build(architecture, 32)
    blocks = [sum(isinstance(part, nn.Conv2d) for part in layer.modules()) for layer in network.children()]
    stem, first, rest = 1, 2, 3  # convolutions: the shortcut is one where the shape changes
    assert [count for count in blocks if count] == [stem, first, *[rest] * (stages - 1)]


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "mobilenet_v2", "googlenet"])
def test_weights_are_torchvisions_own_draw(architecture):
    options = {"aux_logits": False, "init_weights": True} if architecture == "googlenet" else {}
    torch.manual_seed(5)
    theirs = getattr(torchvision.models, architecture)(weights=None, num_classes=1, **options).eval()
    torch.manual_seed(5)
    ours = build(architecture, 32).eval()
    seen: list[torch.Tensor] = []
    last = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    theirs(images())
    assert seen[0].std() > 0
    assert torch.equal(ours(images()), seen[0])


def test_features_are_the_networks_own_pooled_to_the_width():
    model = drawn(0, "resnet4", feature_width=32).eval()
    own = model.network(images())  # (2, 64)
    torch.testing.assert_close(model.features(images()), own.view(2, 32, 2).mean(dim=2))
    assert torch.equal(model(images()), model.head(model.features(images())))


@pytest.mark.parametrize("architecture", ["googlenet", "mobilenet_v2"])
def test_dropout_comes_last_before_the_pooling(architecture):
    with torch.device("meta"):
        network = PooledClassifier(architecture).network
    dropouts = [layer for layer in network.modules() if isinstance(layer, nn.Dropout)]
    assert [layer.p for layer in dropouts] == [0.2]
    seen: list[torch.Tensor] = []
    dropouts[0].register_forward_hook(lambda _, __, output: seen.append(output))
    assert network(torch.zeros(2, 3, 32, 32, device="meta")) is seen[0]


def test_no_auxiliary_heads():
    with torch.device("meta"):
        names = [name for name, _ in PooledClassifier("googlenet").named_parameters()]
    assert not [name for name in names if "aux" in name or ".fc." in name]


@pytest.mark.parametrize("architecture", ["googlenet", "mobilenet_v2", "resnet4", "resnet18", "resnet50"])
def test_every_normalisation_of_maps_is_one_that_takes_a_single_value(architecture):
    with torch.device("meta"):
        model = PooledClassifier(architecture)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, BatchNorm) for norm in norms)


@pytest.mark.parametrize("architecture", ["googlenet", "mobilenet_v2", "resnet18"])
def test_a_client_may_train_on_a_last_batch_of_one_image(architecture):
    model = drawn(0, architecture).train()
    nn.functional.cross_entropy(model(images(1)), torch.tensor([2])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("head_width", "sizes"), [(None, [(512, 10)]), (512, [(512, 512), (512, 10)])])
def test_the_heads_layers(head_width, sizes):
    model = PooledClassifier("resnet4", head_width=head_width)
    layers = [layer for layer in model.linear.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == sizes
    head = {name for name, _ in model.named_parameters() if name.startswith("linear.")}
    assert len(head) == 2 * len(sizes)


@pytest.mark.parametrize(("activation", "apply"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_an_activation_stands_between_the_heads_layers_and_none_behind_them(activation, apply):
    model = drawn(0, "resnet4", head_width=128, head_activation=activation)
    first, _, last = model.linear.children()
    z = torch.randn(20, 512, generator=torch.Generator().manual_seed(1))
    logits = model.head(z)
    assert torch.equal(logits, last(apply(first(z))))
    assert logits.min() < 0 < logits.max()


def test_the_reference_vit_head_is_two_layers_of_768():
    with torch.device("meta"):
        plain = PooledClassifier("vit_b_16", classes=100)
        model = PooledClassifier("vit_b_16", classes=100, head_width=768, head_activation="tanh")
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (plain, model)]
    assert sizes[1] - sizes[0] == (512 * 768 + 768) + (768 * 100 + 100) - (512 * 100 + 100)


@pytest.mark.parametrize("architecture", ["cnn4", "resnet4", "mobilenet_v2"])
def test_initial_weights_can_be_drawn_again_in_place(architecture):
    options = {"feature_width": 16, "head_width": 8}
    model = drawn(2, architecture, **options)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = [*model.parameters(), *model.buffers()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.train()(images(4))  # moves the statistics
    torch.manual_seed(2)
    model.reset_parameters()
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert all(one is other for one, other in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    torch.manual_seed(3)
    model.reset_parameters()
    weights = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    assert not [name for name, parameter in weights if torch.equal(parameter, first[name])]


@pytest.mark.parametrize("architecture", ["cnn4", "googlenet", "mobilenet_v2", "resnet4"])
def test_a_model_can_be_copied_and_sent(architecture):
    model = drawn(0, architecture).eval()
    expected = model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), expected)


def test_a_grey_image_is_shown_as_three_equal_channels():
    model = drawn(0, "cnn4", channels=1).eval()
    grey = images(channels=1)
    assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("architecture", ["resnet4", "resnet6", "resnet8", "resnet10", "mobilenet_v2"])
def test_small_grey_digits_are_enough_for_some(architecture):
    model = PooledClassifier(architecture, 8, 1, feature_width=64).train()
    nn.functional.cross_entropy(model(images(3, 1, 8)), torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("architecture", "smallest"), [("cnn4", 16), ("googlenet", 15)])
def test_the_smallest_image_is_the_smallest_that_leaves_a_pixel(architecture, smallest):
    with torch.device("meta"):
        assert PooledClassifier(architecture, smallest)(torch.zeros(2, 3, smallest, smallest)).shape == (2, 10)
        network = build(architecture, smallest).eval()
        with pytest.raises(RuntimeError, match="too small"):
            network(torch.zeros(2, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("cnn4", {"image_size": 8}, "--model.image_size 8: cnn4 needs images of at least 16x16 pixels"),
        ("googlenet", {"image_size": 14}, "--model.image_size 14: googlenet needs images of at least 15x15 pixels"),
        ("vit_b_16", {"image_size": 28}, "--model.image_size 28: vit_b_16 cuts images into patches of 16x16 pixels"),
        ("vit_b_32", {"image_size": 48}, "use images of a multiple of 32, or a model without it"),
        ("resnet4", {"image_size": 0}, "--model.image_size 0: it must be at least 1"),
        ("resnet4", {"channels": 2}, "--model.channels 2: resnet4 takes images of 1 or 3 channels"),
        ("resnet4", {"classes": 0}, "--model.classes 0: it must be at least 1"),
        ("resnet4", {"feature_width": 0}, "--model.feature_width 0: it must be at least 1"),
        ("resnet4", {"head_width": 0}, "--model.head_width 0: it must be at least 1"),
        ("resnet4", {"learning_rate": -1}, "--model.learning_rate -1: it must be a finite number of at least 0"),
    ],
)
def test_impossible_options_are_refused(architecture, options, message):
    with pytest.raises(UsageError) as refusal:
        PooledClassifier(architecture, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_sgd_as_published():
    (group,) = PooledClassifier("resnet4").configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.01, 0, 0)
