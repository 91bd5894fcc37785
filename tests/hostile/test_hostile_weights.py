"""Files of weights, caches and vectors from somebody else: tensors of the right shape, or one line, and no code."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from damage import TIMES, altered, bomb_that_works, damaged, outcome, refusal, tried
from hypothesis import given
from safetensors.torch import save_file

from flgen.experiment.weights import load_weights, save_weights
from flgen.metrics import inception, trained
from flgen.models import torchvision_classifiers, vgg
from flgen.models.statistics_cache import StatisticsCache
from flgen.synthesis.speech import read_speakers

KEY = {"data": "digits"}


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(network(), tmp_path / "final.safetensors", {"from": "a test"})
    return tmp_path / "final.safetensors"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The file of cached moments."""
    StatisticsCache(tmp_path / "cache").write(KEY, torch.arange(6.0))
    (path,) = (tmp_path / "cache").iterdir()
    return path


def with_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@TIMES
def test_any_bytes_in_place_of_initial_weights(times: int, weights: Path) -> None:
    intact, module = weights.read_bytes(), network()

    @tried(60 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        weights.write_bytes(content)
        outcome(lambda: load_weights(module, weights))

    holds()


@TIMES
def test_any_header_of_initial_weights(times: int, weights: Path) -> None:
    intact, module = weights.read_bytes(), network()
    (length,) = struct.unpack_from("<Q", intact)
    header, body = json.loads(intact[8 : 8 + length]), intact[8 + length :]

    @tried(60 * times)
    @given(altered(header))
    def holds(changed: Any) -> None:
        weights.write_bytes(with_header(changed, body))
        outcome(lambda: load_weights(module, weights))

    holds()


@TIMES
def test_damaged_moments_are_computed_again(times: int, cache: Path) -> None:
    intact = cache.read_bytes()

    @tried(60 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        cache.write_bytes(content)
        found = outcome(lambda: StatisticsCache(cache.parent).read(KEY))
        assert found is None or torch.equal(found, torch.arange(6.0))

    holds()


def stripes() -> Any:
    """Two classes of images."""
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    images[::2, :, :4] = 200
    split = SimpleNamespace(images=images, labels=torch.tensor([0, 1] * 4))
    return SimpleNamespace(name="stripes", classes=2, train=split, test=split)


@TIMES
def test_a_damaged_extractor_is_not_taken(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "LEAST_STEPS", 1)
    monkeypatch.setattr(trained, "MOST_STEPS", 1)
    data = stripes()
    intact = trained.trained_extractor(data, tmp_path).state_dict()
    (path,) = tmp_path.glob("*.pt")

    @tried(25 * times)
    @given(damaged(path.read_bytes()))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        found = outcome(lambda: trained.trained_extractor(data, tmp_path))
        assert all(torch.equal(tensor, intact[name]) for name, tensor in found.state_dict().items())

    holds()


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


READERS: dict[str, Callable[[Path], Any]] = {
    "vgg": lambda path: vgg.load_features(str(path), "eval"),
    "torchvision": lambda path: torchvision_classifiers.read_weights(path, "resnet18"),
    "inception": lambda path: inception.Inception(str(path)),
    "inception of torchvision": lambda path: inception.TorchvisionInception(str(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_code_in_a_file_of_weights_is_not_run(reader: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = bomb_that_works(canary)
    for plant in (saved, lambda content, folder: _pickled(content, folder)):
        for content in (bomb, {"features.0.weight": bomb}):
            path = plant(content, tmp_path)
            refusal(lambda path=path: READERS[reader](path))
            assert not canary.exists()


def _pickled(content: Any, folder: Path) -> Path:
    (folder / "weights.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return folder / "weights.pkl"


@pytest.mark.parametrize("reader", ["vgg", "torchvision"])
@pytest.mark.parametrize("content", [5, [], {"x": 5}, {5: torch.zeros(1)}, {"features.0.weight": torch.zeros(2, 2)}])
def test_a_file_of_something_else_is_one_line(content: Any, reader: str, tmp_path: Path) -> None:
    found = outcome(lambda: READERS[reader](saved(content, tmp_path)))
    assert reader == "torchvision" or str(tmp_path) in str(found)


@TIMES
@pytest.mark.parametrize("reader", ["vgg", "torchvision"])
def test_any_bytes_in_place_of_published_weights(reader: str, times: int, tmp_path: Path) -> None:
    path = saved({"features.0.weight": torch.zeros(2, 3), "x": torch.zeros(4)}, tmp_path)
    intact = path.read_bytes()

    @tried(30 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: READERS[reader](path))

    holds()


@TIMES
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_any_bytes_in_place_of_speakers(name: str, times: int, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, np.ones((3, 4), dtype=np.float32))
    else:
        save_file({"x": torch.ones(3, 4)}, str(path))
    intact = path.read_bytes()

    @tried(50 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        path.write_bytes(content)
        outcome(lambda: read_speakers(path))

    holds()


def test_a_pickle_in_place_of_speakers_is_not_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = bomb_that_works(canary)
    np.save(tmp_path / "x.npy", np.array([[bomb]], dtype=object), allow_pickle=True)
    (tmp_path / "y.npy").write_bytes(pickle.dumps(bomb))
    np.savez(tmp_path / "z.npz", x=np.array([bomb], dtype=object))
    for name in ("x.npy", "y.npy", "z.npz"):
        assert "no matrix of x-vectors" in refusal(lambda name=name: read_speakers(tmp_path / name))
    assert not canary.exists()


def test_a_claim_of_huge_weights_is_one_line(weights: Path, tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    weights.write_bytes(with_header({"0.weight": tensor}, b"\0" * 64))
    assert "cannot be read" in refusal(lambda: load_weights(network(), weights))
    weights.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert "cannot be read" in refusal(lambda: load_weights(network(), weights))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 512), }".ljust(128)
    (tmp_path / "x.npy").write_bytes(header)
    assert "no matrix of x-vectors" in refusal(lambda: read_speakers(tmp_path / "x.npy"))


CODE = "open({canary!r}, 'w').close()\nfrom transformers import PretrainedConfig as Mine\n"


@pytest.mark.parametrize("what", ["tokenizer", "encoder", "language model"])
def test_code_beside_a_model_of_transformers_is_not_run(what: str, tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "model"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE.format(canary=str(canary)))
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    own = {name: "mine.Mine" for name in classes}
    own["AutoTokenizer"] = ["mine.Mine", None]
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": own}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine", "auto_map": own}))
    if what == "tokenizer":
        from flgen.data import MELD

        refusal(lambda: MELD(str(tmp_path), tokenizer=str(folder)).tokens(["a"]))
    elif what == "encoder":
        from flgen.models.text_classifiers import TransformerClassifier

        refusal(lambda: TransformerClassifier(str(folder), vocabulary=9, padding=0, classes=2))
    else:
        from flgen.synthesis.text_model import TextModel

        options: dict[str, Any] = {"device": "cpu", "precision": "32", "local_files_only": True, "option": "--prompts"}
        refusal(lambda: TextModel(str(folder), **options))
    assert not canary.exists()


def test_code_in_a_pipeline_of_diffusers_is_not_run(tmp_path: Path) -> None:
    from flgen.synthesis.diffusers_pipeline import load_pipeline

    canary, folder = tmp_path / "canary", tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "mine.py").write_text(CODE.format(canary=str(canary)))
    (folder / "unet" / "mine.py").write_text(CODE.format(canary=str(canary)))
    for name in (["mine", "Mine"], "DDPMPipeline"):
        for part in (["mine", "Mine"], ["subprocess", "Popen"], ["os", "system"]):
            index = {"_class_name": name, "_diffusers_version": "0.30.0", "unet": part, "scheduler": part}
            (folder / "model_index.json").write_text(json.dumps(index))
            refusal(lambda: load_pipeline("--x", str(folder), device="cpu", precision="32", scheduler="pipeline"))
            assert not canary.exists()
