"""The VGG19-BN feature network against torchvision's, and where its weights come from."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from flgen.errors import FlgenError
from flgen.models import vgg

RELUS = [2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights with normalisations that do something."""
    generator = torch.Generator().manual_seed(1)
    values = vgg.load_state("random")
    for name, value in values.items():
        if value.dim() == 1:
            value.add_(torch.rand(value.shape, generator=generator) * (0.5 if "running_var" in name else 0.2))
    return values


@pytest.fixture(scope="module")
def torchvision_features(state) -> nn.Sequential:
    with torch.device("meta"):  # builds no classifier and draws no number
        features = torchvision.models.vgg19_bn(weights=None).features
    counters = {f"{i}.num_batches_tracked": torch.tensor(0) for i, m in enumerate(features) if hasattr(m, "momentum")}
    bare = {name.removeprefix("features."): value.clone() for name, value in state.items()}
    features.load_state_dict(bare | counters, assign=True)
    return features.requires_grad_(False)


def images(count: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("size", "expected"), [(32, 303_104), (64, 1_212_416)])
def test_number_of_features(size, expected):
    assert vgg.feature_count(size) == expected


def test_features_at_32_pixels_are_the_published_maps(state):
    with torch.no_grad():
        features = vgg.VggFeatures(state, "eval")(images(1, 32))
    assert [tuple(maps.shape[1:]) for maps in features] == (
        [(64, 32, 32)] * 2 + [(128, 16, 16)] * 2 + [(256, 8, 8)] * 4 + [(512, 4, 4)] * 4 + [(512, 2, 2)] * 4
    )
    assert sum(maps.numel() for maps in features) == 303_104


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_features_are_the_outputs_of_torchvisions_relus(state, torchvision_features, mode):
    torchvision_features.train(mode == "train")
    expected, maps = [], images()
    for index, module in enumerate(torchvision_features[:52]):  # beyond the last ReLU a map of 1x1 would be pooled
        maps = module(maps)
        if index in RELUS:
            assert isinstance(module, nn.ReLU)
            expected.append(maps.clone())
    features = vgg.VggFeatures(state, mode)(images())
    assert len(features) == 16
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


def test_only_in_eval_mode_is_an_image_independent_of_its_batch(state):
    apart = {mode: vgg.VggFeatures(state, mode) for mode in ("eval", "train")}
    with torch.no_grad():
        alone = {mode: network(images()[:2])[0][0] for mode, network in apart.items()}
        together = {mode: network(images())[0][0] for mode, network in apart.items()}
    torch.testing.assert_close(alone["eval"], together["eval"])
    assert (alone["train"] - together["train"]).abs().max() > 1e-2


def test_gradients_reach_the_images_only(state):
    inputs = images().requires_grad_()
    network = vgg.VggFeatures(state, "eval")
    sum(maps.mean() for maps in network(inputs)).backward()
    assert inputs.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in state.values())


def test_grey_images_are_repeated_in_either_range():
    grey = images()[:, :1]
    for value_range in ("imagenet", "symmetric"):
        shown = vgg.vgg_input(grey, value_range)
        assert shown.shape == (3, 3, 16, 16)
        assert all(torch.equal(shown[:, channel], grey[:, 0]) for channel in range(3))


def test_the_two_ranges_of_colour_images_differ_by_the_published_scale_and_shift():
    # s = symmetric value; ImageNet normalisation gives scale * s + shift.
    assert torch.equal(vgg.vgg_input(images(), "symmetric"), images())
    ends = torch.stack([torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0)])
    low, high = vgg.vgg_input(ends, "imagenet").flatten(1)
    assert ((high - low) / 2).tolist() == pytest.approx([2.183, 2.232, 2.222], abs=5e-4)
    assert ((high + low) / 2).tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=5e-5)


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator():
    before = torch.get_rng_state()
    first, second = vgg.load_state("random"), vgg.load_state("random")
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_from_a_file(tmp_path, state):
    path = tmp_path / "vgg.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, path)
    with torch.no_grad():
        expected = vgg.VggFeatures(state, "eval")(images(1))[-1]
        assert torch.equal(vgg.load_features(str(path), "eval")(images(1))[-1], expected)
    assert not any(name.startswith("classifier") for name in vgg.load_state(str(path)))


def one_line(error: pytest.ExceptionInfo[FlgenError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "--model.loss.weights" in message
    return message


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(FlgenError, match=r"no VGG19-BN weights at .*nowhere\.pth") as error:
        vgg.load_features(str(tmp_path / "nowhere.pth"), "eval")
    one_line(error)


@pytest.mark.parametrize("cut", [0, 10, 1000])
def test_a_damaged_file_is_one_clear_line(tmp_path, cut):
    path = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FlgenError, match="damaged") as error:
        vgg.load_features(str(path), "eval")
    one_line(error)


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.zeros(3)}, {"features.0.weight": torch.zeros(8, 3, 3, 3), "features.0.bias": torch.zeros(8)}],
)
def test_the_weights_of_another_network_are_one_clear_line(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(FlgenError, match="holds no VGG19-BN weights") as error:
        vgg.load_features(str(path), "eval")
    assert "features.0" in one_line(error)


def test_without_network_the_line_names_the_file_to_fetch(monkeypatch):
    def unreachable(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models.VGG19_BN_Weights, "get_state_dict", unreachable)
    with pytest.raises(FlgenError, match="Name or service not known") as error:
        vgg.load_features("imagenet", "eval")
    assert "https://download.pytorch.org/models/vgg19_bn-c79401a0.pth" in one_line(error)
