"""The shipped configurations of GPT-FL's federated stage, and models that take their sizes from the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from flgen.errors import UsageError
from flgen.experiment.config import fit_model_to_data

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = ("cifar10", "cifar100", "flowers102", "meld")

# A process of its own: once a model has been built, a short class name means two classes to the parser.
PARSE = """
import json, sys
from flgen.commands.sections import federated_sections, parse_command

for file in json.load(sys.stdin):
    print(json.dumps(parse_command("fit", "", ["--config", file], federated_sections()).resolved()))
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict[str, Any]]:
    files = json.dumps([str(CONFIGS / f"gptfl_{name}.yaml") for name in SETS])
    done = subprocess.run([sys.executable, "-c", PARSE], input=files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(zip(SETS, map(json.loads, done.stdout.splitlines()), strict=True))


def test_the_federated_stage_has_the_numbers_of_the_specification(shipped: Any) -> None:
    for config in shipped.values():
        assert config["method"]["class_path"] == "flgen.FedAvg"
        training = config["method"]["init_args"]["training"]
        assert (training["epochs"], training["learning_rate_decay"], training["clip_norm"]) == (1, 1.0, None)
        model = config["model"]["init_args"]
        assert (model["weight_decay"], model["momentum"]) == (0.0, 0.0)
    for name in ("cifar10", "cifar100", "flowers102"):
        config = shipped[name]
        assert config["trainer"]["rounds"] == 500
        assert config["method"]["init_args"]["training"]["batch_size"] == 32
        assert config["model"]["class_path"] == "flgen.VGG19"
        assert config["model"]["init_args"]["pretrained"] is None  # the authors' own start from ImageNet's weights
        assert config["partition"]["class_path"] == "flgen.Dirichlet"
        assert config["partition"]["init_args"]["alpha"] == 0.1


@pytest.mark.parametrize(
    ("name", "clients", "per_round", "least", "size"),
    [("cifar10", 100, 10, 32, 32), ("cifar100", 100, 10, 5, 32), ("flowers102", 50, None, 5, 224)],
)
def test_clients_of_the_image_sets(
    shipped: Any, name: str, clients: int, per_round: int, least: int, size: int
) -> None:
    config = shipped[name]
    assert config["partition"]["init_args"]["clients"] == clients
    assert config["partition"]["init_args"]["min_samples"] == least
    assert config["trainer"]["clients_per_round"] == per_round
    assert config["data"]["init_args"]["image_size"] == size


def test_speakers_are_the_clients_of_meld(shipped: Any) -> None:
    partition = shipped["meld"]["partition"]
    assert partition["class_path"] == "flgen.ByAttribute"
    assert (partition["init_args"]["attribute"], partition["init_args"]["clients"]) == ("speaker", None)
    assert shipped["meld"]["data"]["init_args"]["min_utterances"] == 11


def chosen(model: str, options: dict[str, Any], data: str, data_options: dict[str, Any]) -> Namespace:
    return Namespace(
        model=Namespace(class_path=f"flgen.models.{model}", init_args=Namespace(**options)),
        data=Namespace(class_path=f"flgen.data.{data}", init_args=Namespace(**data_options)),
    )


def test_a_model_of_texts_takes_its_tokens_from_the_data() -> None:
    config = chosen("EmbeddingBagClassifier", dict.fromkeys(("vocabulary", "padding", "classes")), "MELD", {})
    config.data.init_args.vocabulary = 500
    fit_model_to_data(config)
    assert vars(config.model.init_args) == {"vocabulary": 500, "padding": 0, "classes": 3}


@pytest.mark.parametrize(
    ("model", "option", "data", "says"),
    [
        ("EmbeddingBagClassifier", "vocabulary", "CIFAR10", "takes texts, but --data CIFAR10 holds images"),
        ("VGG19", "image_size", "MELD", "takes images, but --data MELD holds texts"),
        ("TorchvisionResNet", "channels", "MELD", "takes images, but --data MELD holds texts"),
    ],
)
def test_a_model_of_another_kind_of_data_is_refused(model: str, option: str, data: str, says: str) -> None:
    with pytest.raises(UsageError) as refusal:
        fit_model_to_data(chosen(model, {option: None}, data, {}))
    assert str(refusal.value) == f"--model {model} {says}: use another --model"
