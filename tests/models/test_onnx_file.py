"""A masked generator as an ordinary network in an ONNX file."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from flgen import ResnetGenerator
from flgen.errors import FlgenError
from flgen.masks import network
from flgen.masks.layers import MaskedConv2d, MaskedLinear
from flgen.models import onnx_file
from flgen.models.onnx_file import unmasked, write_onnx


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def generator() -> ResnetGenerator:
    """A finished generator of 16x16 colour images, with biases."""
    made = ResnetGenerator(image_size=16, channels=3, latent=8, width=4, bias=True)
    network.threshold_masks(made)
    made.recalibrate(draws(), batches=2)
    return made


@pytest.fixture(scope="module")
def written(generator: ResnetGenerator, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Its file, and the digest that was returned."""
    path = tmp_path_factory.mktemp("onnx") / "generator.onnx"
    return path, write_onnx(path, generator, {"data": "digits", "round": 3})


@pytest.mark.parametrize("batch", [1, 5])
def test_another_runtime_draws_the_same_images(
    batch: int, generator: ResnetGenerator, written: tuple[Path, str]
) -> None:
    noise = generator.noise(batch, draws(1))
    session = onnxruntime.InferenceSession(str(written[0]), providers=["CPUExecutionProvider"])
    (images,) = session.run(["images"], {"noise": noise.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(images), generator(noise), rtol=0, atol=1e-4)


def test_names_shapes_and_facts_are_in_the_file(written: tuple[Path, str]) -> None:
    path, sha256 = written
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ends = [(end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    assert ends == [
        ("noise", "tensor(float)", ["batch", 8, 1, 1]),
        ("images", "tensor(float)", ["batch", 3, 16, 16]),
    ]
    assert session.get_modelmeta().custom_metadata_map == {"data": "digits", "round": "3"}


def test_it_holds_as_many_weights_as_survive_in_ordinary_layers(
    generator: ResnetGenerator, written: tuple[Path, str]
) -> None:
    graph = onnx.load(written[0]).graph
    filters = [onnx.numpy_helper.to_array(values) for values in graph.initializer if len(values.dims) == 4]
    kept = [int(layer.masking.masks["weight"].sum()) for _, layer in network.masked_layers(generator)]  # type: ignore[union-attr]
    assert sorted(int((weights != 0).sum()) for weights in filters) == sorted(kept)
    assert {node.op_type for node in graph.node} == {
        "ConvTranspose", "BatchNormalization", "Relu", "Resize", "Conv", "Add", "Tanh"
    }  # fmt: skip


def test_it_is_one_file_that_says_nothing_of_the_machine(written: tuple[Path, str]) -> None:
    path, _ = written
    assert list(path.parent.iterdir()) == [path]
    content = path.read_bytes()
    for trace in (b".py", b"stack_trace", b"flgen.models", str(Path(onnx_file.__file__).parents[2]).encode()):
        assert trace not in content


def test_ordinary_layers_compute_what_masked_ones_do_and_leave_them_alone() -> None:
    masked = nn.Sequential(MaskedConv2d(2, 3, 3, stride=2, padding=1, bias=True), nn.Flatten(), MaskedLinear(12, 5))
    network.reset_weights(masked, "kaiming_normal", 1)
    network.reset_scores(masked, "normal", draws())
    network.threshold_masks(masked)
    before = torch.get_rng_state()
    plain = unmasked(masked)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.Flatten, nn.Linear]  # type: ignore[attr-defined]
    assert [len(network.masked_layers(net)) for net in (masked, plain)] == [2, 0]
    inputs = torch.randn(4, 2, 4, 4, generator=draws(2))
    assert torch.equal(plain(inputs), masked(inputs))


def test_a_layer_of_ones_own_is_not_taken_for_what_it_derives_from() -> None:
    class Rotated(MaskedLinear):
        pass

    masked = nn.Sequential(Rotated(2, 2))
    network.threshold_masks(masked)
    with pytest.raises(FlgenError, match=r"^its layer 0 is a Rotated, which has no ordinary counterpart$"):
        unmasked(masked)


@pytest.mark.parametrize("missing", [["onnx"], ["onnxscript"], ["onnx", "onnxscript"]])
def test_a_missing_package_is_one_line(
    missing: list[str], generator: ResnetGenerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FlgenError) as caught:
        write_onnx(tmp_path / "x.onnx", generator)
    assert str(caught.value) == f'{" and ".join(missing)} not installed: pip install "flgen[onnx]"'


def test_more_than_one_file_holds_is_one_line(
    generator: ResnetGenerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = 4 * len(network.weights_vector(generator))
    monkeypatch.setattr(onnx_file, "LARGEST", size)
    with pytest.raises(FlgenError) as caught:
        write_onnx(tmp_path / "x.onnx", generator)
    assert str(caught.value) == (
        f"its weights take {size:,} bytes, an ONNX file holds {size:,}: write a ticket instead"
    )
    assert list(tmp_path.iterdir()) == []
