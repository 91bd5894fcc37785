"""A small classifier's ReLU outputs as features of images in [-1, 1]."""

from __future__ import annotations

import pytest
import torch
from client_images import fakes, generator, pixels
from torch.nn import functional as F

from flgen.metrics.trained import TrainedExtractor
from flgen.models.classifier_features import ClassifierFeatures


@pytest.fixture
def extractor() -> TrainedExtractor:
    """A classifier of two classes of 8x8 images, with statistics that differ from those of a batch."""
    network = TrainedExtractor((1, 8, 8), 2, generator(1))
    network.mean.fill_(0.3)
    network.std.fill_(0.2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=generator(2))
            module.running_var.uniform_(0.5, 2, generator=generator(3))
    return network.requires_grad_(False).eval()


def test_features_are_the_outputs_of_every_relu(extractor: TrainedExtractor) -> None:
    features = ClassifierFeatures(extractor, "all")(fakes(3, size=8))
    conv, norm = extractor.body[0], extractor.body[1]
    shown = ((fakes(3, size=8) + 1) / 2 - 0.3) / 0.2
    torch.testing.assert_close(features[0], F.relu(norm(conv(shown))), rtol=1e-4, atol=1e-5)
    assert len(features) == sum(isinstance(module, torch.nn.ReLU) for module in extractor.body)
    assert all((feature >= 0).all() and (feature > 0).any() for feature in features)


def test_the_last_is_what_the_extractor_measures_images_by(extractor: TrainedExtractor) -> None:
    (last,) = ClassifierFeatures(extractor, "last")(fakes(3, size=8, seed=0))
    torch.testing.assert_close(last / extractor.scale, extractor(pixels(3, size=8, seed=0)), rtol=1e-4, atol=1e-5)


def test_an_image_does_not_change_the_features_of_another(extractor: TrainedExtractor) -> None:
    network, images = ClassifierFeatures(extractor, "all"), fakes(3, size=8)
    beside = images.clone()
    beside[1:] = fakes(2, size=8, seed=4)
    for one, other in zip(network(images), network(beside), strict=True):
        assert torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])


def test_gradients_flow_through_images_of_any_size_and_not_into_the_network(extractor: TrainedExtractor) -> None:
    images = fakes(2, size=16).requires_grad_()
    sum(feature.sum() for feature in ClassifierFeatures(extractor, "all")(images)).backward()
    assert images.grad is not None
    assert images.grad.flatten(1).norm(dim=1).min() > 0
    assert all(parameter.grad is None for parameter in extractor.parameters())


def test_its_weights_are_all_that_decides(extractor: TrainedExtractor) -> None:
    weights = ClassifierFeatures(extractor, "all").weights
    assert {tensor.data_ptr() for tensor in weights} >= {tensor.data_ptr() for tensor in extractor.body.buffers()}
    assert {tensor.data_ptr() for tensor in weights} >= {extractor.mean.data_ptr(), extractor.std.data_ptr()}
