from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from flgen.errors import UsageError
from flgen.metrics import extractors
from flgen.metrics.extractors import extractor_names, load_extractor, register_extractor


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(extractors, "_registered", {})


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Network(nn.Module):
    """Random weights, dropout, a half-precision result of three dimensions."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.dropout = nn.Dropout()

    def forward(self, images):
        return self.dropout(self.linear(images.flatten(1).float())).half()[:, :, None]


def test_a_registered_module_becomes_an_extractor(images, digits):
    register_extractor("mine", lambda data: Network(data.classes))
    extractor = load_extractor("mine", data=digits)
    features = extractor(images)
    assert features.shape == (6, 10)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert extractor.name == "mine"
    assert extractor.accuracy is None
    assert "mine" in extractor_names()


def test_an_extractor_stays_in_evaluation_mode(images):
    register_extractor("mine", lambda data: Network())
    extractor = load_extractor("mine").train()
    assert torch.equal(extractor(images), extractor(images))
    assert not any(module.training for module in extractor.modules())


def test_features_do_not_depend_on_autocast(images):
    register_extractor("mine", lambda data: Network())
    extractor = load_extractor("mine")
    plain = extractor(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(images), plain)


def test_random_weights_are_the_same_on_every_process_and_leave_the_global_generator_alone(images):
    register_extractor("mine", lambda data: Network())
    state = torch.get_rng_state()
    first = load_extractor("mine")
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        second = load_extractor("mine")
    assert torch.equal(first(images), second(images))


def test_a_name_can_be_registered_again():
    register_extractor("mine", lambda data: Network(3))
    register_extractor("mine", lambda data: Network(5))
    assert load_extractor("mine").network.linear.out_features == 5


@pytest.mark.parametrize("name", ["inception", "inception_torchvision", "digits"])
def test_built_in_names_are_taken(name):
    with pytest.raises(UsageError, match=f"'{name}' is built in"):
        register_extractor(name, lambda data: Network())


@pytest.mark.parametrize("name", ["", "my net", "a/b"])
def test_a_name_must_fit_into_a_metric_name(name):
    with pytest.raises(UsageError, match="cannot be called"):
        register_extractor(name, lambda data: Network())


def test_an_unknown_name_is_answered_with_the_nearest(digits):
    with pytest.raises(UsageError, match="no extractor 'inceptoin': did you mean 'inception'"):
        load_extractor("inceptoin", data=digits)
    digits_of_mine = type(digits)("my_scans", 10, digits.train, digits.test)
    with pytest.raises(UsageError, match="did you mean 'my_scans'"):
        load_extractor("my_scan", data=digits_of_mine)


def test_a_trained_extractor_belongs_to_its_data_set(digits):
    mnist = type(digits)("mnist", 10, digits.train, digits.test)
    with pytest.raises(UsageError, match=r"data set here is 'mnist': use --evaluation\.extractors mnist"):
        load_extractor("digits", data=mnist)
    with pytest.raises(UsageError, match="pass it as data"):
        load_extractor("digits")


def test_a_factory_must_return_a_module():
    register_extractor("mine", lambda data: 3)
    with pytest.raises(UsageError, match="'mine' returned a int"):
        load_extractor("mine")


@pytest.mark.parametrize(
    ("result", "given"), [((1, 2), "tuple"), (torch.zeros(6), r"\(6,\)"), (torch.zeros(5, 2), r"\(5, 2\)")]
)
def test_a_module_must_return_one_tensor_with_a_row_per_image(images, result, given):
    class Wrong(nn.Module):
        def forward(self, images):
            return result

    register_extractor("mine", lambda data: Wrong())
    with pytest.raises(UsageError, match=rf"'mine' returned {given} for 6 images"):
        load_extractor("mine")(images)


def test_images_must_be_bytes(images):
    register_extractor("mine", lambda data: Network())
    with pytest.raises(ValueError, match="float32"):
        load_extractor("mine")(images.float())


def test_importing_the_package_does_not_import_torch():
    code = "import sys, flgen.metrics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
