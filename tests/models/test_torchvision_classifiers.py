"""torchvision's ResNets and VGG-19: published sizes, initial weights by draw or from a file, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import nn

from flgen.errors import FlgenError, UsageError
from flgen.models import VGG19, TorchvisionResNet


@pytest.mark.parametrize(
    ("build", "parameters", "floats", "counters"),
    [
        (lambda: TorchvisionResNet(18), 11_181_642, 9_600, 20),
        (lambda: TorchvisionResNet(50), 23_528_522, 53_120, 53),
        (lambda: VGG19(), 139_611_210, 0, 0),
        (lambda: VGG19(classes=100), 139_979_940, 0, 0),
    ],
    ids=["resnet18", "resnet50", "vgg19", "vgg19 of 100 classes"],
)
def test_published_counts(build, parameters, floats, counters):
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point()) == floats
    assert sum(buffer.numel() for buffer in model.buffers() if not buffer.is_floating_point()) == counters
    assert model.init == "random"


def test_published_traffic_of_fedavg_with_vgg19():
    with torch.device("meta"):
        assert 2 * 10 * sum(parameter.numel() for parameter in VGG19().parameters()) == 2_792_224_200


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """torchvision's ResNet-18 of 1000 classes, drawn with seed 1."""
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None)


@pytest.fixture(scope="module")
def file(published: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(published.state_dict(), path)
    return path


def images(count: int = 2, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_random_weights_are_torchvisions_own_draw():
    torch.manual_seed(5)
    model = TorchvisionResNet(18, classes=4).eval()
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    assert torch.equal(model(images()), theirs(images()))


def test_vgg19_is_torchvisions_cut_before_its_last_layer():
    with torch.device("meta"):
        model, theirs = VGG19(classes=4), torchvision.models.vgg19(weights=None, num_classes=4)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05, generator=generator)
    head = {f"classifier.6.{name}": value for name, value in model.linear.state_dict().items()}
    theirs.load_state_dict(model.network.state_dict() | head, assign=True)
    model.eval()
    expected = theirs.eval()(images(1))
    assert model.features(images(1)).shape == (1, 4096)
    assert expected.std() > 0
    assert torch.equal(model(images(1)), expected)


def test_pretrained_weights_are_the_files_but_for_the_last_layer(file: Path, published: nn.Module):
    torch.manual_seed(9)
    model = TorchvisionResNet(18, classes=7, pretrained=str(file)).eval()
    assert model.init == str(file)
    trunk = nn.Sequential(*list(published.eval().children())[:-1], nn.Flatten())
    assert torch.equal(model.features(images()), trunk(images()))
    assert model(images()).shape == (2, 7)
    torch.manual_seed(9)
    drawn = torchvision.models.resnet18(weights=None, num_classes=7).fc
    assert torch.equal(model.linear.weight, drawn.weight)


def test_initial_weights_can_be_taken_again_in_place(file: Path):
    for options in ({}, {"pretrained": str(file)}):
        torch.manual_seed(2)
        model = TorchvisionResNet(18, classes=3, **options)
        first = {name: value.clone() for name, value in model.state_dict().items()}
        parameters = list(model.parameters())
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(7)
        model.train()(images(4))  # moves the statistics
        torch.manual_seed(2)
        model.reset_parameters()
        assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
        assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))


def test_a_grey_image_is_shown_as_three_equal_channels():
    torch.manual_seed(0)
    model = TorchvisionResNet(18, channels=1, classes=3).eval()
    grey = images(channels=1)
    assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))


def test_a_client_may_train_on_a_last_batch_of_one_image():
    model = TorchvisionResNet(18, classes=3).train()
    nn.functional.cross_entropy(model(images(1)), torch.tensor([2])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def damaged(folder: Path) -> str:
    (folder / "weights.pth").write_bytes(b"no weights")
    return "is not a readable file of weights"


def of_another_kind(folder: Path) -> str:
    torch.save([1, 2], folder / "weights.pth")
    return "holds no state dict"


def of_another_network(folder: Path) -> str:
    torch.save({"conv1.weight": torch.zeros(3)}, folder / "weights.pth")
    return "holds the weights of another network than torchvision's resnet18: correct --model.pretrained"


@pytest.mark.parametrize(
    "write", [lambda _: "there is no such file; give --model.pretrained", damaged, of_another_kind, of_another_network]
)
def test_a_file_that_cannot_be_used_is_one_clear_line(write: Any, tmp_path: Path):
    says = write(tmp_path)
    with pytest.raises(FlgenError) as caught:
        TorchvisionResNet(18, pretrained=str(tmp_path / "weights.pth"))
    message = str(caught.value)
    assert says in message
    assert str(tmp_path / "weights.pth") in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TorchvisionResNet(34), "--model.depth 34: give 18 or 50"),
        (lambda: TorchvisionResNet(channels=2), "--model.channels 2: torchvision's networks take images of 1 or 3"),
        (lambda: TorchvisionResNet(classes=0), "--model.classes 0: it must be at least 1"),
        (lambda: VGG19(31), "--model.image_size 31: VGG19 halves an image 5 times and needs at least 32"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(UsageError) as refusal:
        build()
    assert str(refusal.value).startswith(message)
