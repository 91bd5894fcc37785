"""ConvNet: its published sizes, what its normalisation does, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flgen.errors import UsageError
from flgen.models import ConvNet


@pytest.mark.parametrize(
    ("image_size", "classes", "parameters"), [(32, 10, 320_010), (32, 100, 504_420), (224, 102, 10_535_526)]
)
def test_published_counts(image_size, classes, parameters):
    with torch.device("meta"):
        model = ConvNet(image_size, classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert list(model.buffers()) == []


@pytest.mark.parametrize(("cohort", "rounds", "scalars"), [(10, 1, 6_400_200), (10, 500, 3_200_100_000)])
def test_published_traffic_of_fedavg(cohort, rounds, scalars):
    with torch.device("meta"):
        d = sum(parameter.numel() for parameter in ConvNet().parameters())
    assert 2 * cohort * d * rounds == scalars


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 10), (8, 1, 2), (28, 1, 7)])
def test_logits_have_one_column_per_class(size, channels, classes):
    model = ConvNet(size, channels, classes, width=4)
    z = model.features(torch.zeros(3, channels, size, size))
    assert z.shape == (3, 4 * (size // 8) ** 2)
    assert model.head(z).shape == (3, classes)


def test_logits_are_the_head_of_the_features():
    model = ConvNet(8, width=4)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), model.head(model.features(images)))


def test_every_channel_of_every_image_is_normalised_by_itself():
    model = ConvNet(16, width=4)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(4, 4)] * 3
    seen: list[torch.Tensor] = []
    norms[0].register_forward_hook(lambda _, __, maps: seen.append(maps.detach()))
    model(torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), torch.zeros(5, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[0].var(dim=(2, 3), unbiased=False), torch.ones(5, 4), atol=1e-2, rtol=0)


def test_the_smallest_image_trains_alone():
    model = ConvNet(8, width=4).train()
    nn.functional.cross_entropy(model(torch.randn(1, 3, 8, 8)), torch.tensor([1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "--model.image_size 7: ConvNet halves an image 3 times and needs at least 8"),
        ({"channels": 0}, "--model.channels 0: it must be at least 1"),
        ({"width": 0}, "--model.width 0: it must be at least 1"),
        ({"learning_rate": -1}, "--model.learning_rate -1: it must be a finite number of at least 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError) as refusal:
        ConvNet(**options)
    assert str(refusal.value) == message
