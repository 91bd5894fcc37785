"""Both Inception networks, with weights drawn here and read from files as the published ones would be."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception_v3

from flgen.errors import FlgenError, UsageError
from flgen.metrics.extractors import load_extractor

NAMES = ("inception", "inception_torchvision")


def draw_weights(network: nn.Module, seed: int) -> nn.Module:
    """He-normal convolutions, so that features do not collapse as they do with the default initial weights."""
    draws = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=draws)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def torch_fidelity_network(tmp_path_factory):
    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    empty = tmp_path_factory.mktemp("inception") / "empty.pth"
    torch.save({}, empty)
    with torch.random.fork_rng(devices=[]):
        return draw_weights(Untrained("inception", ["2048"], feature_extractor_weights_path=str(empty)), 0)


@pytest.fixture(scope="module")
def torchvision_network():
    with torch.random.fork_rng(devices=[]):
        return draw_weights(inception_v3(weights=None, aux_logits=True, init_weights=False), 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory, torch_fidelity_network, torchvision_network) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: str(folder / f"{name}.pth") for name in NAMES}
    torch.save(nn.Module.state_dict(torch_fidelity_network), paths["inception"])
    torch.save(torchvision_network.state_dict(), paths["inception_torchvision"])
    return paths


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """No network and an empty download folder."""

    def refuse(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_inception_is_the_network_of_torch_fidelity(files, images, torch_fidelity_network):
    state = torch.get_rng_state()
    extractor = load_extractor("inception", weights=files["inception"])
    assert torch.equal(torch.get_rng_state(), state)
    features = extractor(images)
    assert features.shape == (2, 2048)
    assert float(features.std()) > 1e-3
    assert torch.equal(features, torch_fidelity_network(images)[0])


def test_torchvision_inception_is_the_pool_of_the_imagenet_network(files, images, torchvision_network):
    extractor = load_extractor("inception_torchvision", weights=files["inception_torchvision"])
    pooled: list[torch.Tensor] = []
    hook = torchvision_network.avgpool.register_forward_hook(lambda module, given, result: pooled.append(result))
    pixels = nn.functional.interpolate(images.float(), size=299, mode="bilinear", align_corners=False) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    torchvision_network((pixels - mean) / std)
    hook.remove()
    features = extractor(images)
    assert features.shape == (2, 2048)
    assert float(features.std()) > 1e-3
    torch.testing.assert_close(features, pooled[0].flatten(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_replicated_and_other_channel_counts_refused(name, files, images):
    extractor = load_extractor(name, weights=files[name])
    grey = images[:1, :1]
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UsageError, match="1 or 3 channels and these have 2"):
        extractor(images[:1, :2])


@pytest.mark.parametrize("name", NAMES)
def test_offline_without_weights_is_one_line_that_says_what_to_do(name, offline, capfd):
    with pytest.raises(FlgenError) as caught:
        load_extractor(name)
    message = str(caught.value)
    assert "\n" not in message
    assert f"'{name}' needs its weights" in message
    assert str(offline) in message
    assert "https://" in message
    assert "no route to host" in message
    assert f"--evaluation.weights.{name} PATH" in message
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_download_is_named(name, offline):
    with pytest.raises(FlgenError) as caught:
        load_extractor(name)
    path = next(word.rstrip(",") for word in str(caught.value).split() if word.startswith(str(offline)))
    Path(path).write_bytes(b"<html>blocked</html>")
    with pytest.raises(FlgenError, match=r"not a readable file of weights.*delete it to fetch it again"):
        load_extractor(name)


def test_a_missing_file_of_weights_is_named(tmp_path):
    with pytest.raises(FlgenError, match=rf"no file {tmp_path}/absent\.pth.*--evaluation\.weights"):
        load_extractor("inception", weights=str(tmp_path / "absent.pth"))


def test_the_weights_of_another_network_are_refused_in_one_line(files):
    with pytest.raises(FlgenError, match="another network than the extractor 'inception'") as caught:
        load_extractor("inception", weights=files["inception_torchvision"])
    assert "\n" not in str(caught.value)
    with pytest.raises(FlgenError, match="another network than the extractor 'inception_torchvision'"):
        load_extractor("inception_torchvision", weights=files["inception"])


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code from a file of weights was run",))


def test_nothing_but_tensors_is_unpickled(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"weight": Payload()}, path)
    for name in NAMES:
        with pytest.raises(FlgenError, match="not a readable file of weights") as caught:
            load_extractor(name, weights=str(path))
        assert "\n" not in str(caught.value)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(FlgenError, match="holds no state dict"):
        load_extractor("inception", weights=str(path))
